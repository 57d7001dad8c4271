"""A plain diffusers pipeline as a `ClipEngine`: what the profiles are measured against."""

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from vidgen_ray.config import Dtype
from vidgen_ray.generation.clip_engine import Cancelled, Generation, OnStep
from vidgen_ray.generation.stage_clock import StageClock
from vidgen_ray.image_io import ConditioningImage, read_request_image
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.device import describe_device
from vidgen_ray.model.stock import call_stock
from vidgen_ray.request import GenerationRequest
from vidgen_ray.schema import ModelRecord, StageTimes, Video

_STAGES = {
    "encode_prompt": "text_s",
    "prepare_latents": "image_encode_s",
    "decode_latents": "decode_s",
}


class StockEngine:
    """The pipeline that `load` gives, called as a user would. Callbacks and time limits are not
    for it: a measured call must not be disturbed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        load: Callable[[], Any],
        source: str,
        dtype: Dtype,
        device: torch.device,
    ) -> None:
        """`source` names the pipeline in records: the checkpoint, or an alternative to it."""
        self.checkpoint = checkpoint
        self._load = load
        self._source = source
        self._dtype: Dtype = dtype
        self._device = device
        self._pipeline: Any = None

    def load(self) -> float:
        """Load the pipeline; seconds taken. Raises ConfigError."""
        start = time.perf_counter()
        if self._pipeline is None:
            self._pipeline = self._load()
        return time.perf_counter() - start

    def generate(
        self,
        request: GenerationRequest,
        on_step: OnStep | None = None,
        cancelled: Cancelled | None = None,
        *,
        image: ConditioningImage | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """Make the clip of `request` in one call. Raises EngineError."""
        self.load()
        image = image or read_request_image(request)
        clock = StageClock(self._device)
        with clock.stage("denoise_s"), clock.stages_of(self._pipeline, _STAGES):
            clip = call_stock(self._pipeline, request, image.pixels)
        return Generation(
            video=Video(clip.frames, request.fps),
            image=image,
            model=self._model_record(),
            adapter=None,
            stages=StageTimes(**clock.seconds),
            peak_vram_gb=max(clock.peaks_gb.values(), default=None),
            stage_peaks_gb=clock.peaks_gb,
            device=describe_device(self._device),
            latents=clip.latents,
        )

    def close(self) -> None:
        """Free the device's memory."""
        self._pipeline = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _model_record(self) -> ModelRecord:
        own = self._source == self.checkpoint.source
        return ModelRecord(
            checkpoint=self._source,
            fingerprint=self.checkpoint.fingerprint if own else "",
            trained=self.checkpoint.trained or not own,
            dtype=self._dtype,
            scheduler=type(self._pipeline.scheduler).__name__,
            offload="none",
            vae_tiling=False,
        )
