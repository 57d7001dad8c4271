"""Triton kernel for the VAE decoder: GroupNorm, conditioning on the latents and SiLU, fused."""

import torch
import triton
import triton.language as tl
from torch import nn

_BLOCK_SIZE = 8192  # elements per load
_BLOCKS_PER_PROGRAM = 16  # blocks of pixels summed by one program


def spatial_norm_silu(
    features: torch.Tensor, norm: nn.GroupNorm, factor: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """SiLU(norm(features) * factor + offset) of features [B, C, T, H, W], in channels_last_3d.

    `factor` and `offset` [B, C, t, h, w] are upsampled by nearest neighbour. If T is odd, the first
    frame uses the first latent frame alone. C must be a power of two.
    """
    batch, channels, length, height, width = features.shape
    layout = torch.channels_last_3d
    features = features.contiguous(memory_format=layout)
    factor, offset = (
        factor.contiguous(memory_format=layout),
        offset.contiguous(memory_format=layout),
    )
    pixels, rows = length * height * width, _BLOCK_SIZE // channels
    num_parts = triton.cdiv(pixels, rows * _BLOCKS_PER_PROGRAM)
    sums = features.new_empty(batch, num_parts, 2, channels, dtype=torch.float32)
    _sums_kernel[(num_parts, batch)](
        features, sums, pixels, channels=channels, rows=rows, steps=_BLOCKS_PER_PROGRAM
    )
    grouped = sums.sum(1).view(batch, 2, norm.num_groups, -1)
    mean, square = (grouped.sum(3) / (pixels * grouped.shape[3])).unbind(1)
    deviation = (square - mean**2 + norm.eps).rsqrt()
    mean, deviation = (stat.repeat_interleave(grouped.shape[3], 1) for stat in (mean, deviation))
    scale = norm.weight.float() * deviation
    shift = norm.bias.float() - mean * scale

    first = length % 2 if length > 1 else 0
    result = torch.empty_like(features)
    _norm_kernel[(triton.cdiv(pixels, rows), batch)](
        features,
        result,
        scale,
        shift,
        factor,
        offset,
        pixels,
        height,
        width,
        factor.shape[2],
        first,
        max((length - first) // max(factor.shape[2] - first, 1), 1),
        height // factor.shape[3],
        channels=channels,
        rows=rows,
    )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _sums_kernel(  # type: ignore[no-untyped-def]
    features,
    sums,
    pixels,
    channels: tl.constexpr,
    rows: tl.constexpr,
    steps: tl.constexpr,
):
    """Sum and sum of squares of each channel over one block of pixels of a sample."""
    part, sample = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, channels)
    features += sample.to(tl.int64) * pixels * channels
    total = tl.zeros((channels,), tl.float32)
    squares = tl.zeros((channels,), tl.float32)
    for step in range(steps):
        r = (part * steps + step) * rows + tl.arange(0, rows)
        at = r.to(tl.int64)[:, None] * channels + c[None, :]
        x = tl.load(features + at, mask=(r < pixels)[:, None], other=0.0).to(tl.float32)
        total += tl.sum(x, 0)
        squares += tl.sum(x * x, 0)
    sums += (sample * tl.num_programs(0) + part) * 2 * channels
    tl.store(sums + c, total)
    tl.store(sums + channels + c, squares)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_kernel(  # type: ignore[no-untyped-def]
    features,
    result,
    scale,
    shift,
    factor,
    offset,
    pixels,
    height,
    width,
    latent_length,
    first,
    frames_each,
    pixels_each,
    channels: tl.constexpr,
    rows: tl.constexpr,
):
    """One block of pixels of a sample, each with the factor and offset of its nearest latent."""
    sample = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, channels)
    r = tl.program_id(0) * rows + tl.arange(0, rows)
    inside = (r < pixels)[:, None]
    w, h, t = r % width, r // width % height, r // (width * height)
    t = tl.where(t < first, 0, first + (t - first) // frames_each)
    h, w, height, width = (
        h // pixels_each,
        w // pixels_each,
        height // pixels_each,
        width // pixels_each,
    )
    latent = sample * latent_length * height * width + (t * height + h) * width + w
    latent = latent[:, None] * channels + c[None, :]
    at = (sample * pixels + r)[:, None] * channels + c[None, :]
    x = tl.load(features + at, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.load(scale + sample * channels + c)[None, :]
    x = x + tl.load(shift + sample * channels + c)[None, :]
    x = x.to(features.dtype.element_ty).to(
        tl.float32
    )  # GroupNorm's output is in the features' dtype
    x = x * tl.load(factor + latent, mask=inside, other=0.0).to(tl.float32)
    x = x + tl.load(offset + latent, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + at, (x * tl.sigmoid(x)).to(result.dtype.element_ty), mask=inside)
