"""The Kubernetes manifests: core objects by Kubernetes' own schemas, KubeRay's by its fields."""

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import ValidationError
from ray import __version__ as ray_version

from vidgen_ray import __version__

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
RAY_FILES = ["rayservice.yaml", "rayjob.yaml"]
KUBERNETES = "1.34"

# The fields of ray.io/v1 in KubeRay 1.5 (ray-operator/apis/ray/v1/*_types.go).
FIELDS = {
    "RayService": {
        "serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy",
        "excludeHeadPodFromServeSvc", "rayClusterDeletionDelaySeconds",
    },
    "RayJob": {
        "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate",
        "metadata", "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy",
        "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources",
        "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
        "shutdownAfterJobFinishes", "suspend",
    },
    "cluster": {
        "headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling",
        "autoscalerOptions", "headServiceAnnotations", "suspend", "managedBy", "authOptions",
        "gcsFaultToleranceOptions",
    },
    "headGroupSpec": {
        "serviceType", "headService", "enableIngress", "rayStartParams", "template", "resources",
        "labels",
    },
    "workerGroupSpec": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams",
        "template", "scaleStrategy", "suspend", "idleTimeoutSeconds", "resources", "labels",
    },
    "autoscalerOptions": {
        "resources", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts",
        "securityContext", "idleTimeoutSeconds", "upscalingMode", "version",
    },
    "authOptions": {"mode"},
}  # fmt: skip


def read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return tree


def cluster_of(tree: dict[str, Any]) -> dict[str, Any]:
    spec = tree["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    return cluster


def templates(tree: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(tree)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def check(tree: dict[str, Any]) -> None:
    """Refuse fields that KubeRay or Kubernetes does not know, and values of the wrong kind."""
    assert tree["apiVersion"] == "ray.io/v1"
    assert set(tree) == {"apiVersion", "kind", "metadata", "spec"}
    cluster = cluster_of(tree)
    parts = [(tree["kind"], tree["spec"]), ("cluster", cluster)]
    parts += [
        (name, cluster[name]) for name in ("headGroupSpec", "autoscalerOptions", "authOptions")
    ]
    parts += [("workerGroupSpec", group) for group in cluster["workerGroupSpecs"]]
    for name, part in parts:
        unknown = set(part) - FIELDS[name]
        assert not unknown, (name, unknown)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for template in templates(tree):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", RAY_FILES)
def test_kuberay_knows_every_field(name: str) -> None:
    check(read(name))


@pytest.mark.parametrize(
    ("path", "typo"),
    [
        ("", "serveConfigV3"),
        ("rayClusterConfig", "enableInTreeAutoscaler"),
        ("rayClusterConfig.workerGroupSpecs.0", "maxReplica"),
        ("rayClusterConfig.headGroupSpec.template.spec", "volume"),
        ("rayClusterConfig.workerGroupSpecs.0.template.spec.containers.0", "volumeMount"),
    ],
)
def test_a_typo_is_refused(path: str, typo: str) -> None:
    tree = copy.deepcopy(read("rayservice.yaml"))
    place: Any = tree["spec"]
    for key in filter(None, path.split(".")):
        place = place[int(key) if key.isdigit() else key]
    place[typo] = "x"
    with pytest.raises((AssertionError, ValidationError)):
        check(tree)


def test_volumes_and_policy_are_valid_core_objects() -> None:
    documents = list(yaml.safe_load_all((FOLDER / "storage.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    claims = {each["metadata"]["name"] for each in documents if each["kind"].endswith("Claim")}
    for name in RAY_FILES:
        for template in templates(read(name)):
            for volume in template["spec"]["volumes"]:
                if "persistentVolumeClaim" in volume:
                    assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_the_service_is_that_of_serve_config() -> None:
    ours = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    theirs = yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"])
    assert theirs["http_options"].pop("host") == "0.0.0.0"
    assert ours["http_options"].pop("host") == "127.0.0.1"
    assert (theirs.pop("proxy_location"), ours.pop("proxy_location")) == ("EveryNode", "HeadOnly")
    assert theirs == ours


def test_both_use_one_cluster_save_its_size() -> None:
    service, job = (cluster_of(read(name)) for name in RAY_FILES)
    for cluster in (service, job):
        for key in ("replicas", "minReplicas"):
            del cluster["workerGroupSpecs"][0][key]
    assert service == job


@pytest.mark.parametrize("name", RAY_FILES)
def test_gpus_secrets_and_rights(name: str) -> None:
    tree = read(name)
    cluster = cluster_of(tree)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray_version
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    spec = group["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert any(each["key"] == "nvidia.com/gpu" for each in spec["tolerations"])
    assert "prefetch" in spec["initContainers"][0]["command"]
    for template in templates(tree):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["image"].endswith(f"/vidgen-ray:{__version__}")
            env = {each["name"]: each for each in container["env"]}
            assert "secretKeyRef" in env["VIDGEN_DATABASE_URL"]["valueFrom"]
            # A value in the manifest would be a secret in the repository.
            assert {name for name, each in env.items() if "value" in each} == {
                "VIDGEN_API_KEYS_FILE",
                "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
            }
