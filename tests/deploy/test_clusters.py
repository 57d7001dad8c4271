"""What `ray up` would find wrong is found here: the files are checked as Ray itself checks them."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from googleapiclient.discovery_cache import get_static_doc
from ray import __version__ as ray_version
from ray.autoscaler._private.util import prepare_config, validate_config

from vidgen_ray import __version__

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "deploy/cluster-gcp.yaml"]


def read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return tree


def check(tree: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does before it calls a cloud, and what the cloud would say of its machines."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    unknown = set(tree["provider"]) - set(schema["properties"]["provider"]["properties"])
    if unknown:  # Ray itself lets them pass
        raise ValueError(f"provider: {unknown}")
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(tree))
    validate_config(prepared)
    for node_type in tree["available_node_types"].values():
        if tree["provider"]["type"] == "aws":
            check_aws(node_type["node_config"])
        else:
            check_gcp(node_type["node_config"])
    return prepared


def check_aws(node_config: dict[str, Any]) -> None:
    """EC2's own description of RunInstances, without asking EC2."""
    loader = botocore.session.get_session().get_service_model("ec2")
    shape = loader.operation_model("RunInstances").input_shape
    call = {**node_config, "MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(call, shape)
    if report.has_errors():
        raise ValueError(report.generate_report())


def check_gcp(node_config: dict[str, Any]) -> None:
    """Compute Engine's own description of an instance, without asking it."""
    schemas = json.loads(get_static_doc("compute", "v1"))["schemas"]
    # Ray takes the settings of `scheduling` as a list.
    parts = [("Instance", node_config)]
    parts += [("Scheduling", each) for each in node_config.get("scheduling", [])]
    parts += [("AttachedDisk", disk) for disk in node_config["disks"]]
    parts += [
        ("AttachedDiskInitializeParams", disk["initializeParams"]) for disk in node_config["disks"]
    ]
    for name, part in parts:
        unknown = set(part) - set(schemas[name]["properties"])
        if unknown:
            raise ValueError(f"{name}: {unknown}")


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_cluster(name: str) -> None:
    check(read(name))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("path", "typo"),
    [
        ([], "idle_timeout_minute"),
        (["provider"], "regions"),
        (["docker"], "run_option"),
        (["available_node_types", "gpu_spot"], "max_worker"),
        (["available_node_types", "gpu_spot", "resources"], "GPU"),
        (["available_node_types", "gpu_spot", "node_config"], "instanceTyp"),
    ],
)
def test_a_typo_is_refused(name: str, path: list[str], typo: str) -> None:
    tree = read(name)
    place = tree
    for key in path:
        place = place[key]
    place[typo] = "x"
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check(tree)


@pytest.mark.parametrize("name", FILES)
def test_the_head_takes_no_clips_and_workers_come_and_go(name: str) -> None:
    prepared = check(read(name))
    types = prepared["available_node_types"]
    head = types.pop(prepared["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert set(types) == {"gpu_on_demand", "gpu_spot"}
    for worker in types.values():
        assert worker["resources"]["GPU"] == 1
        assert worker["min_workers"] == 0
        assert 0 < worker["max_workers"] <= prepared["max_workers"]
    assert re.search("spot", str(types["gpu_spot"]["node_config"]), re.IGNORECASE)
    assert not re.search("spot", str(types["gpu_on_demand"]["node_config"]), re.IGNORECASE)


@pytest.mark.parametrize("name", FILES)
def test_the_jobs_api_is_not_open(name: str) -> None:
    tree = read(name)
    options = " ".join(tree["docker"]["run_options"])
    assert "-e RAY_AUTH_MODE=token" in options
    token = re.search(r"-e RAY_AUTH_TOKEN_PATH=(\S+)", options)
    assert token is not None
    assert tree["file_mounts"][token[1]] == "~/.ray/auth_token"
    (start,) = [c for c in tree["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in start
    assert not re.search(r"postgresql://|whsec_|hf_[A-Za-z0-9]{10}", (ROOT / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_every_node_shares_the_outputs_and_has_the_model_before_it_works(name: str) -> None:
    tree = read(name)
    mounted = {option.split(":")[1] for option in tree["docker"]["run_options"] if "-v " in option}
    assert {"/mnt/vidgen", "/app/outputs", "/app/loras", "/cache"} <= mounted
    assert any("mountpoint -q /mnt/vidgen ||" in each for each in tree["initialization_commands"])
    assert any("vidgen prefetch" in command for command in tree["worker_setup_commands"])


@pytest.mark.parametrize("name", [*FILES, "deploy/kuberay/rayservice.yaml"])
def test_the_proxy_cleans_request_ids_as_in_the_image(name: str) -> None:
    variable = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    in_image = re.search(rf"{variable}=(\S+)", (ROOT / "Dockerfile").read_text())
    assert in_image is not None
    tree = read(name)
    if "docker" in tree:
        assert f"-e {variable}={in_image[1]}" in tree["docker"]["run_options"]
        return
    cluster = tree["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": variable, "value": in_image[1]} in container["env"]


def test_the_two_clouds_differ_in_the_cloud_alone() -> None:
    aws, gcp = (read(name) for name in FILES)
    for tree in (aws, gcp):
        for key in ("provider", "available_node_types", "initialization_commands"):
            del tree[key]
    assert aws == gcp


def test_versions_are_those_of_the_image() -> None:
    image = f"vidgen-ray:{__version__}"
    for name in FILES:
        assert read(name)["docker"]["image"].endswith(f"/{image}")
    assert f"docker build -t {image} ." in (ROOT / "Dockerfile").read_text()
    assert f"ray=={ray_version}" in (ROOT / "constraints.txt").read_text().splitlines()
