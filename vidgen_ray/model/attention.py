"""Joint text and video attention over a choice of kernels, with rotary positions of one piece.

diffusers' own processor rotates a slice of the sequence in place, which cannot be fused. Here text
tokens are rotated by nothing (cos 1, sin 0), so that norm, rotation and layout are one elementwise
chain that torch.compile makes one kernel of.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidgen_ray.config import Attention, Dtype
from vidgen_ray.errors import ConfigError

if TYPE_CHECKING:
    from vidgen_ray.model.parallel import SequenceRanks

EffectiveAttention = Literal["native", "cudnn", "flash3", "flash3_fp8"]
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Rotary = tuple[torch.Tensor, torch.Tensor]

_FLASH3 = "fa3_fwd_interface"
_FLOAT8 = torch.float8_e4m3fn


def choose_attention(
    wanted: Attention, device: torch.device, dtype: Dtype
) -> tuple[EffectiveAttention, str | None]:
    """The kernel to use, and a note where an `auto` had to do without the best one.

    On an H200 FlashAttention-3 is the fastest in bf16, which it has no fp16 for, and cuDNN in fp16.
    Raises ConfigError where a kernel that was named cannot run here.
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
            return "has no float32: set dtype to bfloat16 or float16"
        return None if torch.backends.cuda.cudnn_sdp_enabled() else "is switched off in torch"
    if dtype != "bfloat16":
        return f"has no {dtype}: set dtype to bfloat16"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "needs a Hopper GPU"
    if importlib.util.find_spec(_FLASH3) is None:
        return "is not installed: pip install fa3-fwd"
    return None


def attend(name: EffectiveAttention) -> Kernel:
    """The kernel `name`: query, key and value [batch, tokens, heads, head_dim] to the same."""
    if name.startswith("flash3"):
        importlib.import_module(_FLASH3)  # which registers the operator
    return {"native": _native, "cudnn": _cudnn, "flash3": _flash3, "flash3_fp8": _flash3_fp8}[name]


class JointAttention:
    """The attention processor of a CogVideoX block; text goes before video.

    `image_rotary_emb` is that of `joint_rotary`. With `ranks` every rank holds a share of the
    tokens before and after, and a share of the heads in between (DeepSpeed-Ulysses,
    arXiv:2309.14509).
    """

    def __init__(self, name: EffectiveAttention, ranks: "SequenceRanks | None" = None) -> None:
        self._attend = attend(name)
        self._ranks = ranks

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video [B, S, D] and text [B, T, D] to the same shapes."""
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        heads = (attn.heads, -1)
        send = self._ranks.send if self._ranks else _keep
        # What is sent first is on its way while the next is computed.
        value = send(attn.to_v(tokens).unflatten(2, heads))
        query = send(_rotate(attn.norm_q(attn.to_q(tokens).unflatten(2, heads)), image_rotary_emb))
        key = send(_rotate(attn.norm_k(attn.to_k(tokens).unflatten(2, heads)), image_rotary_emb))
        if self._ranks is None:
            attended = self._attend(query, key, value)
        else:
            attended = self._ranks.attend(self._attend, query, key, value, num_text)
        tokens = attn.to_out[0](attended.flatten(2))
        return tokens[:, num_text:], tokens[:, :num_text]


def joint_rotary(video: Rotary | None, num_text: int) -> Rotary | None:
    """Rotary tables [S, head_dim] of the video tokens, with text tokens before that stay as are."""
    if video is None:
        return None
    cos, sin = video
    shape = (num_text, cos.shape[1])
    return torch.cat([cos.new_ones(shape), cos]), torch.cat([sin.new_zeros(shape), sin])


def _keep(tokens: torch.Tensor) -> torch.Tensor:
    return tokens


def _rotate(tokens: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
    """Pairs of neighbours in the last axis turned by their angle, in float32 as diffusers does."""
    if rotary is None:
        return tokens
    cos, sin = (table[None, :, None, :] for table in rotary)
    real, imaginary = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    return (tokens.float() * cos + turned.float() * sin).to(tokens.dtype)


def _native(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _native(query, key, value)


def _flash3(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return _flash3_forward(query, key, value)


def _flash3_fp8(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Query, key and value in 8 bits with one scale for each head of each clip."""
    query, key = spread(query, key)
    query, query_scale = quantize_heads(query)
    key, key_scale = quantize_heads(key, centred=True)
    value, value_scale = quantize_heads(value)
    return _flash3_forward(
        query, key, value, q_descale=query_scale, k_descale=key_scale, v_descale=value_scale
    )


def spread(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [B, S, H, D] that give the same attention and lose less in 8 bits.

    A Hadamard matrix turns both, which changes no product of the two and spreads what is large over
    the whole head (as in FlashAttention-3, arXiv:2407.08608, section 3.3). D is a power of two.
    """
    size = query.shape[-1]
    index = torch.arange(size, device=query.device)
    parity = index[:, None] & index
    for shift in (4, 2, 1):
        parity = parity ^ (parity >> shift)
    turn = ((1 - 2 * (parity & 1)) * size**-0.5).to(query.dtype)
    return query @ turn, key @ turn


def quantize_heads(
    tensor: torch.Tensor, *, centred: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, S, H, D] in float8, and its scales [B, H] in float32: tensor = float8 * scale.

    `centred` takes the mean of each channel off first. That of keys adds the same to all scores of
    a query, which changes no attention.
    """
    least, most, mean = _channel_ranges(tensor)
    middle = mean if centred else torch.zeros_like(mean)
    largest = torch.maximum(most - middle, middle - least).amax(2).clamp(min=1e-12)
    scale = largest / torch.finfo(_FLOAT8).max
    return ((tensor - middle[:, None]) / scale[:, None, :, None]).to(_FLOAT8), scale


def _channel_ranges(tensor: torch.Tensor) -> torch.Tensor:
    """Least, largest and mean of each channel of [B, S, H, D]: float32 [3, B, H, D]."""
    if tensor.device.type == "cuda":
        from vidgen_ray.model.triton_kernels import channel_ranges  # Triton comes with CUDA's torch

        least, most, total = channel_ranges(tensor).unbind(0)
        return torch.stack([least.amin(1), most.amax(1), total.sum(1) / tensor.shape[1]])
    numbers = tensor.float()
    return torch.stack([numbers.amin(1), numbers.amax(1), numbers.mean(1)])


def _flash3_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **scales: torch.Tensor
) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5
    attended: torch.Tensor = torch.ops.fa3_fwd._flash_attn_forward(
        query, key, value, softmax_scale=scale, **scales
    )[0]
    return attended
