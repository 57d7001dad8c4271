"""The VAE's decoder with norm, conditioning and SiLU in one pass over memory, where diffusers
makes twelve.

Half of diffusers' decoding on an H200 is GroupNorm, whose sums of a clip's one sample occupy 32 of
the GPU's 132 processors, and copies between layouts around it.
"""

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXResnetBlock3D,
    CogVideoXSpatialNorm3D,
)
from torch import nn
from torch.nn import functional


def fuse_decoder(vae: AutoencoderKLCogVideoX) -> None:
    """Put `ActivatedNorm` in the place of the decoder's norms and activations.

    On a GPU convolutions get the layout that they are fastest in. Weights must stay where they are.
    """
    decoder = vae.decoder
    for module in list(decoder.modules()):
        if isinstance(module, CogVideoXResnetBlock3D):
            module.norm1, module.norm2 = ActivatedNorm(module.norm1), ActivatedNorm(module.norm2)
            module.nonlinearity = nn.Identity()
    decoder.norm_out, decoder.conv_act = ActivatedNorm(decoder.norm_out), nn.Identity()
    if vae.device.type == "cuda":
        for module in decoder.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            elif isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ActivatedNorm(nn.Module):
    """SiLU of diffusers' norm that is scaled and shifted by the latents.

    There the latents are enlarged to the frames' size and then convolved, each pixel by itself.
    Here they are enlarged afterwards: the same numbers, a sixteenth and less of the work.
    """

    def __init__(self, norm: CogVideoXSpatialNorm3D) -> None:
        super().__init__()
        self.norm = norm

    def forward(
        self,
        f: torch.Tensor,
        zq: torch.Tensor,
        conv_cache: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Features [B, C, T, H, W] and latents [B, c, t, h, w] to features, and an empty cache."""
        group_norm = self.norm.norm_layer
        factor, offset = self.norm.conv_y.conv(zq), self.norm.conv_b.conv(zq)
        channels = f.shape[1]
        if f.device.type == "cuda" and channels & (channels - 1) == 0:
            from vidgen_ray.model.triton_kernels import activated_norm  # comes with CUDA's torch

            return activated_norm(f, group_norm, factor, offset), {}
        size = f.shape[2:]
        normed = group_norm(f) * _enlarge(factor, size) + _enlarge(offset, size)
        return functional.silu(normed), {}


def _enlarge(latents: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """To `size` [T, H, W]. Of an odd number of frames the first is the first latent's alone."""
    if size[0] == 1 or size[0] % 2 == 0:
        return functional.interpolate(latents, size)
    first, others = latents[:, :, :1], latents[:, :, 1:]
    parts = [
        functional.interpolate(first, (1, *size[1:])),
        functional.interpolate(others, (size[0] - 1, *size[1:])),
    ]
    return torch.cat(parts, dim=2)
