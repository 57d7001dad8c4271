"""Two Triton kernels for Hopper: the product of int8 matrices, and GELU that ends in int8.

`torch._int_mm` leaves int32 sums in memory, four bytes to write and to read again for each number
of the result; here they are scaled where they are made. Blocks are read by the tensor memory
accelerator. Their order (some rows of them, column after column, so that both inputs stay in the L2
cache) is that of Triton's matrix multiplication tutorial.

What torch.compile makes of GELU and the rounding of a row reads the row twice and computes GELU
twice; here a row stays in registers.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

_BLOCK_M, _BLOCK_N, _BLOCK_K = 256, 128, 128
_GROUP = 8  # rows of blocks


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


@torch.library.custom_op("vidgen_ray::int8_gelu", mutates_args=())
def int8_gelu(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU (tanh) of rows [M, K] as int8 [M, K] with float32 scales [M, 1]."""
    num_rows, depth = rows.shape
    rounded = torch.empty_like(rows, dtype=torch.int8)
    scale = torch.empty(num_rows, 1, device=rows.device)
    block = triton.next_power_of_2(depth)
    _gelu_kernel[(num_rows,)](rows, rounded, scale, depth, block=block, num_warps=8)
    return rounded, scale


@int8_gelu.register_fake
def _(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = rows.new_empty(rows.shape[0], 1, dtype=torch.float32)
    return torch.empty_like(rows, dtype=torch.int8), scale


@triton.jit  # type: ignore[untyped-decorator]
def _gelu_kernel(  # type: ignore[no-untyped-def]
    rows,
    rounded,
    scale,
    depth,
    block: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, block)
    inside = k < depth
    x = tl.load(rows + row * depth + k, mask=inside, other=0.0).to(tl.float32)
    # x / 2 * (1 + tanh(y)) = x * sigmoid(2 y), with y = sqrt(2 / pi) * (x + 0.044715 x^3)
    activated = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    largest = tl.maximum(tl.max(tl.abs(activated)), 1e-12)
    scaled = activated * (127.0 / largest)
    # To the nearest whole number, ties to even: above 2^23 float32 has no digits after the point.
    whole = scaled + 12582912.0 - 12582912.0
    tl.store(rounded + row * depth + k, whole.to(tl.int8), mask=inside)
    tl.store(scale + row, largest / 127.0)


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
