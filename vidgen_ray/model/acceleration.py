"""The options of a loaded pipeline, each named and independent: which are chosen, and put to work.

Which of them are on is data (`Options`), chosen once per load, and recorded with each clip.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
)
from diffusers.hooks import apply_group_offloading

from vidgen_ray.config import Dtype, Linears, ModelConfig, Profile, Scheduler
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.attention import EffectiveAttention, choose_attention
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.compilation import CompileCache, compile_blocks
from vidgen_ray.model.decoder import fuse_decoder
from vidgen_ray.model.denoiser import Denoiser
from vidgen_ray.model.device import resolve_dtype
from vidgen_ray.model.parallel import Ranks
from vidgen_ray.model.quantization import quantize_linears
from vidgen_ray.model.solver import SyncFreeDPM
from vidgen_ray.model.tiles import share_tiles
from vidgen_ray.schema import AccelerationRecord

EffectiveOffload = Literal["none", "text", "model", "sequential", "group"]

# Working memory in bytes a pixel of the clip at 16 bits, beside the weights: measured at full size
# (docs/benchmarks.md). Denoising and tiled decoding take about as much, decoding whole the most.
_WORK_BYTES = 250
_WHOLE_DECODE_BYTES = 950
_MARGIN = 1.05
# Of the transformer's parameters, those that stay in 16 bits beside 8-bit linears: norms mostly.
_EXACT_SHARE = 0.15
# transformers keeps a fifth of T5 in float32 where the rest is in float16.
_T5_FP16_FACTOR = 1.21


@dataclass(frozen=True)
class Speedups:
    """The options that a baseline clip goes without. `notes` say what `auto` had to do without."""

    attention: EffectiveAttention = "native"
    compile: bool = False
    fuse_vae: bool = False
    linears: Linears = "exact"
    step_cache: float | None = None
    notes: tuple[str, ...] = ()

    def record(self, num_computed_steps: int, ranks: int) -> AccelerationRecord:
        return AccelerationRecord(
            **{**asdict(self), "notes": list(self.notes)},
            num_computed_steps=num_computed_steps,
            ranks=ranks,
        )


@dataclass(frozen=True)
class Options:
    """What a pipeline is loaded with. Two requests with equal options share one pipeline.

    `speedups` None is plain diffusers.
    """

    dtype: Dtype
    scheduler: Scheduler
    offload: EffectiveOffload
    vae_tiling: bool
    speedups: Speedups | None = None

    @property
    def folds_adapters(self) -> bool:
        """Whether adapters go into the weights, which neither compiles again nor costs a step."""
        speedups = self.speedups
        return speedups is not None and (speedups.compile or speedups.linears != "exact")


def choose_options(
    model: ModelConfig,
    checkpoint: Checkpoint,
    device: torch.device,
    num_pixels: int,
    free_bytes: int | None = None,
    profile: Profile | None = None,
) -> Options:
    """Settle every `auto` of `model` under `profile`, for clips of `num_pixels` (frames x height x
    width).

    The fastest placement that fits `free_bytes` of VRAM wins (default: what the device has free).
    Raises ConfigError for what was named and cannot be had.
    """
    model = model.under(profile)
    dtype = resolve_dtype(model.dtype, device)
    if device.type != "cuda":
        placement: tuple[EffectiveOffload, bool] = ("none", model.vae_tiling is True)
    else:
        if free_bytes is None:
            free_bytes, _ = torch.cuda.mem_get_info(device)
        linears = profile.linears if profile else "exact"
        placement = _placement(model, dtype, checkpoint, num_pixels, free_bytes, linears)
    speedups = _speedups(dtype, profile, device, placement[0]) if profile else None
    return Options(dtype, model.scheduler, *placement, speedups)


def _speedups(
    dtype: Dtype, profile: Profile, device: torch.device, offload: EffectiveOffload
) -> Speedups:
    moves_weights = offload in {"model", "sequential", "group"}
    if moves_weights and profile.fuse_vae is True:
        raise ConfigError(
            f"fuse_vae: true does not go with offload: {offload}, which moves weights; set it to "
            "auto, or offload to none or text"
        )
    if offload == "sequential" and (profile.compile is True or profile.linears != "exact"):
        raise ConfigError(
            "offload: sequential goes with neither compile nor 8-bit linears; use group instead"
        )
    if profile.linears in {"fp8", "int8"} and device.type == "cuda":
        least = (8, 9) if profile.linears == "fp8" else (9, 0)
        if torch.cuda.get_device_capability(device) < least:
            raise ConfigError(
                f"linears: {profile.linears} needs an NVIDIA GPU of compute capability "
                f"{least[0]}.{least[1]} or newer (fp8: Ada, int8: Hopper); use fp8_weights, which "
                "saves memory alone, or exact"
            )
        if dtype == "float16":
            raise ConfigError(
                f"linears: {profile.linears} gives bfloat16, got dtype float16; set dtype: bfloat16"
            )
    attention, note = choose_attention(profile.attention, device, dtype)

    compiled = device.type == "cuda" and not moves_weights
    return Speedups(
        attention,
        compiled if profile.compile == "auto" else profile.compile,
        not moves_weights if profile.fuse_vae == "auto" else profile.fuse_vae,
        profile.linears,
        profile.step_cache,
        (note,) if note else (),
    )


@dataclass(frozen=True)
class Applied:
    """What `apply_options` made: the forward pass, and the cache of compiled code, if any."""

    denoiser: Denoiser | None = None
    compiled: bool = False
    compile_cache: CompileCache | None = None


def apply_options(
    pipeline: CogVideoXImageToVideoPipeline,
    options: Options,
    device: torch.device,
    *,
    compile_cache: str | None = None,
    ranks: Ranks | None = None,
) -> Applied:
    """Give a freshly loaded pipeline its scheduler, its speed-ups, its tiling and its place.

    `compile_cache` is the folder to keep compiled code in. With `ranks` it works on its share.
    """
    pipeline.scheduler = make_scheduler(pipeline, options.scheduler)
    speedups = options.speedups or (Speedups() if ranks else None)
    if options.vae_tiling:
        enable_tiling(pipeline.vae)
        if ranks:
            share_tiles(pipeline.vae, ranks)
    if speedups is None:
        _place(pipeline, options.offload, device)
        return Applied()
    if isinstance(pipeline.scheduler, CogVideoXDPMScheduler):
        pipeline.scheduler = SyncFreeDPM.from_config(pipeline.scheduler.config)
    # Before hooks that move weights, which wrap the forward pass they find.
    denoiser = Denoiser(pipeline.transformer, speedups.attention, speedups.step_cache, ranks)
    if options.offload in {"none", "text"}:
        pipeline.transformer.to(device)  # there quantising takes a second
    quantize_linears(pipeline.transformer, speedups.linears)
    _place(pipeline, options.offload, device)
    cache = None
    if speedups.fuse_vae:
        fuse_decoder(pipeline.vae)
    if speedups.compile:
        if compile_cache:
            facts = [asdict(options), dict(pipeline.transformer.config), dict(pipeline.vae.config)]
            size = ranks.size if ranks else 1
            cache = CompileCache(compile_cache, device, json.dumps([facts, size], default=str))
            cache.load()
        compile_blocks(pipeline.transformer, whole=options.offload in {"none", "text"})
    return Applied(denoiser, speedups.compile, cache)


def _place(
    pipeline: CogVideoXImageToVideoPipeline, offload: EffectiveOffload, device: torch.device
) -> None:
    streamed = {
        "onload_device": device,
        "offload_type": "leaf_level",
        "use_stream": True,
        "low_cpu_mem_usage": True,
    }
    if offload in {"model", "sequential", "group"}:
        pipeline.to("cpu")  # weights that were made on the device
    match offload:
        case "none":
            pipeline.to(device)
        case "text":
            pipeline.text_encoder.to("cpu")
            pipeline.transformer.to(device)
            pipeline.vae.to(device)
            apply_group_offloading(
                pipeline.text_encoder, offload_device=torch.device("cpu"), **streamed
            )
        case "model":
            pipeline.enable_model_cpu_offload(device=device)
        case "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        case "group":
            pipeline.enable_group_offload(**streamed)


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
    model: ModelConfig,
    dtype: Dtype,
    checkpoint: Checkpoint,
    num_pixels: int,
    free_bytes: int,
    linears: Linears = "exact",
) -> tuple[EffectiveOffload, bool]:
    """The first offload and tiling, from fast to small, whose estimated peak fits."""
    offloads: list[EffectiveOffload] = ["none", "text", "model", "group", "sequential"]
    if model.offload != "auto":
        offloads = [model.offload]
    tilings = [False, True] if model.vae_tiling == "auto" else [model.vae_tiling]
    choices = [(offload, vae_tiling) for offload in offloads for vae_tiling in tilings]
    for offload, vae_tiling in choices:
        peak = _peak_bytes(dtype, checkpoint, num_pixels, offload, vae_tiling, linears)
        if _MARGIN * peak <= free_bytes:
            return offload, vae_tiling
    return choices[-1]


def _peak_bytes(
    dtype: Dtype,
    checkpoint: Checkpoint,
    num_pixels: int,
    offload: EffectiveOffload,
    vae_tiling: bool,
    linears: Linears,
) -> float:
    num_bytes = torch.finfo(getattr(torch, dtype)).bits // 8
    weights = {part: float(count * num_bytes) for part, count in checkpoint.num_parameters.items()}
    if linears != "exact":
        weights["transformer"] *= _EXACT_SHARE + (1 - _EXACT_SHARE) / num_bytes
    text_encoder = weights["text_encoder"] * (_T5_FP16_FACTOR if dtype == "float16" else 1)
    denoising = _WORK_BYTES * num_pixels * num_bytes / 2
    decoding = denoising if vae_tiling else _WHOLE_DECODE_BYTES * num_pixels * num_bytes / 2
    if offload == "none":
        return weights["transformer"] + weights["vae"] + text_encoder + max(denoising, decoding)
    if offload == "text":
        return weights["transformer"] + weights["vae"] + max(denoising, decoding)
    if offload == "model":
        return max(text_encoder, weights["transformer"] + denoising, weights["vae"] + decoding)
    return weights["vae"] + max(denoising, decoding)
