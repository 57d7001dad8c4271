"""Every attention option computes diffusers' attention; a missing kernel is reported."""

import importlib.util

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

from vidgen_ray.errors import ConfigError
from vidgen_ray.model.attention import JointAttention, joint_rotary
from vidgen_ray.model.attention_kernels import (
    attention_kernel,
    choose_attention,
    hadamard_rotate,
    quantize_heads,
)

CPU = torch.device("cpu")
NUM_TEXT, NUM_VIDEO = 5, 24


def rotary_tables() -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.rand(NUM_VIDEO, 8).repeat_interleave(2, dim=1) * 6
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_block_matches_diffusers(compiled: bool) -> None:
    torch.manual_seed(0)
    block = CogVideoXBlock(32, 2, 16, 16).eval()
    video, text = torch.randn(2, NUM_VIDEO, 32), torch.randn(2, NUM_TEXT, 32)
    time, rotary = torch.randn(2, 16), rotary_tables()
    with torch.no_grad():
        expected = block(video, text, time, rotary)
        block.attn1.set_processor(JointAttention("native"))
        if compiled:
            block.compile(fullgraph=True, dynamic=False)
        ours = block(video, text, time, joint_rotary(rotary, NUM_TEXT))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_auto_falls_back_but_an_explicit_kernel_raises() -> None:
    for name in ("auto", "auto_fp8"):
        assert choose_attention(name, CPU, "bfloat16") == ("native", None)  # type: ignore[arg-type]
    for name in ("cudnn", "flash3", "flash3_fp8"):
        with pytest.raises(ConfigError, match=f"attention: {name} needs an NVIDIA GPU; or use"):
            choose_attention(name, CPU, "bfloat16")  # type: ignore[arg-type]


def test_float8_heads_have_a_relative_error_below_a_sixteenth() -> None:
    torch.manual_seed(0)
    tensor = torch.randn(2, 24, 3, 16) * torch.tensor([1e-3, 1.0, 300.0])[:, None]
    rounded, scale = quantize_heads(tensor)
    assert scale.shape == (2, 3)
    back = rounded.float() * scale[:, None, :, None]
    error = (back - tensor).norm(dim=(1, 3)) / tensor.norm(dim=(1, 3))
    assert (error < 1 / 16).all()
    assert (error > 1e-3).all()


def test_hadamard_rotation_keeps_attention_and_halves_the_error_in_8_bits() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 200, 3, 64).unbind(0)
    query[..., 7] *= 20  # an outlier channel, as trained models have
    key[..., 7] = 0.3 * key[..., 7] + 5
    exact = attention_kernel("native")
    expected = exact(query, key, value)
    torch.testing.assert_close(
        exact(*hadamard_rotate(query, key), value), expected, atol=1e-4, rtol=1e-4
    )

    def error(query: torch.Tensor, key: torch.Tensor, *, subtract_mean: bool) -> float:
        parts = [quantize_heads(query), quantize_heads(key, subtract_mean=subtract_mean)]
        rounded = [part.float() * scale[:, None, :, None] for part, scale in parts]
        return float((exact(*rounded, value) - expected).norm() / expected.norm())

    assert (
        error(*hadamard_rotate(query, key), subtract_mean=True)
        < error(query, key, subtract_mean=False) / 2
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(2, 1111, 48, 64), (1, 17, 3, 64)])
def test_heads_quantize_alike_on_gpu_and_cpu(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(shape) * torch.randn(shape[2:]).exp() + torch.randn(shape[2:])).bfloat16()
    for subtract_mean in (False, True):
        expected, expected_scale = quantize_heads(tensor, subtract_mean=subtract_mean)
        rounded, scale = quantize_heads(tensor.cuda(), subtract_mean=subtract_mean)
        torch.testing.assert_close(scale.cpu(), expected_scale, rtol=1e-5, atol=0)
        assert (rounded.cpu().float() != expected.float()).float().mean() < 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        ("cudnn", torch.bfloat16, 0.01),
        ("cudnn", torch.float16, 0.002),
        ("flash3", torch.bfloat16, 0.01),
        ("flash3_fp8", torch.bfloat16, 0.07),
    ],
)
def test_kernels_agree_with_float32(name: str, dtype: torch.dtype, limit: float) -> None:
    if name.startswith("flash3") and importlib.util.find_spec("fa3_fwd_interface") is None:
        pytest.skip("needs fa3-fwd")
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 1111, 6, 64, device="cuda").unbind(0)
    expected = attention_kernel("native")(query, key, value)
    kernel = torch.compile(attention_kernel(name), fullgraph=True, dynamic=False)  # type: ignore[arg-type]
    for call in (attention_kernel(name), kernel):  # type: ignore[arg-type]
        ours = call(query.to(dtype), key.to(dtype), value.to(dtype)).float()
        assert (ours - expected).norm() / expected.norm() < limit
