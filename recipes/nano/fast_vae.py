"""A faster forward pass of diffusers' CogVideoX VAE for small channel counts, with the same
results.
"""

from types import MethodType
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXSpatialNorm3D,
)
from torch import Tensor
from torch.nn import functional as F

Cache = Any  # what diffusers hands from one chunk of frames to the next


def make_fast(vae: AutoencoderKLCogVideoX) -> AutoencoderKLCogVideoX:
    """Replace two forward methods in `vae` in place; weights and results stay the same.

    A 1x1x1 convolution commutes with nearest-neighbour upsampling, so spatial norms convolve at the
    latent's size. A 3x3x3 convolution that is causal in time is a 2-D convolution over three frames
    stacked as channels; for a still, whose past repeats itself, the kernel is summed over time.
    """
    for module in vae.modules():
        if isinstance(module, CogVideoXSpatialNorm3D):
            module.forward = MethodType(_spatial_norm, module)
        elif isinstance(module, CogVideoXCausalConv3d) and module.time_kernel_size == 3:
            module.forward = MethodType(_causal_conv, module)
    return vae


def _spatial_norm(
    module: CogVideoXSpatialNorm3D, f: Tensor, zq: Tensor, conv_cache: Cache = None
) -> tuple[Tensor, Cache]:
    size = f.shape[2:]
    scale, shift = (_enlarge(conv.conv(zq), size) for conv in (module.conv_y, module.conv_b))
    return module.norm_layer(f) * scale + shift, {}


def _enlarge(z: Tensor, size: torch.Size) -> Tensor:
    """Nearest-neighbour upsampling [B, C, T, h, w]; an odd first frame is upsampled alone, as in
    diffusers.
    """
    if size[0] > 1 and size[0] % 2 == 1:
        first = F.interpolate(z[:, :, :1], size=(1, *size[1:]))
        return torch.cat([first, F.interpolate(z[:, :, 1:], size=(size[0] - 1, *size[1:]))], dim=2)
    return F.interpolate(z, size=size)


def _causal_conv(
    module: CogVideoXCausalConv3d, inputs: Tensor, conv_cache: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    weight, bias, pad = module.conv.weight, module.conv.bias, (module.height_pad, module.width_pad)
    num_clips, _, num_frames = inputs.shape[:3]
    if num_frames == 1 and conv_cache is None:
        return F.conv2d(inputs.squeeze(2), weight.sum(2), bias, padding=pad).unsqueeze(2), None
    past = conv_cache if conv_cache is not None else inputs[:, :, :1].expand(-1, -1, 2, -1, -1)
    frames = torch.cat([past, inputs], dim=2)
    stacked = torch.cat([frames[:, :, k : k + num_frames] for k in range(3)], dim=1)
    pictures = stacked.transpose(1, 2).flatten(0, 1)
    outputs = F.conv2d(pictures, weight.transpose(1, 2).flatten(1, 2), bias, padding=pad)
    return outputs.unflatten(0, (num_clips, num_frames)).transpose(1, 2), frames[:, :, -2:]
