"""Checks and downloads on every node of a cluster, by an actor on each."""

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vidgen_ray.addresses import one_line
from vidgen_ray.config import Config, ModelConfig
from vidgen_ray.errors import VidgenError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.operations.doctor import Check, check_weights
from vidgen_ray.provenance import versions

_TIMEOUT_S = 120.0
_PREFETCH_TIMEOUT_S = 4 * 3600.0
_MAX_SKEW_S = 1.0
_LEAST_FREE_GB = 40.0  # the 5B's weights are 21 GB, and are written beside what they replace
_COLLECTIVE_TIMEOUT_S = 90.0
_GPU_VARIABLES = {"CUDA_VISIBLE_DEVICES"}


@dataclass(frozen=True)
class Finding:
    """A check of one node, or of all together (`cluster`)."""

    node: str
    check: Check


class NodeProbe:
    """An actor that is bound to one node."""

    def now(self) -> float:
        """Seconds since the epoch by the node's clock."""
        return time.time()

    def examine(
        self, model: ModelConfig, num_gpus: int, is_worker: bool, output: str | None, token: str
    ) -> list[Check]:
        """Check this node, for which Ray reports `num_gpus`; `is_worker` if it generates clips.

        The output must hold the file `token` that the driver wrote.
        """
        checks = [_check_gpus(num_gpus), _check_cache(), _check_weights(model, is_worker)]
        if num_gpus > 1:
            checks.append(check_collective())
        if output is not None:
            checks.append(_check_output(output, token))
        return checks

    def versions(self) -> dict[str, str]:
        """Versions of this node's Python and packages."""
        return versions()

    def prefetch(self, model: ModelConfig) -> tuple[float, str]:
        """Download the weights to this node; seconds taken, and the folder. Raises ConfigError."""
        from vidgen_ray.model.checkpoint import open_checkpoint

        start = time.monotonic()
        folder = open_checkpoint(model).folder
        return time.monotonic() - start, str(folder)


def examine_cluster(config: Config, output: str | None) -> Iterator[Finding]:
    """Check each node of the connected cluster, one after the other.

    With `output`, every node must read and write the same storage there.
    """
    token = f"doctor-{uuid.uuid4().hex}"
    store = ArtifactStore(output) if output is not None else None
    if store is not None:
        store.write(token, b"vidgen")
    probes = _probes()
    try:
        for name, node, probe in probes:
            yield from _examine_node(name, node, probe, config, output, token)
    finally:
        if store is not None:
            written = [each for each in store.names("") if each.startswith(token)]
            for each in written:
                store.remove_file(each)
    if store is not None:
        num_wrote = len(written) - 1
        yield Finding(
            "cluster",
            Check(
                "storage",
                num_wrote == len(probes),
                f"{num_wrote} of {len(probes)} nodes write to the storage that this machine reads",
            ),
        )


def prefetch_everywhere(model: ModelConfig) -> Iterator[Finding]:
    """Download the weights of `model` to every node of the cluster in parallel."""
    probes = _probes()  # held, since an actor ends with its last handle
    begun = [(name, probe.prefetch.remote(model)) for name, _, probe in probes]
    for name, reference in begun:
        try:
            seconds, folder = ray.get(reference, timeout=_PREFETCH_TIMEOUT_S)
        except (ray.exceptions.RayError, VidgenError) as error:
            yield Finding(name, Check("weights", False, _reason(error)))
        else:
            yield Finding(name, Check("weights", True, f"{folder}, {seconds:.1f} s"))


def _probes() -> list[tuple[str, dict[str, Any], Any]]:
    """An actor on each live node, with the node's name; the head first."""
    actor = ray.remote(num_cpus=0)(NodeProbe)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: "node:__internal_head__" not in node["Resources"])
    found = []
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
        found.append((name, node, actor.options(scheduling_strategy=strategy).remote()))
    return found


def _examine_node(
    name: str, node: dict[str, Any], probe: Any, config: Config, output: str | None, token: str
) -> Iterator[Finding]:
    try:
        found = ray.get(probe.versions.remote(), timeout=_TIMEOUT_S)
        yield Finding(name, _compare_versions(found))
        yield Finding(name, _check_clock(probe))
        resources = node["Resources"]
        num_gpus = int(resources.get("GPU", 0))
        wants_gpu = config.batch.num_gpus_per_worker > 0
        is_worker = num_gpus > 0 if wants_gpu else resources.get("CPU", 0) > 0
        checks = probe.examine.remote(config.model, num_gpus, is_worker, output, token)
        for check in ray.get(checks, timeout=_TIMEOUT_S + _COLLECTIVE_TIMEOUT_S):
            yield Finding(name, check)
    except (ray.exceptions.RayError, VidgenError) as error:
        yield Finding(name, Check("node", False, f"does not answer: {_reason(error)}"))


