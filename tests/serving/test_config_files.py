"""The Serve config files say only what Ray and we know: Ray drops the rest silently."""

import importlib
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from vidgen_ray.config import load_config, shipped_configs
from vidgen_ray.errors import ConfigError
from vidgen_ray.serving.app import checked
from vidgen_ray.serving.arguments import ServingArguments

ROOT = Path(__file__).parents[2]
FILES = ["serve_config.yaml", "configs/serve_nano.yaml"]
DEPLOYMENTS = {"Ingress", "Dispatcher", "Generator", "Scorer"}


def read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return tree


def unknown_keys(tree: Any, model: type[BaseModel], path: str = "") -> list[str]:
    """Keys of `tree` that no field of `model` has, at any depth."""
    found = []
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is None:
            found.append(f"{path}{key}")
            continue
        for inner in models_in(field.annotation):
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, dict):
                    found += unknown_keys(entry, inner, f"{path}{key}.")
    return found


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


@pytest.mark.parametrize("name", FILES)
def test_ray_knows_every_key(name: str) -> None:
    tree = read(name)
    assert unknown_keys(tree, ServeDeploySchema) == []
    ServeDeploySchema.model_validate(tree)


def test_a_key_that_ray_does_not_know_is_found() -> None:
    tree = read("serve_config.yaml")
    generator = tree["applications"][0]["deployments"][2]
    generator["max_ongoing_request"] = 1
    generator["autoscaling_config"]["min_replica"] = 1
    generator["ray_actor_options"]["num_gpu"] = 1
    prefix = "applications.deployments."
    assert set(unknown_keys(tree, ServeDeploySchema)) == {
        f"{prefix}max_ongoing_request",
        f"{prefix}autoscaling_config.min_replica",
        f"{prefix}ray_actor_options.num_gpu",
    }


@pytest.mark.parametrize("name", FILES)
def test_the_application_knows_its_arguments_and_deployments(name: str) -> None:
    (app,) = read(name)["applications"]
    arguments = ServingArguments.model_validate(app["args"])
    load_config(arguments.config)
    deployments = {entry["name"]: entry for entry in app["deployments"]}
    assert set(deployments) == DEPLOYMENTS
    assert deployments["Generator"]["max_ongoing_requests"] == 1
    for entry in deployments.values():
        assert "graceful_shutdown_timeout_s" in entry
    assert deployments["Dispatcher"]["graceful_shutdown_timeout_s"] > arguments.drain_s
    scaling = deployments["Generator"].get("autoscaling_config", {"max_replicas": 1})
    assert arguments.max_dispatched_jobs >= 2 * scaling["max_replicas"]


def test_an_argument_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="outptu"):
        ServingArguments.model_validate({"outptu": "x"})


@pytest.mark.parametrize(
    ("field", "value"),
    [("database", "postgresql://u:hunter2@h/d"), ("webhook_secret", "whsec_hunter2")],
)
def test_a_secret_in_the_file_is_refused_without_showing_it(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match="env:NAME or file:PATH") as caught:
        ServingArguments.model_validate({field: value})
    assert "hunter2" not in str(caught.value)


def test_secrets_come_from_where_they_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "whsec_" + "c2VjcmV0" * 5
    (tmp_path / "secret").write_text(f"{secret}\n")
    monkeypatch.setenv("DESK_DATABASE", f"sqlite:///{tmp_path}/desk.db")
    given = {
        "config": "nano",
        "output": str(tmp_path / "out"),
        "webhook_secret": f"file:{tmp_path}/secret",
        "database": "env:DESK_DATABASE",
    }
    arguments, _ = checked(ServingArguments.model_validate(given))
    assert (arguments.webhook_secret, arguments.database) == (
        secret,
        f"sqlite:///{tmp_path}/desk.db",
    )
    assert secret not in repr(arguments)
    for bad in (f"file:{tmp_path}/none", "env:NO_SUCH_NAME"):
        with pytest.raises(ConfigError, match="webhook_secret"):
            checked(ServingArguments.model_validate({**given, "webhook_secret": bad}))


def test_one_machine_with_four_cpus_and_a_gpu_starts_everything() -> None:
    tree = read("serve_config.yaml")
    (app,) = tree["applications"]
    cpus = gpus = 0.0
    for entry in app["deployments"]:
        options = entry.get("ray_actor_options", {})
        replicas = entry.get("autoscaling_config", {}).get("min_replicas", 1)
        default = app["args"]["num_cpus_per_score"] if entry["name"] == "Scorer" else 0
        cpus += replicas * options.get("num_cpus", default)
        gpus += replicas * options.get("num_gpus", 0)
    assert (cpus <= 4, gpus) == (True, 1)


def test_both_files_stay_on_this_machine() -> None:
    for name in FILES:
        assert read(name)["http_options"]["host"] == "127.0.0.1"


def test_serve_files_are_no_configurations_of_ours() -> None:
    assert shipped_configs() == ["cogvideox_5b_i2v", "nano"]


@pytest.mark.parametrize("name", FILES)
def test_serve_can_call_the_builder_that_a_file_names(name: str) -> None:
    (app,) = read(name)["applications"]
    module, _, attribute = app["import_path"].partition(":")
    signature = inspect.signature(getattr(importlib.import_module(module), attribute))
    (parameter,) = signature.parameters.values()
    assert parameter.annotation is ServingArguments
