"""The product of int8 matrices with a scale for each row, in one Triton kernel.

`torch._int_mm` leaves int32 sums in memory, four bytes to write and to read again for each number
of the result; here they are scaled where they are made. The order of the blocks (some rows of
them, column after column, so that both inputs stay in the L2 cache) is that of Triton's matrix
multiplication tutorial.
"""

import torch
import triton
import triton.language as tl

_BLOCKS = [
    triton.Config({"block_m": m, "block_n": n, "block_k": k}, num_warps=8, num_stages=stages)
    for m, n, k, stages in ((128, 256, 128, 3), (128, 256, 64, 4), (256, 128, 128, 3))
]


def int8_product(
    rows: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """rows int8 [M, K] times weight int8 [N, K] transposed, scaled ([M, 1], [N, 1]): [M, N]."""
    num_rows, depth = rows.shape
    num_columns = weight.shape[0]
    product = torch.empty(num_rows, num_columns, device=rows.device, dtype=dtype)

    def grid(blocks: dict[str, int]) -> tuple[int]:
        across = triton.cdiv(num_columns, blocks["block_n"])
        return (triton.cdiv(num_rows, blocks["block_m"]) * across,)

    _kernel[grid](
        rows,
        weight,
        row_scale,
        weight_scale,
        weight_scale if bias is None else bias,
        product,
        num_rows,
        num_columns,
        depth,
        has_bias=bias is not None,
        group=8,
    )
    return product


@triton.autotune(configs=_BLOCKS, key=["num_columns", "depth"])  # type: ignore[untyped-decorator]
@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
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
    """One block [block_m, block_n] of the product."""
    program = tl.program_id(0)
    down, across = tl.cdiv(num_rows, block_m), tl.cdiv(num_columns, block_n)
    first = program // (group * across) * group
    height = min(down - first, group)
    at_m = first + program % (group * across) % height
    at_n = program % (group * across) // height

    m = at_m * block_m + tl.arange(0, block_m)
    n = at_n * block_n + tl.arange(0, block_n)
    k = tl.arange(0, block_k)
    # Rows past the end are read from the start again, and not written.
    a = rows + (m % num_rows)[:, None] * depth + k[None, :]
    b = weight + (n % num_columns)[None, :] * depth + k[:, None]
    sums = tl.zeros((block_m, block_n), dtype=tl.int32)
    for start in range(0, depth, block_k):
        inside = k < depth - start
        left = tl.load(a, mask=inside[None, :], other=0)
        right = tl.load(b, mask=inside[:, None], other=0)
        sums = tl.dot(left, right, sums, out_dtype=tl.int32)
        a += block_k
        b += block_k

    in_m, in_n = m < num_rows, n < num_columns
    scale_m = tl.load(row_scale + m, mask=in_m, other=0.0)
    scale_n = tl.load(weight_scale + n, mask=in_n, other=0.0)
    result = sums.to(tl.float32) * scale_m[:, None] * scale_n[None, :]
    if has_bias:
        result += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    place = product + m[:, None] * num_columns + n[None, :]
    tl.store(place, result.to(product.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])
