"""Floating-point operations of a clip, counted on the model's modules on the meta device."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.request import GenerationRequest

_RATE_SIZE = {"cuda": 8192, "cpu": 1024}
_RATE_REPEATS = {"cuda": 50, "cpu": 5}


@dataclass(frozen=True)
class ClipFlops:
    """FLOPs; a multiply-add counts as two.

    `step` is one forward pass of the transformer on the guided batch, `block` that of one block,
    which is the cost of a step that reuses the cached residual.
    """

    step: int
    block: int
    decode: int


def count_flops(checkpoint: Checkpoint, request: GenerationRequest) -> ClipFlops:
    """Count for clips of the request's shape and guidance, on meta tensors."""
    with torch.device("meta"), torch.no_grad():
        config = CogVideoXTransformer3DModel.load_config(checkpoint.folder / "transformer")
        transformer = CogVideoXTransformer3DModel.from_config(config)
        vae = AutoencoderKLCogVideoX.from_config(
            AutoencoderKLCogVideoX.load_config(checkpoint.folder / "vae")
        )
        num_latent_frames = (request.num_frames - 1) // config["temporal_compression_ratio"] + 1
        rows, columns = request.height // 8, request.width // 8
        batch = 2 if request.guidance_scale > 1 else 1
        patch = config["patch_size"]
        num_video = num_latent_frames * (rows // patch) * (columns // patch)
        width = config["num_attention_heads"] * config["attention_head_dim"]
        video = torch.empty(batch, num_video, width)
        text = torch.empty(batch, config["max_text_seq_length"], width)
        embedding = torch.empty(batch, config["time_embed_dim"])
        latents = torch.empty(1, vae.config.latent_channels, num_latent_frames, rows, columns)
        block = _count(lambda: transformer.transformer_blocks[0](video, text, embedding))
        frames = torch.empty(batch * num_latent_frames, config["in_channels"], rows, columns)
        prompts = torch.empty(batch, config["max_text_seq_length"], config["text_embed_dim"])
        outside = _count(
            lambda: (
                transformer.patch_embed.proj(frames),
                transformer.patch_embed.text_proj(prompts),
                transformer.time_embedding(torch.empty(batch, width)),
                transformer.norm_out(video, temb=embedding),
                transformer.proj_out(video),
            )
        )
        decode = _count(lambda: vae.decode(latents))
    return ClipFlops(block * len(transformer.transformer_blocks) + outside, block, decode)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on this device: the median of several."""
    size, repeats = _RATE_SIZE[device.type], _RATE_REPEATS[device.type]
    left, right = torch.randn(2, size, size, device=device, dtype=dtype).unbind(0)
    for _ in range(3):
        left @ right
    seconds = sorted(_time(left, right) for _ in range(repeats))[repeats // 2]
    return float(2 * size**3 / seconds)


def _count(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _time(left: torch.Tensor, right: torch.Tensor) -> float:
    if left.device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        left @ right
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begun = time.perf_counter()
    left @ right
    return time.perf_counter() - begun
