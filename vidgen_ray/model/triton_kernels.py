"""Triton kernels for Hopper: the product of int8 matrices, GELU that ends in 8 bits, the range of
each channel, and the decoder's norm with what follows it.

`torch._int_mm` leaves int32 sums in memory, four bytes to write and to read again for each number
of the result; here they are scaled where they are made. Blocks are read by the tensor memory
accelerator. Their order (some rows of them, column after column, so that both inputs stay in the L2
cache) is that of Triton's matrix multiplication tutorial.

What torch.compile makes of GELU and the rounding of a row reads the row twice and computes GELU
twice; here a row stays in registers. What it makes of a head's largest number takes three times as
long as reading the tokens.
"""

import math

import torch
import triton
import triton.language as tl
from torch import nn
from triton.tools.tensor_descriptor import TensorDescriptor

_BLOCK_M, _BLOCK_N, _BLOCK_K = 256, 128, 128
_GROUP = 8  # rows of blocks
_GELU_BLOCK = 4096  # numbers of a row read at once
_RANGE_BLOCK = 128  # channels that one program reads
_RANGE_ROWS = 128  # tokens that it reads
_RANGE_WARPS = 4
_NORM_BLOCK = 8192  # numbers read at once
_NORM_PARTS = 16  # such blocks that one program sums


@torch.library.custom_op("vidgen_ray::int8_product", mutates_args=())
def int8_product(
    rows: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """int8 [M, K] times int8 [N, K] transposed, each with scales [M, 1], [N, 1]: bf16 [M, N]."""
    num_rows, depth = rows.shape
    num_columns = weight.shape[0]
    product = torch.empty(num_rows, num_columns, device=rows.device, dtype=torch.bfloat16)
    num_blocks = triton.cdiv(num_rows, _BLOCK_M) * triton.cdiv(num_columns, _BLOCK_N)
    _product_kernel[(num_blocks,)](
        TensorDescriptor.from_tensor(rows, [_BLOCK_M, _BLOCK_K]),
        TensorDescriptor.from_tensor(weight, [_BLOCK_N, _BLOCK_K]),
        row_scale,
        weight_scale,
        weight_scale if bias is None else bias,
        product,
        num_rows,
        num_columns,
        depth,
        has_bias=bias is not None,
        group=_GROUP,
        block_m=_BLOCK_M,
        block_n=_BLOCK_N,
        block_k=_BLOCK_K,
        num_warps=8,
        num_stages=4,
    )
    return product


@int8_product.register_fake
def _(
    rows: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0], dtype=torch.bfloat16)


