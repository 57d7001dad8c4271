"""Choose the acceleration options of a pipeline when it loads, and apply them."""

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
from vidgen_ray.model.attention_kernels import EffectiveAttention, choose_attention
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.compilation import CompileCache, compile_blocks
from vidgen_ray.model.decoder import fuse_decoder
from vidgen_ray.model.denoiser import Denoiser
from vidgen_ray.model.device import resolve_dtype
from vidgen_ray.model.parallel import RankMesh
from vidgen_ray.model.quantization import quantize_linears
from vidgen_ray.model.solver import SyncFreeDPM
from vidgen_ray.model.tiles import parallelize_tiled_decode
from vidgen_ray.schema import AccelerationRecord

EffectiveOffload = Literal["none", "text", "model", "sequential", "group"]

# Working memory beside the weights in bytes per pixel of the clip at 16 bits, measured at full size
# (docs/benchmarks.md). Denoising and tiled decoding need about the same, untiled decoding the most.
_WORK_BYTES = 250
_UNTILED_DECODE_BYTES = 950
_MARGIN = 1.05
# Share of the transformer's parameters that stay in 16 bits beside 8-bit linears, mostly norms.
_UNQUANTIZED_SHARE = 0.15
# transformers keeps a fifth of T5 in float32 if the rest is in float16.
_T5_FP16_FACTOR = 1.21


@dataclass(frozen=True)
class Speedups:
    """The options that baseline clips do not use. `notes` say where `auto` had to fall back."""

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
    """The options a pipeline is loaded with, recorded with each clip.

    Requests with equal options share one loaded pipeline. `speedups` is None for plain diffusers.
    """

    dtype: Dtype
    scheduler: Scheduler
    offload: EffectiveOffload
    vae_tiling: bool
    speedups: Speedups | None = None

    @property
    def fuses_adapters(self) -> bool:
        """Whether LoRA adapters are fused into the weights, which needs no recompilation."""
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
    """Resolve every `auto` of `model` under `profile`, for clips of `num_pixels` (frames x height x
    width).

    Picks the fastest placement that fits `free_bytes` of VRAM (default: what is free on the
    device). Raises ConfigError if an explicit option cannot be met.
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
            f"fuse_vae: true cannot be combined with offload: {offload}, which moves weights; set "
            "fuse_vae to auto, or offload to none or text"
        )
    if offload == "sequential" and (profile.compile is True or profile.linears != "exact"):
        raise ConfigError(
            "offload: sequential supports neither compile nor 8-bit linears; use group instead"
        )
    if profile.linears in {"fp8", "int8"} and device.type == "cuda":
        least = (8, 9) if profile.linears == "fp8" else (9, 0)
        if torch.cuda.get_device_capability(device) < least:
            raise ConfigError(
                f"linears: {profile.linears} needs an NVIDIA GPU of compute capability "
                f"{least[0]}.{least[1]} or newer (fp8: Ada, int8: Hopper); use fp8_weights, which "
                "only saves memory, or exact"
            )
        if dtype == "float16":
            raise ConfigError(
                f"linears: {profile.linears} needs bfloat16, got dtype float16; set dtype: bfloat16"
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
    """Result of `apply_options`: the optimized forward pass and the compile cache, if any."""

    denoiser: Denoiser | None = None
    compiled: bool = False
    compile_cache: CompileCache | None = None


def apply_options(
    pipeline: CogVideoXImageToVideoPipeline,
    options: Options,
    device: torch.device,
    *,
    compile_cache: str | None = None,
    mesh: RankMesh | None = None,
) -> Applied:
    """Set scheduler, speed-ups, tiling and device placement of a freshly loaded pipeline.

    `compile_cache` is the folder for compiled artifacts. With `mesh`, the pipeline is one rank of
    it.
    """
    pipeline.scheduler = make_scheduler(pipeline, options.scheduler)
    speedups = options.speedups or (Speedups() if mesh else None)
    if options.vae_tiling:
        enable_tiling(pipeline.vae)
        if mesh:
            parallelize_tiled_decode(pipeline.vae, mesh)
    if speedups is None:
        _place(pipeline, options.offload, device)
        return Applied()
    if isinstance(pipeline.scheduler, CogVideoXDPMScheduler):
        pipeline.scheduler = SyncFreeDPM.from_config(pipeline.scheduler.config)
    # Before offloading hooks are installed, which wrap the current forward pass.
    denoiser = Denoiser(pipeline.transformer, speedups.attention, speedups.step_cache, mesh)
    if options.offload in {"none", "text"}:
        pipeline.transformer.to(device)  # quantization takes a second on a GPU
    quantize_linears(pipeline.transformer, speedups.linears)
    _place(pipeline, options.offload, device)
    if speedups.fuse_vae:
        fuse_decoder(pipeline.vae)
    if not speedups.compile:
        return Applied(denoiser)
    cache = None
    if compile_cache:
        facts = [asdict(options), dict(pipeline.transformer.config), dict(pipeline.vae.config)]
        size = mesh.size if mesh else 1
        cache = CompileCache(compile_cache, device, json.dumps([facts, size], default=str))
        cache.load()
    compile_blocks(pipeline.transformer, fullgraph=options.offload in {"none", "text"})
    return Applied(denoiser, compiled=True, compile_cache=cache)


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
        pipeline.to("cpu")  # weights may have been created on the device
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
    """The scheduler `name` with the checkpoint's noise schedule.

    The checkpoint's own defaults are wrong for the 5B twice: the hub's file names DDIM, and DPM
    defaults to `leading` timestep spacing where the model needs `trailing`.
    """
    if name == "checkpoint":
        return pipeline.scheduler
    solver = {"dpm": CogVideoXDPMScheduler, "ddim": CogVideoXDDIMScheduler}[name]
    return solver.from_config(pipeline.scheduler.config, timestep_spacing="trailing")


def enable_tiling(vae: AutoencoderKLCogVideoX) -> None:
    """Enable tiles of half a frame's height and width, diffusers' default for 480x720.

    diffusers' strides are 5/6 of a tile's height and 4/5 of its width and are wrong unless these
    are multiples of 8, so heights are rounded up to multiples of 48 and widths to multiples of 40.
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
    """The fastest combination of offload and tiling whose estimated peak VRAM fits."""
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
        weights["transformer"] *= _UNQUANTIZED_SHARE + (1 - _UNQUANTIZED_SHARE) / num_bytes
    text_encoder = weights["text_encoder"] * (_T5_FP16_FACTOR if dtype == "float16" else 1)
    denoising = _WORK_BYTES * num_pixels * num_bytes / 2
    decoding = denoising if vae_tiling else _UNTILED_DECODE_BYTES * num_pixels * num_bytes / 2
    if offload == "none":
        return weights["transformer"] + weights["vae"] + text_encoder + max(denoising, decoding)
    if offload == "text":
        return weights["transformer"] + weights["vae"] + max(denoising, decoding)
    if offload == "model":
        return max(text_encoder, weights["transformer"] + denoising, weights["vae"] + decoding)
    return weights["vae"] + max(denoising, decoding)