def _compare_versions(found: dict[str, str]) -> Check:
    ours = versions()
    names = sorted({*ours, *found})
    other = [
        f"{name} {found.get(name, 'missing')}, here {ours.get(name, 'missing')}"
        for name in names
        if found.get(name) != ours.get(name)
    ]
    if other:
        return Check("versions", False, f"{'; '.join(other)}: use one image on every node")
    return Check("versions", True, f"the same as here: vidgen {ours['vidgen_ray']}, all packages")


def _check_clock(probe: Any) -> Check:
    """The error of the measured skew is at most half of the round trip."""
    before = time.time()
    theirs = ray.get(probe.now.remote(), timeout=_TIMEOUT_S)
    after = time.time()
    skew_s, error_s = theirs - (before + after) / 2, (after - before) / 2
    finding = f"{skew_s:+.3f} s from here, ± {error_s:.3f} s"
    if abs(skew_s) - error_s > _MAX_SKEW_S:
        return Check("clock", False, f"{finding}: job leases need NTP on every node")
    return Check("clock", True, finding)


def _check_gpus(num_gpus: int) -> Check:
    """GPUs by NVML, since Ray hides them from torch in a process that reserved none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        found = [_describe_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except ImportError:
        return Check("gpu", None, f"Ray says {num_gpus}; install the gpu extra to see more")
    except pynvml.NVMLError as error:
        finding = f"Ray says {num_gpus}, the driver does not answer: {one_line(error)}"
        return Check("gpu", False if num_gpus else None, finding)
    finding = f"Ray says {num_gpus}; {'; '.join(found) or 'none'}"
    return Check("gpu", len(found) >= num_gpus if num_gpus else None, finding)


def _describe_gpu(nvml: Any, index: int) -> str:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = nvml.nvmlDeviceGetName(handle)
    return f"{name}, {memory.free / 1e9:.1f} of {memory.total / 1e9:.1f} GB VRAM free"


def _check_output(output: str, token: str) -> Check:
    try:
        store = ArtifactStore(output)
        store.check_writable()
        if store.read(token) != b"vidgen":
            return Check("output", False, f"{output} is not the storage that the driver writes")
        store.write(f"{token}-{socket.gethostname()}-{os.getpid()}", b"vidgen")
    except VidgenError as error:
        return Check("output", False, str(error))
    return Check("output", True, f"{output}: the same storage as on the driver, writable")


def _check_cache() -> Check:
    """The hub's cache: the folder, whether it can be written, and its free space."""
    from vidgen_ray.model.hub import cache_folder

    folder = cache_folder()
    try:
        os.makedirs(folder, exist_ok=True)
        probe = os.path.join(folder, f".vidgen-{uuid.uuid4().hex}")
        with open(probe, "xb"):
            pass
        os.unlink(probe)
        free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Check("cache", False, f"{folder}: {error.strerror}; set HF_HOME to a writable disk")
    enough = free_gb >= _LEAST_FREE_GB
    advice = "" if enough else f"; the 5B wants {_LEAST_FREE_GB:.0f} GB, set HF_HOME"
    return Check("cache", True if enough else None, f"{folder}, {free_gb:.0f} GB free{advice}")


def _check_weights(model: ModelConfig, is_worker: bool) -> Check:
    check = check_weights(model)
    if check.ok:
        return check
    if not is_worker:
        return Check(
            "weights", None, f"{model.checkpoint} is not here, and this node runs no model"
        )
    return Check("weights", False, f"{check.finding}; run `vidgen prefetch --address auto`")


def check_collective() -> Check:
    """Whether the GPUs of this node can all-reduce a tensor, in processes that see them all."""
    environment = {name: value for name, value in os.environ.items() if name not in _GPU_VARIABLES}
    command = [sys.executable, "-m", "vidgen_ray.operations.collective"]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_COLLECTIVE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        finding = f"hung for {_COLLECTIVE_TIMEOUT_S:.0f} s; see whether NCCL_P2P_DISABLE=1 helps"
        return Check("nccl", False, finding)
    if done.returncode:
        return Check("nccl", False, done.stderr.strip().splitlines()[-1])
    return Check("nccl", True, done.stdout.strip())


def _reason(error: BaseException) -> str:
    return one_line(getattr(error, "cause", None) or error)
