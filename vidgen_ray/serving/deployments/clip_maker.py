"""One attempt at a clip under a lease: the engine, and the step callback that keeps the lease."""

import logging
import os
import threading
from typing import Any

import ray
import torch

from vidgen_ray.cluster.metrics import DeviceMetrics
from vidgen_ray.cluster.ranks import RankGroup, open_engine
from vidgen_ray.config import Config
from vidgen_ray.errors import ClipCancelled, ConfigError, EngineError, StoreError, VidgenError
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.content_hash import hash_content
from vidgen_ray.image_io import ConditioningImage, read_image
from vidgen_ray.model.adapters import open_adapter
from vidgen_ray.model.device import vram_now
from vidgen_ray.schema import GenerationRecord, GenerationRequest
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.tasks import ClipTask, Made
from vidgen_ray.serving.queue.store import JobStore

logger = logging.getLogger("ray.serve")


class ClipMaker:
    """The model, loaded, and what it takes to make a clip of a task. For one thread at a time."""

    def __init__(self, arguments: ServingArguments, config: Config) -> None:
        """Load the weights. Raises ConfigError and StoreError."""
        assert arguments.database is not None
        self._arguments = arguments
        self._config = config
        _check_gpus(self._config)
        self._store = JobStore(arguments.database)
        self._engine = open_engine(self._config)
        self._metrics = DeviceMetrics("serving")
        load_s = self._engine.load()
        logger.info("model loaded", extra={"load_s": round(load_s, 2), "pid": os.getpid()})

    def make(self, task: ClipTask, left: threading.Event) -> Made | None:
        """Make one attempt. None: the lease was lost or `left` was set, nobody wants the clip.

        What is wrong with the clip goes into its record.
        """
        log: dict[str, Any] = {"video_id": task.job_id, "http_request_id": task.http_request_id}
        request = GenerationRequest.model_validate_json(task.request)
        steps = _Steps(self._store, task, self._arguments.lease_s, left, self._metrics)
        steps.report(0, request.num_inference_steps)
        if steps.cancelled():
            return None
        logger.info("clip started", extra={**log, "attempt": task.attempt})
        record = attempts.begin(request, task.attempt, "", task.job_id)
        try:
            image, record = self._prepared(record)
            generation = self._engine.generate(
                attempts.seeded_request(record),
                steps.report,
                steps.cancelled,
                image=image,
                timeout_s=self._arguments.clip_timeout_s,
            )
        except ClipCancelled:
            logger.info("clip stopped", extra={**log, "step": steps.done})
            return None
        except VidgenError as error:
            if isinstance(error.__cause__, torch.AcceleratorError):
                # The CUDA context is gone: no later clip can work in this process.
                logger.critical("%s", error, extra=log)
                os._exit(1)
            logger.warning("clip failed: %s", error, extra=log, exc_info=_cause(error))
            record = attempts.failed(record, type(error).__name__, str(error), "generate")
            return Made(record.model_dump_json(), task.http_request_id, None, None)
        logger.info("clip made", extra={**log, "attempt": task.attempt})
        record = attempts.with_generation(record, generation)
        frames = generation.video.frames
        return Made(record.model_dump_json(), task.http_request_id, image.pixels, frames)

    def close(self) -> None:
        """Give back the devices of ranks; one device goes with this process."""
        if isinstance(self._engine, RankGroup):
            self._engine.close()

    def _prepared(self, record: GenerationRecord) -> tuple[ConditioningImage, GenerationRecord]:
        request = record.request
        assert request is not None
        image = read_image(
            request.image, height=request.height, width=request.width, fit=request.image_fit
        )
        checkpoint = self._engine.checkpoint
        adapter = open_adapter(request.lora, checkpoint) if request.lora else None
        digest = hash_content(
            request, image.sha256, adapter.sha256 if adapter else None, self._config, checkpoint
        )
        record = record.model_copy(update={"content_hash": digest})
        return image, attempts.with_image(record, image)


class _Steps:
    """The step callback: writes progress, renews the lease, and knows when to stop."""

    def __init__(
        self,
        store: JobStore,
        task: ClipTask,
        lease_s: float,
        left: threading.Event,
        metrics: DeviceMetrics,
    ) -> None:
        self._store = store
        self._task = task
        self._lease_s = lease_s
        self._left = left
        self._metrics = metrics
        self._lost = False
        self.done = 0

    def report(self, done: int, total: int) -> None:
        self.done = done
        if done > 0:
            self._metrics.step(*vram_now())
        task = self._task
        try:
            held = self._store.step(task.job_id, task.lease_token, done, total, self._lease_s)
        except StoreError as error:
            # A clip outlives a database that is away for a while; the lease may not.
            logger.warning("%s", error, extra={"video_id": task.job_id})
        else:
            self._lost = not held

    def cancelled(self) -> bool:
        return self._lost or self._left.is_set()


def _check_gpus(config: Config) -> None:
    """Refuse a GPU that nobody would use, and that the ranks might wait for."""
    if config.model.gpus_per_clip > 1 and ray.get_gpu_ids():
        raise ConfigError(
            "deployments.Generator.ray_actor_options.num_gpus: must be 0 with "
            f"model.gpus_per_clip: {config.model.gpus_per_clip}, whose ranks reserve their GPUs "
            f"by themselves, got {len(ray.get_gpu_ids())}"
        )


def _cause(error: VidgenError) -> BaseException | None:
    return error if isinstance(error, EngineError) else None
