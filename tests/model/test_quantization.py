"""8-bit linears match float32 up to the rounding, and accept new weights in place."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import nn

from vidgen_ray.config import Linears
from vidgen_ray.model.quantization import (
    FLOAT8,
    EightBitLinear,
    gelu_quantize_rows,
    quantize_linears,
    quantize_rows,
    scaled_matmul,
)
from vidgen_ray.model.untrained import ARCHITECTURES


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48)


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", [FLOAT8, torch.int8])
def test_the_product_is_exact_for_the_quantized_values(
    linear: nn.Linear, dtype: torch.dtype
) -> None:
    rows, scale = quantize_rows(torch.randn(7, 64) * torch.logspace(-4, 4, 7)[:, None], dtype)
    weight, weight_scale = quantize_rows(linear.weight.detach(), dtype)
    exact = nn.functional.linear(
        rows.double() * scale.double(),
        weight.double() * weight_scale.double(),
        linear.bias.double(),
    )
    ours = scaled_matmul(rows, scale, weight, weight_scale, linear.bias)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "weights_only", "limit"),
    [(FLOAT8, True, 0.03), (FLOAT8, False, 0.045), (torch.int8, False, 0.015)],
)
def test_outputs_are_close_to_float32(
    linear: nn.Linear, dtype: torch.dtype, weights_only: bool, limit: float
) -> None:
    inputs = torch.randn(2, 5, 64)
    quantized = EightBitLinear(linear, dtype, weights_only=weights_only)
    assert quantized.weight.dtype == dtype
    ours = quantized(inputs)
    assert ours.shape == (2, 5, 48)
    assert 1e-3 < relative_error(ours, linear(inputs)) < limit


@pytest.mark.parametrize("linears", ["fp8", "fp8_weights", "int8"])
def test_a_quantized_block_is_close_to_the_original(linears: Linears) -> None:
    torch.manual_seed(0)
    block = CogVideoXTransformer3DModel(**ARCHITECTURES["tiny"].transformer).transformer_blocks[0]
    inputs = torch.randn(2, 5, block.ff.net[2].out_features)
    expected = block.ff(inputs)
    quantize_linears(SimpleNamespace(transformer_blocks=[block]), linears)  # type: ignore[arg-type]
    assert 1e-3 < relative_error(block.ff(inputs), expected) < 0.06


def test_a_row_of_zeros_stays_zero(linear: nn.Linear) -> None:
    quantized = EightBitLinear(linear)
    torch.testing.assert_close(quantized(torch.zeros(1, 64)), linear.bias[None])


def test_new_weights_are_written_into_the_same_storage(linear: nn.Linear) -> None:
    other = nn.Linear(64, 48)
    quantized = EightBitLinear(linear)
    storage = quantized.weight.data_ptr()
    quantized.set_weight(other.weight.detach())
    assert quantized.weight.data_ptr() == storage
    fresh = EightBitLinear(other)
    assert torch.equal(quantized.weight.float(), fresh.weight.float())
    assert torch.equal(quantized.weight_scale, fresh.weight_scale)


def test_only_attention_and_feed_forward_layers_are_quantized() -> None:
    transformer = CogVideoXTransformer3DModel(**ARCHITECTURES["tiny"].transformer)
    quantize_linears(transformer, "fp8")
    quantized = [
        name for name, module in transformer.named_modules() if isinstance(module, EightBitLinear)
    ]
    layers = ["attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v"]
    layers += ["ff.net.0.proj", "ff.net.2"]
    expected = {f"transformer_blocks.{block}.{layer}" for block in range(2) for layer in layers}
    assert set(quantized) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [FLOAT8, torch.int8])
def test_gelu_quantizes_alike_on_gpu_and_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = 3 * torch.randn(333, 12288, device="cuda", dtype=torch.bfloat16)
    rounded, scale = gelu_quantize_rows(rows, dtype)
    expected, expected_scale = gelu_quantize_rows(rows.cpu().double(), dtype)
    torch.testing.assert_close(scale.cpu(), expected_scale, rtol=1e-5, atol=0)
    rounded = rounded.cpu()
    assert (rounded.float() != expected.float()).float().mean() < 1e-3
    assert relative_error(rounded, expected) < 5e-3  # differences are of one rounding step


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT8, torch.int8])
def test_the_gpu_product_matches_the_cpu(dtype: torch.dtype, compiled: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3072, 1024).to("cuda", torch.bfloat16)
    inputs = torch.randn(2, 333, 3072, device="cuda", dtype=torch.bfloat16)
    quantized = EightBitLinear(linear, dtype)
    if compiled:
        quantized.compile(fullgraph=True, dynamic=False)
    with torch.no_grad():
        on_gpu = quantized(inputs)
        rows, scale = quantize_rows(inputs.flatten(0, 1).cpu(), dtype)
        reference = scaled_matmul(
            rows,
            scale,
            quantized.weight.cpu(),
            quantized.weight_scale.cpu(),
            linear.bias.cpu(),
        )
    assert relative_error(on_gpu.flatten(0, 1).cpu(), reference) < 0.005
