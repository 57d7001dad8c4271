"""Linear layers in 8 bits, with a scale for each row of the weights and of the inputs."""

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.activations import GELU
from torch import nn
from torch.nn import functional

from vidgen_ray.config import Linears

FLOAT8 = torch.float8_e4m3fn
_MAX = {FLOAT8: torch.finfo(FLOAT8).max, torch.int8: 127.0}
_STORAGE = {"fp8": FLOAT8, "fp8_weights": FLOAT8, "int8": torch.int8}
_ALIGNMENT = 16  # of the hardware's 8-bit product, in columns and rows of the weights

# The layers that hold the transformer's arithmetic. Those of the norms see two rows a step.
_NAMES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


class EightBitLinear(nn.Linear):
    """A linear layer whose weights are float8 or int8 with a float32 scale a row.

    Inputs become the same, with a scale for each token, unless `weights_only`: then the weights
    are widened to the inputs' dtype. On a device without an 8-bit product the same sum is done in
    float32 over the same rounded numbers. With `gelu` the layer begins with that (tanh), which a
    GPU joins to the rounding.
    """

    weight_scale: torch.Tensor

    def __init__(
        self,
        linear: nn.Linear,
        storage: torch.dtype = FLOAT8,
        *,
        weights_only: bool = False,
        gelu: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weights_only = weights_only
        self.gelu = gelu
        weight, scale = quantize_rows(linear.weight.detach(), storage)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.bias = linear.bias

    def set_weight(self, weight: torch.Tensor) -> None:
        """Take other weights, in place, so that compiled code goes on as it is."""
        rows, scale = quantize_rows(weight, self.weight.dtype)
        self.weight.data.copy_(rows)
        self.weight_scale.copy_(scale)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.weights_only:
            weight = self.weight.to(input.dtype) * self.weight_scale.to(input.dtype)
            return functional.linear(_gelu(input) if self.gelu else input, weight, self.bias)
        quantize = quantize_gelu_rows if self.gelu else quantize_rows
        rows, scale = quantize(input.flatten(0, -2), self.weight.dtype)
        product = scaled_product(rows, scale, self.weight, self.weight_scale, self.bias)
        return product.to(input.dtype).view(*input.shape[:-1], self.out_features)


def quantize_linears(transformer: CogVideoXTransformer3DModel, linears: Linears) -> None:
    """Replace the attention and feed-forward layers of every block, in place."""
    if linears == "exact":
        return
    for block in transformer.transformer_blocks:
        first, last = block.ff.net[0], block.ff.net[2]
        gelu = isinstance(first, GELU) and first.approximate == "tanh" and _is_aligned(last)
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear) and name.endswith(_NAMES) and _is_aligned(module):
                parent, _, leaf = name.rpartition(".")
                quantized = EightBitLinear(
                    module,
                    _STORAGE[linears],
                    weights_only=linears == "fp8_weights",
                    gelu=gelu and module is last,
                )
                setattr(block.get_submodule(parent), leaf, quantized)
        if gelu:
            block.ff.net[0] = _Projection(first.proj)


class _Projection(nn.Module):
    """diffusers' GELU without its function: only the layer before it, by the same name."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.proj(input)
        return projected


def quantize_rows(
    rows: torch.Tensor, storage: torch.dtype = FLOAT8
) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, K] as `storage` [M, K] and float32 scales [M, 1], so that rows = stored * scale."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / _MAX[storage]
    scaled = rows.float() / scale
    return (scaled.round() if storage == torch.int8 else scaled).to(storage), scale


def quantize_gelu_rows(
    rows: torch.Tensor, storage: torch.dtype = FLOAT8
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_rows` of GELU (tanh) of rows [M, K]."""
    if rows.device.type == "cuda":
        from vidgen_ray.model.triton_kernels import gelu_rows  # Triton comes with CUDA's torch

        rounded, scale = gelu_rows(rows, storage)
        return rounded, scale
    return quantize_rows(_gelu(rows), storage)


def scaled_product(
    rows: torch.Tensor,
    row_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """rows [M, K] times weight [N, K] transposed, both scaled, plus bias: [M, N].

    bfloat16 on a GPU, float32 otherwise.
    """
    if rows.device.type == "cuda" and rows.dtype == torch.int8:
        from vidgen_ray.model.triton_kernels import int8_product

        scaled: torch.Tensor = int8_product(rows, row_scale, weight, weight_scale, bias)
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
