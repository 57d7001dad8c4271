"""The options of a loaded pipeline: scheduler, offload, VAE tiling. Each is named and independent.

Which of them are on is data (`Options`), chosen once per load, and recorded with each clip.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
)

from vidgen_ray.config import Dtype, ModelConfig, Profile, Scheduler
from vidgen_ray.model.checkpoint import Checkpoint

EffectiveOffload = Literal["none", "model", "sequential", "group"]

# Working memory in bytes a pixel of the clip at 16 bits, beside the weights: measured at full size
# (docs/benchmarks.md). Denoising and tiled decoding take about as much, decoding whole the most.
_WORK_BYTES = 250
_WHOLE_DECODE_BYTES = 950
_MARGIN = 1.05
# transformers keeps a fifth of T5 in float32 where the rest is in float16.
_T5_FP16_FACTOR = 1.21


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
        enable_tiling(pipeline.vae)
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


def enable_tiling(vae: AutoencoderKLCogVideoX) -> None:
    """Tiles of half a frame, as diffusers makes them for 480x720.

    Its strides are 5/6 of a tile's height and 4/5 of its width, and come out wrong where those are
    no multiples of 8, as for smaller frames: so heights go up to multiples of 48, widths of 40.
    """
    vae.enable_tiling(
        tile_sample_min_height=math.ceil(vae.config.sample_height / 2 / 48) * 48,
        tile_sample_min_width=math.ceil(vae.config.sample_width / 2 / 40) * 40,
    )


def _placement(
    model: ModelConfig, checkpoint: Checkpoint, num_pixels: int, free_bytes: int
) -> tuple[EffectiveOffload, bool]:
    """The first offload and tiling, from fast to small, whose estimated peak fits."""
    offloads: list[EffectiveOffload] = ["none", "model", "group", "sequential"]
    if model.offload != "auto":
        offloads = [model.offload]
    tilings = [False, True] if model.vae_tiling == "auto" else [model.vae_tiling]
    choices = [(offload, vae_tiling) for offload in offloads for vae_tiling in tilings]
    for offload, vae_tiling in choices:
        peak = _peak_bytes(model.dtype, checkpoint, num_pixels, offload, vae_tiling)
        if _MARGIN * peak <= free_bytes:
            return offload, vae_tiling
    return choices[-1]


def _peak_bytes(
    dtype: Dtype,
    checkpoint: Checkpoint,
    num_pixels: int,
    offload: EffectiveOffload,
    vae_tiling: bool,
) -> float:
    num_bytes = torch.finfo(getattr(torch, dtype)).bits // 8
    weights = {part: count * num_bytes for part, count in checkpoint.num_parameters.items()}
    text_encoder = weights["text_encoder"] * (_T5_FP16_FACTOR if dtype == "float16" else 1)
    denoising = _WORK_BYTES * num_pixels * num_bytes / 2
    decoding = denoising if vae_tiling else _WHOLE_DECODE_BYTES * num_pixels * num_bytes / 2
    if offload == "none":
        return weights["transformer"] + weights["vae"] + text_encoder + max(denoising, decoding)
    if offload == "model":
        return max(text_encoder, weights["transformer"] + denoising, weights["vae"] + decoding)
    return weights["vae"] + max(denoising, decoding)
