"""One clip on several devices: a group of rank actors behind the `ClipEngine` protocol.

The ranks are in a placement group on one node. A rank that dies or hangs fails its clip; the next
clip gets a new group.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from vidgen_ray.addresses import one_line
from vidgen_ray.cluster.device_loss import exit_on_device_loss
from vidgen_ray.config import Config
from vidgen_ray.errors import ClipCancelled, ClipTimeout, ConfigError, EngineError, VidgenError
from vidgen_ray.generation.clip_engine import (
    Cancelled,
    ClipEngine,
    Generation,
    OnStep,
    StepCallbacks,
)
from vidgen_ray.generation.engine import Engine
from vidgen_ray.image_io import ConditioningImage, read_request_image
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.request import GenerationRequest

_PREFIX = "vidgen-ranks"
_POLL_S = 0.2
_GRACE_S = 15.0  # for ranks to stop a clip that another one ended
_SILENCE_S = 900.0  # how long ranks wait for a silent one

Failure = Exception | None


@dataclass(frozen=True)
class Process:
    """A process of the cluster; its start tells it from another with its number."""

    node: str
    pid: int
    started_at: float


def open_engine(config: Config) -> ClipEngine:
    """The engine that `config` asks for: one device, or a group of ranks. Raises ConfigError."""
    return Engine(config) if config.model.gpus_per_clip == 1 else RankGroup(config)


class Rank:
    """The actor: one rank's engine, in a process of its own."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stop = threading.Event()
        self._step = (0, 0)

    def address(self) -> str:
        """The rendezvous address of the process group."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return f"tcp://{ray.util.get_node_ip_address()}:{port}"

    def join(self, rank: int, size: int, address: str) -> "Process":
        """Join the process group; says which process this is."""
        from vidgen_ray.model.device import choose_device, num_cores
        from vidgen_ray.model.parallel import join

        device = choose_device(self._config.model.device)
        threads = self._config.model.cpu_threads or max(1, num_cores() // size)
        model = self._config.model.model_copy(update={"cpu_threads": threads})
        guided = self._config.generation.guidance_scale > 1
        self._ranks = join(rank, size, address, device, _SILENCE_S, guided=guided)
        config = self._config.model_copy(update={"model": model})
        self._engine = Engine(config, self._ranks)
        return _this_process()

    def load(self) -> float:
        """Load the weights; seconds."""
        return self._engine.load()

    def generate(self, request: GenerationRequest, image: ConditioningImage) -> Generation | None:
        """Make the clip with the others; rank 0 has it."""
        self._stop.clear()
        self._step = (0, request.num_inference_steps)

        def on_step(done: int, total: int) -> None:
            self._step = (done, total)

        def cancelled() -> bool:
            # All ranks must leave at the same step, or the rest would wait for them.
            return self._ranks.any(self._stop.is_set())

        with exit_on_device_loss():
            made = self._engine.generate(request, on_step, cancelled, image=image)
        return made if self._ranks.rank == 0 else None

    def step(self) -> tuple[int, int]:
        """How far the clip is."""
        return self._step

    def stop(self) -> None:
        """End the clip after its step."""
        self._stop.set()


class RankGroup:
    """`gpus_per_clip` ranks as one `ClipEngine`. For one thread at a time."""

    def __init__(self, config: Config) -> None:
        """Ranks start with the first clip, or `load`. Raises ConfigError."""
        self.config = config
        self.checkpoint: Checkpoint = open_checkpoint(config.model, weights=False)
        self._size = config.model.gpus_per_clip
        self._group: PlacementGroup | None = None
        self._ranks: list[Any] = []
        self.processes: list[Process] = []

    def load(self) -> float:
        """Start the ranks and load their weights; seconds taken. Raises ConfigError."""
        start = time.monotonic()
        self._start()
        self._all([rank.load.remote() for rank in self._ranks])
        return time.monotonic() - start

    def generate(
        self,
        request: GenerationRequest,
        on_step: OnStep | None = None,
        cancelled: Cancelled | None = None,
        *,
        image: ConditioningImage | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """Make the clip of `request`; see `ClipEngine.generate`."""
        self.checkpoint.check_request(request)
        self._start()
        image = image or read_request_image(request)
        image_ref = ray.put(image)
        work = [rank.generate.remote(request, image_ref) for rank in self._ranks]
        callbacks = StepCallbacks(on_step, cancelled, timeout_s)
        reported = 0
        reason: VidgenError | None = None
        while reason is None:
            done, waiting = ray.wait(work, num_returns=len(work), timeout=_POLL_S)
            if not waiting or any(_failure(ref) for ref in done):
                break
            step = self._step()
            try:
                if step[0] > reported:
                    reported = step[0]
                    callbacks.step(*step)
                callbacks.check()
            except (ClipCancelled, ClipTimeout) as stopped:
                reason = stopped
                for rank in self._ranks:
                    rank.stop.remote()
        generation: Generation = self._all(work, reason)[0]
        if on_step and reported < request.num_inference_steps:
            on_step(request.num_inference_steps, request.num_inference_steps)
        return generation

    def close(self) -> None:
        """End the ranks and free their devices."""
        for rank in self._ranks:
            ray.kill(rank)
        for process in self.processes:
            _on_its_node(_end, process)  # one that hangs does not react to Ray
        self._ranks, self.processes = [], []
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _start(self) -> None:
        if self._ranks:
            return
        _remove_orphans()
        batch = self.config.batch
        bundle = {"CPU": batch.num_cpus_per_worker / self._size, "GPU": batch.num_gpus_per_worker}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        self._group = placement_group(
            [bundle] * self._size, strategy="STRICT_PACK", name=_group_name()
        )
        if not self._group.wait(batch.worker_start_timeout_s):
            self.close()
            raise ConfigError(
                f"model.gpus_per_clip: {self._size} times {bundle} did not come free on one node "
                f"within batch.worker_start_timeout_s ({batch.worker_start_timeout_s:g} s); use "
                "fewer, or a node with as many"
            )
        actor = ray.remote(max_concurrency=3)(Rank)
        for index in range(self._size):
            place = PlacementGroupSchedulingStrategy(self._group, index)
            self._ranks.append(
                actor.options(
                    scheduling_strategy=place,
                    num_cpus=bundle.get("CPU", 0),
                    num_gpus=bundle.get("GPU", 0),
                ).remote(self.config)
            )
        try:
            address = ray.get(self._ranks[0].address.remote())
        except RayActorError as error:
            self.close()
            raise EngineError(f"a rank died while it started: {one_line(error)}") from error
        self.processes = self._all(
            [rank.join.remote(index, self._size, address) for index, rank in enumerate(self._ranks)]
        )

    def _step(self) -> tuple[int, int]:
        try:
            step: tuple[int, int] = ray.get(self._ranks[0].step.remote(), timeout=5)
        except (RayActorError, ray.exceptions.GetTimeoutError):
            return 0, 0  # the rank's own call reports what happened to it
        return step

    def _all(self, work: Sequence[Any], reason: VidgenError | None = None) -> list[Any]:
        """Results of every rank. After a failure, or a reason to stop, the others have a grace.

        Ranks that all ended by themselves are kept; else the group is closed. Raises the error.
        """
        done, waiting = ray.wait(list(work), num_returns=len(work), timeout=0)
        while waiting and reason is None and not any(_failure(ref) for ref in done):
            done, waiting = ray.wait(list(work), num_returns=len(work), timeout=_POLL_S)
        if waiting:
            _, waiting = ray.wait(list(work), num_returns=len(work), timeout=_GRACE_S)
        failures = [failure for ref in work if ref not in waiting and (failure := _failure(ref))]
        if waiting or any(isinstance(failure, RayActorError) for failure in failures):
            self.close()
        if reason and (failures or waiting):
            raise reason
        dead = [failure for failure in failures if isinstance(failure, RayActorError)]
        for failure in failures:
            # Beside a dead rank, the errors of the others only say that it is gone.
            if isinstance(failure, VidgenError) and not dead:
                raise failure
        if failures:
            first = (dead or failures)[0]
            raise EngineError(
                f"a rank of {self._size} failed: {one_line(first)}; the next clip gets new ones"
            ) from first
        results: list[Any] = ray.get(list(work))
        return results


def _failure(ref: Any) -> Failure:
    """What a finished call raised, as the class that it was raised as."""
    try:
        ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause: Exception = error.cause if isinstance(error.cause, Exception) else error
        return cause
    except ray.exceptions.RayError as error:
        lost: Exception = error
        return lost
    return None


def _group_name() -> str:
    """Names the owning process: Ray keeps a group whose owner was killed."""
    this = _this_process()
    return f"{_PREFIX}/{this.node}/{this.pid}/{this.started_at}/{time.monotonic_ns()}"


def _remove_orphans() -> None:
    """Remove the groups whose owners are gone, and free their devices."""
    alive_nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    for entry in placement_group_table().values():
        name, state = entry["name"], entry["state"]
        if not name.startswith(f"{_PREFIX}/") or state == "REMOVED":
            continue
        _, node, pid, started_at, _ = name.split("/")
        if node in alive_nodes and _is_running(Process(node, int(pid), float(started_at))):
            continue
        with contextlib.suppress(ValueError):  # another process removed it first
            remove_placement_group(get_placement_group(name))


def _is_running(process: Process) -> bool:
    try:
        return bool(ray.get(_on_its_node(_exists, process), timeout=30))
    except ray.exceptions.RayError:
        return True  # a group that may be in use is never removed


def _on_its_node(work: Callable[[Process], bool], process: Process) -> Any:
    """Run `work` on the node of `process`; the reference to its result."""
    place = NodeAffinitySchedulingStrategy(process.node, soft=False)
    return ray.remote(num_cpus=0)(work).options(scheduling_strategy=place).remote(process)


def _this_process() -> Process:
    process = psutil.Process()
    return Process(ray.get_runtime_context().get_node_id(), process.pid, process.create_time())


def _exists(process: Process) -> bool:
    try:
        return abs(psutil.Process(process.pid).create_time() - process.started_at) < 1
    except psutil.NoSuchProcess:
        return False


def _end(process: Process) -> bool:
    there = _exists(process)
    if there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return there
