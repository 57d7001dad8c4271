"""8-bit linear layers with row-wise scales: one per output channel of the weight, one per token."""

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.activations import GELU
from torch import nn
from torch.nn import functional

from vidgen_ray.config import Linears

FLOAT8 = torch.float8_e4m3fn
_MAX = {FLOAT8: torch.finfo(FLOAT8).max, torch.int8: 127.0}
_DTYPES = {"fp8": FLOAT8, "fp8_weights": FLOAT8, "int8": torch.int8}
_ALIGNMENT = 16  # 8-bit matrix products need K and N to be multiples of it

# The layers with most of the transformer's FLOPs. The modulation layers of the norms are left out:
# they see one row per sample.
QUANTIZED_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class EightBitLinear(nn.Linear):
    """A linear layer with float8 or int8 weights and one float32 scale per output channel.

    Activations are quantized to the same dtype with one scale per token, unless `weights_only`:
    then the weights are dequantized to the activations' dtype. On devices without 8-bit matrix
    products the quantized values are multiplied in float32. With `gelu` the layer applies GELU
    (tanh) to its input first, which on a GPU is fused with the quantization.
    """

    weight_scale: torch.Tensor

    def __init__(
        self,
        linear: nn.Linear,
        dtype: torch.dtype = FLOAT8,
        *,
        weights_only: bool = False,
        gelu: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weights_only = weights_only
        self.gelu = gelu
        weight, scale = quantize_rows(linear.weight.detach(), dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.bias = linear.bias

    def set_weight(self, weight: torch.Tensor) -> None:
        """Quantize weight [out, in] into the existing storage, so compiled code stays valid."""
        quantized, scale = quantize_rows(weight, self.weight.dtype)
        self.weight.data.copy_(quantized)
        self.weight_scale.copy_(scale)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if self.weights_only:
            weight = self.weight.to(input.dtype) * self.weight_scale.to(input.dtype)
            return functional.linear(_gelu(input) if self.gelu else input, weight, self.bias)
        quantize = gelu_quantize_rows if self.gelu else quantize_rows
        rows, scale = quantize(input.flatten(0, -2), self.weight.dtype)
        product = scaled_matmul(rows, scale, self.weight, self.weight_scale, self.bias)
        return product.to(input.dtype).view(*input.shape[:-1], self.out_features)


def quantize_linears(transformer: CogVideoXTransformer3DModel, linears: Linears) -> None:
    """Replace the attention and feed-forward layers of every block, in place."""
    if linears == "exact":
        return
    for block in transformer.transformer_blocks:
        first, last = block.ff.net[0], block.ff.net[2]
        gelu = isinstance(first, GELU) and first.approximate == "tanh" and _is_aligned(last)
        for name, module in list(block.named_modules()):
            if (
                isinstance(module, nn.Linear)
                and name.endswith(QUANTIZED_LAYERS)
                and _is_aligned(module)
            ):
                parent, _, leaf = name.rpartition(".")
                quantized = EightBitLinear(
                    module,
                    _DTYPES[linears],
                    weights_only=linears == "fp8_weights",
                    gelu=gelu and module is last,
                )
                setattr(block.get_submodule(parent), leaf, quantized)
        if gelu:
            block.ff.net[0] = _Projection(first.proj)


class _Projection(nn.Module):
    """diffusers' GELU module without the activation; `proj` keeps its parameter names."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.proj(input)
        return projected


def quantize_rows(
    rows: torch.Tensor, dtype: torch.dtype = FLOAT8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize [M, K] to `dtype`, with float32 scales [M, 1]: rows = quantized * scale."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / _MAX[dtype]
    scaled = rows.float() / scale
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale


def gelu_quantize_rows(
    rows: torch.Tensor, dtype: torch.dtype = FLOAT8
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_rows` of GELU (tanh) of [M, K]: quantized [M, K] and float32 scales [M, 1]."""
    if rows.device.type == "cuda":
        # Triton is only installed with CUDA builds of torch.
        from vidgen_ray.model import triton_quantization

        quantized, scale = triton_quantization.gelu_quantize_rows(rows, dtype, _MAX[dtype])
        return quantized, scale
    return quantize_rows(_gelu(rows), dtype)


def scaled_matmul(
    rows: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """(rows [M, K] * row_scale [M, 1]) @ (weight [N, K] * weight_scale [N, 1]).T + bias [N].

    The result [M, N] is bfloat16 on a GPU, float32 otherwise.
    """
    if rows.device.type == "cuda" and rows.dtype == torch.int8:
        from vidgen_ray.model.triton_quantization import int8_scaled_matmul

        scaled: torch.Tensor = int8_scaled_matmul(rows, row_scale, weight, weight_scale, bias)
        return scaled
    if rows.device.type == "cuda":
        return torch._scaled_mm(
            rows,
            weight.t(),
            scale_a=row_scale,
            scale_b=weight_scale.t(),
            bias=None if bias is None else bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    product = rows.float() @ weight.float().t() * row_scale * weight_scale.t()
    return product if bias is None else product + bias.float()


def _gelu(rows: torch.Tensor) -> torch.Tensor:
    return functional.gelu(rows, approximate="tanh")


def _is_aligned(linear: nn.Linear) -> bool:
    return linear.in_features % _ALIGNMENT == 0 and linear.out_features % _ALIGNMENT == 0
