"""Triton kernels for 8-bit linear layers and 8-bit attention on Hopper GPUs."""

import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

_BLOCK_M, _BLOCK_N, _BLOCK_K = 256, 128, 128
_GROUP_M = 8  # row blocks of the output that are computed column by column
_GELU_BLOCK = 4096  # elements of a row per load
_STATS_BLOCK_CHANNELS = 128
_STATS_BLOCK_TOKENS = 128
_STATS_WARPS = 4


@torch.library.custom_op("vidgen_ray::int8_scaled_matmul", mutates_args=())
def int8_scaled_matmul(
    rows: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """(int8 rows [M, K] * row_scale [M, 1]) @ (int8 weight [N, K] * weight_scale [N, 1]).T + bias.

    Returns bf16 [M, N]. M, N and K need not be multiples of the tile size. `torch._int_mm` writes
    int32 sums to memory, which are then read again to be scaled; here that is the epilogue. Tiles
    are loaded by TMA, in the L2-friendly grouped order of Triton's matmul tutorial.
    """
    num_rows, depth = rows.shape
    num_columns = weight.shape[0]
    product = torch.empty(num_rows, num_columns, device=rows.device, dtype=torch.bfloat16)
    num_blocks = triton.cdiv(num_rows, _BLOCK_M) * triton.cdiv(num_columns, _BLOCK_N)
    _int8_matmul_kernel[(num_blocks,)](
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
        group=_GROUP_M,
        block_m=_BLOCK_M,
        block_n=_BLOCK_N,
        block_k=_BLOCK_K,
        num_warps=8,
        num_stages=4,
    )
    return product


@int8_scaled_matmul.register_fake
def _(rows: torch.Tensor, _: object, weight: torch.Tensor, *__: object) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0], dtype=torch.bfloat16)


@torch.library.custom_op("vidgen_ray::gelu_quantize_rows", mutates_args=())
def gelu_quantize_rows(
    rows: torch.Tensor, dtype: torch.dtype, largest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU (tanh) of rows [M, K] as int8 or float8 [M, K] with float32 scales [M, 1].

    `largest` is the value that the largest magnitude of a row is scaled to. A row stays in
    registers; torch.compile's kernel reads it and computes GELU twice.
    """
    num_rows, depth = rows.shape
    quantized = torch.empty_like(rows, dtype=dtype)
    scale = torch.empty(num_rows, 1, device=rows.device)
    block = math.gcd(depth, _GELU_BLOCK)
    _gelu_quantize_kernel[(num_rows,)](
        rows,
        quantized,
        scale,
        largest,
        parts=depth // block,
        is_int8=dtype == torch.int8,
        block=block,
        num_warps=8,
    )
    return quantized, scale


@gelu_quantize_rows.register_fake
def _(rows: torch.Tensor, dtype: torch.dtype, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    scale = rows.new_empty(rows.shape[0], 1, dtype=torch.float32)
    return torch.empty_like(rows, dtype=dtype), scale


@torch.library.custom_op("vidgen_ray::partial_channel_stats", mutates_args=())
def partial_channel_stats(tokens: torch.Tensor) -> torch.Tensor:
    """Minimum, maximum and sum of each channel of tokens [B, S, H, D]: float32 [3, B, P, H, D].

    Each of the P parts covers a block of the tokens; the caller reduces over them. One pass over
    the tokens, where torch.compile's reduction takes three times as long.
    """
    batch, num_tokens, num_heads, head_dim = tokens.shape
    tokens = tokens.contiguous()
    width = num_heads * head_dim
    block = math.gcd(width, _STATS_BLOCK_CHANNELS)
    num_parts = triton.cdiv(num_tokens, _STATS_BLOCK_TOKENS)
    shape = (3, batch, num_parts, num_heads, head_dim)
    stats = tokens.new_empty(shape, dtype=torch.float32)
    _channel_stats_kernel[(num_parts, width // block, batch)](
        tokens,
        stats,
        num_tokens,
        width,
        stats.stride(0),
        block=block,
        rows=_STATS_BLOCK_TOKENS,
        num_warps=_STATS_WARPS,
    )
    return stats


@partial_channel_stats.register_fake
def _(tokens: torch.Tensor) -> torch.Tensor:
    batch, num_tokens, num_heads, head_dim = tokens.shape
    num_parts = triton.cdiv(num_tokens, _STATS_BLOCK_TOKENS)
    return tokens.new_empty(3, batch, num_parts, num_heads, head_dim, dtype=torch.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _gelu_quantize_kernel(  # type: ignore[no-untyped-def]
    rows,
    quantized,
    scale,
    largest,
    parts: tl.constexpr,
    is_int8: tl.constexpr,
    block: tl.constexpr,
):
    """One row of parts * block elements; block is a power of two."""
    row = tl.program_id(0).to(tl.int64)
    at = row * (parts * block) + tl.arange(0, block)
    activations = ()
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
        activations = activations + (activated,)  # type: ignore[assignment]  # noqa: RUF005
    factor = largest / peak
    for part in tl.static_range(parts):
        scaled = activations[part] * factor
        if is_int8:
            # Adding 1.5 * 2^23 rounds to an integer, which is then in the low mantissa bits.
            result = (scaled + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
        else:
            result = scaled.to(quantized.dtype.element_ty)
        tl.store(quantized + at + part * block, result)
    tl.store(scale + row, peak / largest)


@triton.jit  # type: ignore[untyped-decorator]
def _channel_stats_kernel(  # type: ignore[no-untyped-def]
    tokens,
    stats,
    num_tokens,
    width,
    stride,
    block: tl.constexpr,
    rows: tl.constexpr,
):
    """Minimum, maximum and sum of one block of channels over one block of tokens of a sample."""
    part, sample = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * block + tl.arange(0, block)
    r = part * rows + tl.arange(0, rows)
    inside = (r < num_tokens)[:, None]
    at = (sample * num_tokens + r).to(tl.int64)[:, None] * width + c[None, :]
    x = tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)
    stats += (sample * tl.num_programs(0) + part) * width + c
    tl.store(stats, tl.min(tl.where(inside, x, float("inf")), 0))
    tl.store(stats + stride, tl.max(tl.where(inside, x, float("-inf")), 0))
    tl.store(stats + 2 * stride, tl.sum(x, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _int8_matmul_kernel(  # type: ignore[no-untyped-def]
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
    """One tile [block_m, block_n] of the product; TMA loads zeros past the edges."""
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
