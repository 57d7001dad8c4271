"""Attention kernels for query, key and value [B, S, H, D], chosen by what the device supports."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidgen_ray.config import Attention, Dtype
from vidgen_ray.errors import ConfigError

EffectiveAttention = Literal["native", "cudnn", "flash3", "flash3_fp8"]
AttentionKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_FLASH3 = "fa3_fwd_interface"
_FLOAT8 = torch.float8_e4m3fn


def choose_attention(
    wanted: Attention, device: torch.device, dtype: Dtype
) -> tuple[EffectiveAttention, str | None]:
    """The kernel to use, and a note if `auto` had to fall back from the fastest one.

    On an H200 FlashAttention-3 is the fastest in bf16; it has no fp16, where cuDNN is the fastest.
    Raises ConfigError if a kernel requested by name cannot run here.
    """
    problems = {
        name: _problem(name, device, dtype) for name in ("native", "cudnn", "flash3", "flash3_fp8")
    }
    if wanted == "auto_fp8":
        if problems["flash3_fp8"] is None:
            return "flash3_fp8", None
        found, note = choose_attention("auto", device, dtype)
        missing = f"attention: {found}, flash3_fp8 {problems['flash3_fp8']}"
        return found, note or (None if device.type == "cpu" else missing)
    if wanted != "auto":
        if problems[wanted]:
            raise ConfigError(f"attention: {wanted} {problems[wanted]}; or use auto")
        return wanted, None
    if problems["flash3"] is None:
        return "flash3", None
    if problems["cudnn"] is None:
        note = None if dtype == "float16" else f"attention: cudnn, flash3 {problems['flash3']}"
        return "cudnn", note
    return "native", None if device.type == "cpu" else f"attention: cudnn {problems['cudnn']}"


def _problem(name: str, device: torch.device, dtype: Dtype) -> str | None:
    if name == "native":
        return None
    if device.type != "cuda":
        return "needs an NVIDIA GPU"
    if name == "cudnn":
        if dtype == "float32":
            return "does not support float32: set dtype to bfloat16 or float16"
        return None if torch.backends.cuda.cudnn_sdp_enabled() else "is disabled in torch"
    if dtype != "bfloat16":
        return f"does not support {dtype}: set dtype to bfloat16"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "needs a Hopper GPU"
    if importlib.util.find_spec(_FLASH3) is None:
        return "is not installed: pip install fa3-fwd"
    return None


def attention_kernel(name: EffectiveAttention) -> AttentionKernel:
    """The kernel `name`: query, key and value [B, S, H, D] to attention output of that shape."""
    if name.startswith("flash3"):
        importlib.import_module(_FLASH3)  # registers the operator
    return {"native": _native, "cudnn": _cudnn, "flash3": _flash3, "flash3_fp8": _flash3_fp8}[name]


def _native(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _native(query, key, value)


def _flash3(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return _flash3_forward(query, key, value)


def _flash3_fp8(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """FlashAttention-3 on float8 query, key and value, with one scale per sample and head."""
    query, key = hadamard_rotate(query, key)
    query, query_scale = quantize_heads(query)
    key, key_scale = quantize_heads(key, subtract_mean=True)
    value, value_scale = quantize_heads(value)
    return _flash3_forward(
        query, key, value, q_descale=query_scale, k_descale=key_scale, v_descale=value_scale
    )


def hadamard_rotate(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key [B, S, H, D], both multiplied by an orthonormal Hadamard matrix [D, D].

    The rotation leaves every query-key product unchanged and spreads outlier channels over the
    whole head, which lowers the quantization error (FlashAttention-3, arXiv:2407.08608, section
    3.3). D must be a power of two.
    """
    size = query.shape[-1]
    index = torch.arange(size, device=query.device)
    parity = index[:, None] & index
    for shift in (4, 2, 1):
        parity = parity ^ (parity >> shift)
    hadamard = ((1 - 2 * (parity & 1)) * size**-0.5).to(query.dtype)
    return query @ hadamard, key @ hadamard


def quantize_heads(
    tensor: torch.Tensor, *, subtract_mean: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize [B, S, H, D] to float8, with float32 scales [B, H]: tensor = float8 * scale.

    `subtract_mean` first subtracts each channel's mean over the tokens. For keys this shifts all
    scores of a query by the same amount, so the softmax is unchanged.
    """
    minimum, maximum, mean = _channel_stats(tensor)
    center = mean if subtract_mean else torch.zeros_like(mean)
    largest = torch.maximum(maximum - center, center - minimum).amax(2).clamp(min=1e-12)
    scale = largest / torch.finfo(_FLOAT8).max
    return ((tensor - center[:, None]) / scale[:, None, :, None]).to(_FLOAT8), scale


def _channel_stats(tensor: torch.Tensor) -> torch.Tensor:
    """Minimum, maximum and mean of each channel of [B, S, H, D]: float32 [3, B, H, D]."""
    if tensor.device.type == "cuda":
        # Triton is only installed with CUDA builds of torch.
        from vidgen_ray.model.triton_quantization import partial_channel_stats

        minimum, maximum, total = partial_channel_stats(tensor).unbind(0)
        return torch.stack([minimum.amin(1), maximum.amax(1), total.sum(1) / tensor.shape[1]])
    values = tensor.float()
    return torch.stack([values.amin(1), values.amax(1), values.mean(1)])


def _flash3_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **scales: torch.Tensor
) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5
    attended: torch.Tensor = torch.ops.fa3_fwd._flash_attn_forward(
        query, key, value, softmax_scale=scale, **scales
    )[0]
    return attended