@torch.library.custom_op("vidgen_ray::gelu_rows", mutates_args=())
def gelu_rows(rows: torch.Tensor, storage: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU (tanh) of rows [M, K] as int8 or float8 [M, K] with float32 scales [M, 1]."""
    num_rows, depth = rows.shape
    rounded = torch.empty_like(rows, dtype=storage)
    scale = torch.empty(num_rows, 1, device=rows.device)
    block = math.gcd(depth, _GELU_BLOCK)
    whole = storage == torch.int8
    largest = 127.0 if whole else torch.finfo(storage).max
    _gelu_kernel[(num_rows,)](
        rows,
        rounded,
        scale,
        largest,
        parts=depth // block,
        whole=whole,
        block=block,
        num_warps=8,
    )
    return rounded, scale


@gelu_rows.register_fake
def _(rows: torch.Tensor, storage: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    scale = rows.new_empty(rows.shape[0], 1, dtype=torch.float32)
    return torch.empty_like(rows, dtype=storage), scale


@torch.library.custom_op("vidgen_ray::channel_ranges", mutates_args=())
def channel_ranges(tokens: torch.Tensor) -> torch.Tensor:
    """Least, largest and sum of each channel of tokens [B, S, H, D]: float32 [3, B, parts, H, D].

    Each part holds some of the tokens.
    """
    batch, num_tokens, num_heads, head_dim = tokens.shape
    tokens = tokens.contiguous()
    width = num_heads * head_dim
    block = math.gcd(width, _RANGE_BLOCK)
    num_parts = triton.cdiv(num_tokens, _RANGE_ROWS)
    shape = (3, batch, num_parts, num_heads, head_dim)
    ranges = tokens.new_empty(shape, dtype=torch.float32)
    _ranges_kernel[(num_parts, width // block, batch)](
        tokens,
        ranges,
        num_tokens,
        width,
        ranges.stride(0),
        block=block,
        rows=_RANGE_ROWS,
        num_warps=_RANGE_WARPS,
    )
    return ranges


@channel_ranges.register_fake
def _(tokens: torch.Tensor) -> torch.Tensor:
    batch, num_tokens, num_heads, head_dim = tokens.shape
    num_parts = triton.cdiv(num_tokens, _RANGE_ROWS)
    return tokens.new_empty(3, batch, num_parts, num_heads, head_dim, dtype=torch.float32)


def activated_norm(
    features: torch.Tensor, norm: nn.GroupNorm, factor: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """SiLU of normed features [B, C, T, H, W] times factor plus offset, [B, C, t, h, w] enlarged.

    C is a power of two. The result is in channels_last_3d. Of an odd T the first frame takes the
    first of t alone.
    """
    batch, channels, length, height, width = features.shape
    layout = torch.channels_last_3d
    features = features.contiguous(memory_format=layout)
    factor, offset = (
        factor.contiguous(memory_format=layout),
        offset.contiguous(memory_format=layout),
    )
    pixels, rows = length * height * width, _NORM_BLOCK // channels
    num_parts = triton.cdiv(pixels, rows * _NORM_PARTS)
    sums = features.new_empty(batch, num_parts, 2, channels, dtype=torch.float32)
    _sums_kernel[(num_parts, batch)](
        features, sums, pixels, channels=channels, rows=rows, steps=_NORM_PARTS
    )
    grouped = sums.sum(1).view(batch, 2, norm.num_groups, -1)
    mean, square = (grouped.sum(3) / (pixels * grouped.shape[3])).unbind(1)
    deviation = (square - mean**2 + norm.eps).rsqrt()
    mean, deviation = (one.repeat_interleave(grouped.shape[3], 1) for one in (mean, deviation))
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
def _gelu_kernel(  # type: ignore[no-untyped-def]
    rows,
    rounded,
    scale,
    largest,
    parts: tl.constexpr,
    whole: tl.constexpr,
    block: tl.constexpr,
):
    """One row, in parts, each a power of two."""
    row = tl.program_id(0).to(tl.int64)
    at = row * (parts * block) + tl.arange(0, block)
    kept = ()
    peak = 1e-12
    for part in tl.static_range(parts):
        x = tl.load(rows + at + part * block).to(tl.float32)
        # x / 2 * (1 + tanh(y)) = x / (1 + exp(-2 y)), with y = sqrt(2 / pi) * (x + 0.044715 x^3)
        e = tl.exp2(-2.302208198 * (x + 0.044715 * x * x * x))
        activated = x * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;",
            "=f,f",
            [1.0 + e],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
        peak = tl.maximum(peak, tl.max(tl.abs(activated)))
        kept = kept + (activated,)  # type: ignore[assignment]  # noqa: RUF005
    factor = largest / peak
    for part in tl.static_range(parts):
        scaled = kept[part] * factor
        if whole:
            # From 1.5 * 2^23 on float32 has no digits after the point, and its last bits count.
            result = (scaled + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
        else:
            result = scaled.to(rounded.dtype.element_ty)
        tl.store(rounded + at + part * block, result)
    tl.store(scale + row, peak / largest)


@triton.jit  # type: ignore[untyped-decorator]
def _ranges_kernel(  # type: ignore[no-untyped-def]
    tokens,
    ranges,
    num_tokens,
    width,
    stride,
    block: tl.constexpr,
    rows: tl.constexpr,
):
    """Least, largest and sum of some channels over some tokens of one sample."""
    part, sample = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * block + tl.arange(0, block)
    r = part * rows + tl.arange(0, rows)
    inside = (r < num_tokens)[:, None]
    at = (sample * num_tokens + r).to(tl.int64)[:, None] * width + c[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    ranges += (sample * tl.num_programs(0) + part) * width + c
    tl.store(ranges, tl.min(tl.where(inside, x, float("inf")), 0))
    tl.store(ranges + stride, tl.max(tl.where(inside, x, float("-inf")), 0))
    tl.store(ranges + 2 * stride, tl.sum(x, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _product_kernel(  # type: ignore[no-untyped-def]
    rows,
    weight,
    row_scale,
    weight_scale,
    bias,
    product,
    num_rows,
    num_columns,
    depth,
    has_bias: tl.constexpr,
    group: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
):
    """One block [block_m, block_n] of the product; what is read past an edge is 0."""
    program = tl.program_id(0)
    down, across = tl.cdiv(num_rows, block_m), tl.cdiv(num_columns, block_n)
    first = program // (group * across) * group
    height = min(down - first, group)
    at_m = first + program % (group * across) % height
    at_n = program % (group * across) // height

    sums = tl.zeros((block_m, block_n), dtype=tl.int32)
    for k in range(0, depth, block_k):
        left = rows.load([at_m * block_m, k])
        right = weight.load([at_n * block_n, k])
        sums = tl.dot(left, right.T, sums, out_dtype=tl.int32)

    m = at_m * block_m + tl.arange(0, block_m)
    n = at_n * block_n + tl.arange(0, block_n)
    in_m, in_n = m < num_rows, n < num_columns
    scale_m = tl.load(row_scale + m, mask=in_m, other=0.0)
    scale_n = tl.load(weight_scale + n, mask=in_n, other=0.0)
    result = sums.to(tl.float32) * scale_m[:, None] * scale_n[None, :]
    if has_bias:
        result += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    place = product + m[:, None] * num_columns + n[None, :]
    tl.store(place, result.to(product.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _sums_kernel(  # type: ignore[no-untyped-def]
    features,
    sums,
    pixels,
    channels: tl.constexpr,
    rows: tl.constexpr,
    steps: tl.constexpr,
):
    """Each channel's sum, and that of its squares, over some pixels of one sample."""
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
    """Some pixels of one sample, with the latents' number nearest to each."""
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
    x = x.to(features.dtype.element_ty).to(tl.float32)  # as GroupNorm rounds
    x = x * tl.load(factor + latent, mask=inside, other=0.0).to(tl.float32)
    x = x + tl.load(offset + latent, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + at, (x * tl.sigmoid(x)).to(result.dtype.element_ty), mask=inside)
