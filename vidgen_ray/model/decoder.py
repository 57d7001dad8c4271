"""The VAE decoder with norm, conditioning and SiLU fused, and cheaper upsampling on a CPU."""

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXResnetBlock3D,
    CogVideoXSpatialNorm3D,
)
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch import nn
from torch.nn import functional


def fuse_decoder(vae: AutoencoderKLCogVideoX) -> None:
    """Replace the decoder's norms and activations by `SpatialNormSiLU`, in place.

    On an H200, half of diffusers' decoding time is GroupNorm, whose reduction over a batch of one
    occupies 32 of the GPU's 132 SMs, and layout copies around it. On a GPU convolutions are
    therefore converted to channels_last as well. On a CPU, where convolutions dominate, upsamplers
    are replaced by `SubPixelUpsample`. The weights must not be moved to another device afterwards.
    """
    decoder = vae.decoder
    for module in list(decoder.modules()):
        if isinstance(module, CogVideoXResnetBlock3D):
            module.norm1, module.norm2 = (
                SpatialNormSiLU(module.norm1),
                SpatialNormSiLU(module.norm2),
            )
            module.nonlinearity = nn.Identity()
    decoder.norm_out, decoder.conv_act = SpatialNormSiLU(decoder.norm_out), nn.Identity()
    if vae.device.type == "cuda":
        for module in decoder.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            elif isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        for block in decoder.up_blocks:
            if block.upsamplers is not None:
                block.upsamplers = nn.ModuleList(map(SubPixelUpsample, block.upsamplers))


class SpatialNormSiLU(nn.Module):
    """SiLU of diffusers' spatial norm: GroupNorm, scaled and shifted by a function of the latents.

    diffusers upsamples the latents to the size of the features and then applies 1x1x1 convolutions.
    Here the convolutions come first, which gives the same numbers for at most 1/16 of the work.
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
            # Triton is only installed with CUDA builds of torch.
            from vidgen_ray.model.triton_norm import spatial_norm_silu

            return spatial_norm_silu(f, group_norm, factor, offset), {}
        normed = group_norm(f)
        if f.shape[2] == 1 or f.shape[2] % 2 == 0:
            return _scale_shift_silu(normed, factor, offset), {}
        # If the number of frames is odd, the first frame uses the first latent frame alone.
        for frames, latents in ((slice(0, 1), slice(0, 1)), (slice(1, None), slice(1, None))):
            part = normed[:, :, frames]
            part.copy_(_scale_shift_silu(part, factor[:, :, latents], offset[:, :, latents]))
        return normed, {}


class SubPixelUpsample(nn.Module):
    """diffusers' nearest-neighbour upsampling and 3x3 convolution, as a sub-pixel convolution.

    Each of the four output pixels of an input pixel depends on only 2x2 distinct input pixels, so
    it takes 4 multiplications instead of 9; and frames repeated in time are convolved once.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, upsample: CogVideoXUpsample3D) -> None:
        super().__init__()
        weight, bias = upsample.conv.weight.detach(), upsample.conv.bias.detach()
        self.compress_time = upsample.compress_time
        self.register_buffer(
            "weight", torch.cat([_sub_pixel_kernel(weight, *at) for at in _SUB_PIXELS])
        )
        self.register_buffer("bias", bias.repeat(len(_SUB_PIXELS)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features [B, C, T, H, W] to [B, D, T or 2T or 2T - 1, 2H, 2W]."""
        batch, _, num_frames, height, width = inputs.shape
        channels = len(self.bias) // len(_SUB_PIXELS)
        frames = inputs.transpose(1, 2).flatten(0, 1)
        convolved = functional.conv2d(frames, self.weight, self.bias, padding=1)
        convolved = convolved.unflatten(0, (batch, -1)).transpose(1, 2)
        outputs = inputs.new_empty(batch, channels, num_frames, height, 2, width, 2)
        chunks = convolved.chunk(len(_SUB_PIXELS), dim=1)
        for (y, x), chunk in zip(_SUB_PIXELS, chunks, strict=True):
            outputs[..., y, :, x] = chunk[..., y : y + height, x : x + width]
        outputs = outputs.flatten(5).flatten(3, 4)
        if not self.compress_time or num_frames == 1:
            return outputs
        first, others = outputs[:, :, : num_frames % 2], outputs[:, :, num_frames % 2 :]
        return torch.cat([first, others.repeat_interleave(2, dim=2)], dim=2)


_SUB_PIXELS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column within the 2x2 outputs of a pixel


def _sub_pixel_kernel(weight: torch.Tensor, y: int, x: int) -> torch.Tensor:
    """A 3x3 kernel [Co, Ci, 3, 3] after upsampling, as the 2x2 kernel [Co, Ci, 2, 2] before it that
    gives the output pixels at row `y` and column `x`."""
    for dim, second in ((2, y), (3, x)):
        first, middle, last = weight.unbind(dim)
        pair = [first + middle, last] if second else [first, middle + last]
        weight = torch.stack(pair, dim)
    return weight


def _scale_shift_silu(
    normed: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """SiLU(normed * factor + offset), with `factor` and `offset` [B, C, t, h, w] upsampled to the
    size of `normed` [B, C, T, H, W].

    They are copied along the width only; along time and height they are broadcast.
    """
    size, latent_size = normed.shape[2:], factor.shape[2:]
    repeats = [whole // part for whole, part in zip(size, latent_size, strict=True)]
    blocks = normed.unflatten(3, (-1, repeats[1])).unflatten(2, (-1, repeats[0]))
    factor, offset = (
        latents.repeat_interleave(repeats[2], -1)[:, :, :, None, :, None]
        for latents in (factor, offset)
    )
    return functional.silu(torch.addcmul(offset, blocks, factor), inplace=True).view(normed.shape)
