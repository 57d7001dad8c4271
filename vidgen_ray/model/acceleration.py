"""The options of a loaded pipeline: scheduler, offload, VAE tiling. Each is named and independent.

Which of them are on is data (`Options`), chosen once per load, and recorded with each clip.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
)

from vidgen_ray.config import Dtype, ModelConfig, Offload, Profile, Scheduler
from vidgen_ray.model.checkpoint import Checkpoint

EffectiveOffload = Literal["none", "model", "sequential", "group"]

# Working memory in bytes a pixel of the clip at 16 bits, beside the weights: measured on the full
# size at 49x480x720 (see docs/benchmarks.md). Decoding is the peak, and what tiling reduces.
_DECODE_BYTES = 980
_TILED_BYTES = 300
_MARGIN = 1.05


@dataclass(frozen=True)
class Options:
    """What a pipeline is loaded with. Two requests with equal options share one pipeline."""

    dtype: Dtype
    scheduler: Scheduler
    offload: EffectiveOffload
    vae_tiling: bool


def requested_options(model: ModelConfig, profile: Profile | None) -> ModelConfig:
    """`model` with the options that `profile` names put in the place of its own."""
    if profile is None:
        return model
    named = profile.model_dump(exclude_none=True, exclude={"num_inference_steps"})
    return model.model_copy(update=named)


def choose_options(
    model: ModelConfig,
    checkpoint: Checkpoint,
    device: torch.device,
    num_pixels: int,
    free_bytes: int | None = None,
) -> Options:
    """Settle every `auto` of `model` for clips of `num_pixels` (frames x height x width).

    The fastest placement that fits `free_bytes` of VRAM wins (default: what the device has free).
    """
    if device.type != "cuda":
        return Options(model.dtype, model.scheduler, "none", model.vae_tiling is True)
    if free_bytes is None:
        free_bytes, _ = torch.cuda.mem_get_info(device)
    offload, vae_tiling = _placement(model, checkpoint, num_pixels, free_bytes)
    return Options(model.dtype, model.scheduler, offload, vae_tiling)


def apply_options(
    pipeline: CogVideoXImageToVideoPipeline, options: Options, device: torch.device
) -> None:
    """Give a freshly loaded pipeline its scheduler, its tiling and its place."""
    pipeline.scheduler = make_scheduler(pipeline, options.scheduler)
    if options.vae_tiling:
        _enable_tiling(pipeline)
    match options.offload:
        case "none":
            pipeline.to(device)
        case "model":
            pipeline.enable_model_cpu_offload(device=device)
        case "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        case "group":
            pipeline.enable_group_offload(
                onload_device=device,
                offload_type="leaf_level",
                use_stream=True,
                low_cpu_mem_usage=True,
            )


def make_scheduler(
    pipeline: CogVideoXImageToVideoPipeline, name: Scheduler
) -> CogVideoXDPMScheduler | CogVideoXDDIMScheduler:
    """The checkpoint's noise schedule under the solver `name`.

    Its defaults are wrong for the 5B in two places: the hub's folder names DDIM, and DPM's own
    spacing is `leading`, where the model was distilled for `trailing`.
    """
    if name == "checkpoint":
        return pipeline.scheduler
    solver = {"dpm": CogVideoXDPMScheduler, "ddim": CogVideoXDDIMScheduler}[name]
    return solver.from_config(pipeline.scheduler.config, timestep_spacing="trailing")


def _enable_tiling(pipeline: CogVideoXImageToVideoPipeline) -> None:
    """Tiles of half a frame, as diffusers makes them for 480x720.

    Its strides are 5/6 of a tile's height and 4/5 of its width, and come out wrong where those are
    no multiples of 8, as for smaller frames: so heights go up to multiples of 48, widths of 40.
    """
    config = pipeline.vae.config
    pipeline.vae.enable_tiling(
        tile_sample_min_height=math.ceil(config.sample_height / 2 / 48) * 48,
        tile_sample_min_width=math.ceil(config.sample_width / 2 / 40) * 40,
    )


def _placement(
    model: ModelConfig, checkpoint: Checkpoint, num_pixels: int, free_bytes: int
) -> tuple[EffectiveOffload, bool]:
    num_bytes = torch.finfo(getattr(torch, model.dtype)).bits // 8
    weights = {part: count * num_bytes for part, count in checkpoint.num_parameters.items()}
    resident = {"none": sum(weights.values()), "model": max(weights.values()), "group": 0}
    work = {False: _DECODE_BYTES, True: _TILED_BYTES}
    tilings = [False, True] if model.vae_tiling == "auto" else [model.vae_tiling]
    offloads: list[Offload] = (
        ["none", "model", "group"] if model.offload == "auto" else [model.offload]
    )
    for offload in offloads:
        for vae_tiling in tilings:
            work_bytes = work[vae_tiling] * num_pixels * num_bytes // 2
            if _MARGIN * (resident.get(offload, 0) + work_bytes) <= free_bytes:
                return offload, vae_tiling  # type: ignore[return-value]
    last = "sequential" if model.offload == "auto" else model.offload
    return last, tilings[-1]  # type: ignore[return-value]
