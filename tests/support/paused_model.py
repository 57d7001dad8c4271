"""The served application with a pause in place of the model: for what the platform does of itself.

`build_app` stands in a Serve config in place of the real one. Frames have the full size and real
motion, so that handing on, scoring and saving cost what they cost; only the steps are a wait.
A step takes `PAUSED_STEP_S` seconds (0.25).
"""

import os
import time

import numpy as np
from ray.serve import Application

from vidgen_ray.cluster.clip_worker import ClipWorker
from vidgen_ray.config import Config
from vidgen_ray.generation.clip_engine import Cancelled, Generation, OnStep, StepCallbacks
from vidgen_ray.image_io import ConditioningImage, read_image
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.schema import GenerationRequest, ModelRecord, StageTimes, Video
from vidgen_ray.serving import app
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments import generator


class PausedEngine:
    """Answers like an engine: a slow pan over the image, after a wait."""

    def __init__(self, config: Config) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(config.model, weights=False)
        self._step_s = float(os.environ.get("PAUSED_STEP_S", "0.25"))

    def load(self) -> float:
        """There is nothing to load."""
        return 0.0

    def generate(
        self,
        request: GenerationRequest,
        on_step: OnStep | None = None,
        cancelled: Cancelled | None = None,
        *,
        image: ConditioningImage | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """Wait, and pan."""
        start = time.perf_counter()
        callbacks = StepCallbacks(on_step, cancelled, timeout_s)
        for step in range(request.num_inference_steps):
            time.sleep(self._step_s)
            callbacks.step(step + 1, request.num_inference_steps)
        image = image or read_image(request.image, height=request.height, width=request.width)
        frames = np.stack([np.roll(image.pixels, 2 * n, 1) for n in range(request.num_frames)])
        return Generation(
            video=Video(frames, request.fps),
            image=image,
            model=ModelRecord(
                checkpoint="pause",
                fingerprint="pause",
                trained=False,
                dtype="float32",
                scheduler="pause",
                offload="none",
                vae_tiling=False,
                bf16_fallback=False,
            ),
            adapter=None,
            stages=StageTimes(denoise_s=time.perf_counter() - start),
            peak_vram_gb=None,
            stage_peaks_gb={},
            device="none",
        )

    def close(self) -> None:
        """There is nothing to free."""


class Generator(generator.Generator):
    """The deployment, with the pause."""

    def open_worker(self, config: Config) -> ClipWorker:
        """A worker around the pause."""
        return ClipWorker(config, "serving", PausedEngine(config))


def build_app(args: ServingArguments) -> Application:
    """As the real one."""
    return app.bind_deployments(args, Generator)
