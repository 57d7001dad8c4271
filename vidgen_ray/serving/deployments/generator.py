"""The deployment that holds the model: one clip at a time, whatever Serve's clients do."""

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray

from vidgen_ray.config import Config
from vidgen_ray.errors import ClipCancelled, ConfigError, EngineError, StoreError, VidgenError
from vidgen_ray.generation.attempt import (
    Attempt,
    GeneratedAttempt,
    fail,
    prepare,
    with_content_hash,
)
from vidgen_ray.image_io import ConditioningImage
from vidgen_ray.request import GenerationRequest
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.heartbeat import Heartbeat
from vidgen_ray.serving.deployments.priority import lower_priority
from vidgen_ray.serving.deployments.tasks import ClipTask, GeneratorResult
from vidgen_ray.serving.queue.store import JobStore

if TYPE_CHECKING:
    from vidgen_ray.cluster.clip_worker import ClipWorker

logger = logging.getLogger("ray.serve")

_STALLED_S = 120.0


class Generator:
    """One model on one device. Weights are loaded before the replica counts as ready."""

    def __init__(self, arguments: ServingArguments, config: Config) -> None:
        """Load the weights. Raises ConfigError and StoreError."""
        lower_priority()
        assert arguments.database is not None
        self._arguments = arguments
        self._config = config
        _check_gpus(self._config)
        self._store = JobStore(arguments.database)
        gc.disable()  # imports and weights make many objects, none of which is garbage
        self._worker = self.open_worker(self._config)
        load_s = self._worker.engine.load()
        gc.enable()
        logger.info("model loaded", extra={"load_s": round(load_s, 2), "pid": os.getpid()})
        # Serve does not stop a thread whose caller left: the next clip must wait for it here.
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._heartbeat = Heartbeat(self._store.reports)

    def open_worker(self, config: Config) -> "ClipWorker":
        """The worker that makes the clips."""
        from vidgen_ray.cluster.clip_worker import ClipWorker  # imports torch, which takes seconds

        return ClipWorker(config, "serving")

    def __del__(self) -> None:
        """Serve calls this once no clip is being made; ranks would outlive the replica."""
        if hasattr(self, "_worker"):
            self._worker.engine.close()
        if hasattr(self, "_heartbeat"):
            with contextlib.suppress(StoreError):
                self._heartbeat.stop()

    async def generate(self, task: ClipTask) -> GeneratorResult | None:
        """Make one attempt. None: the lease was lost, nobody wants the clip any more."""
        abandoned = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(self._generate_alone, task, abandoned))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread ends after its step; until then this replica is not free.
            abandoned.set()
            await asyncio.wait([work])
            raise

    def check_health(self) -> None:
        """Ask for another process when a clip hangs beyond its time limit."""
        deadline = self._deadline
        if deadline is not None and time.monotonic() > deadline + _STALLED_S:
            raise RuntimeError("a clip hangs beyond its time limit")

    def _generate_alone(self, task: ClipTask, abandoned: threading.Event) -> GeneratorResult | None:
        with self._lock:
            self._deadline = time.monotonic() + self._arguments.clip_timeout_s
            try:
                return self._generate(task, abandoned)
            finally:
                self._deadline = None

    def _generate(self, task: ClipTask, abandoned: threading.Event) -> GeneratorResult | None:
        """Make one attempt under its lease; what is wrong with the clip makes a FailedAttempt."""
        log: dict[str, Any] = {"video_id": task.job_id, "http_request_id": task.http_request_id}
        request = GenerationRequest.model_validate_json(task.request)
        steps = _LeasedSteps(self._store, task, self._arguments.lease_s, abandoned)
        steps.report(0, request.num_inference_steps)
        if steps.cancelled():
            return None
        logger.info("clip started", extra={**log, "attempt": task.attempt})
        attempt = Attempt(request, task.attempt, run_id=task.job_id)
        image: ConditioningImage | None = None
        try:
            prepared = prepare(attempt)
            image = prepared.image
            prepared = with_content_hash(prepared, self._config, self._worker.engine.checkpoint)
            attempt = prepared.attempt
            generated: GeneratedAttempt = self._worker.generate(
                prepared, steps.report, steps.cancelled, self._arguments.clip_timeout_s
            )
        except ClipCancelled:
            logger.info("clip stopped", extra={**log, "step": steps.done})
            return None
        except VidgenError as error:
            cause = error if isinstance(error, EngineError) else None
            logger.warning("clip failed: %s", error, extra=log, exc_info=cause)
            failed = fail(attempt, error, "generate", image)
            return GeneratorResult(failed, task.lease_token, task.http_request_id)
        logger.info("clip generated", extra={**log, "attempt": task.attempt})
        return GeneratorResult(generated, task.lease_token, task.http_request_id)


class _LeasedSteps:
    """The step callbacks of a leased job: they write progress, renew the lease, and say when the
    clip is no longer wanted."""

    def __init__(
        self, store: JobStore, task: ClipTask, lease_s: float, abandoned: threading.Event
    ) -> None:
        self._store = store
        self._task = task
        self._lease_s = lease_s
        self._abandoned = abandoned
        self._lost = False
        self.done = 0

    def report(self, done: int, total: int) -> None:
        self.done = done
        task = self._task
        try:
            held = self._store.step(task.job_id, task.lease_token, done, total, self._lease_s)
        except StoreError as error:
            # A clip outlives a database that is away for a while; the lease may not.
            logger.warning("%s", error, extra={"video_id": task.job_id})
        else:
            self._lost = not held

    def cancelled(self) -> bool:
        return self._lost or self._abandoned.is_set()


def _check_gpus(config: Config) -> None:
    """Refuse a GPU that nobody would use, and that the ranks might wait for."""
    if config.model.gpus_per_clip > 1 and ray.get_gpu_ids():
        raise ConfigError(
            "deployments.Generator.ray_actor_options.num_gpus: must be 0 with "
            f"model.gpus_per_clip: {config.model.gpus_per_clip}, whose ranks reserve their GPUs "
            f"by themselves, got {len(ray.get_gpu_ids())}"
        )
