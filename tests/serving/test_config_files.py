"""The Serve config files say only what Ray and we know: Ray drops the rest silently."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from vidgen_ray.config import load_config, shipped_configs
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


def test_secrets_are_not_in_what_is_logged_of_the_arguments() -> None:
    arguments = ServingArguments(database="postgresql://u:pass@h/d", webhook_secret="whsec_abc")
    for text in (repr(arguments), str(arguments)):
        assert "pass" not in text
        assert "whsec_" not in text


def test_both_files_stay_on_this_machine() -> None:
    for name in FILES:
        assert read(name)["http_options"]["host"] == "127.0.0.1"


def test_serve_files_are_no_configurations_of_ours() -> None:
    assert shipped_configs() == ["cogvideox_5b_i2v", "nano"]
