"""The VAE's decoder with norm, conditioning and SiLU in few passes over memory, where diffusers
makes twelve.

Half of diffusers' decoding on an H200 is GroupNorm, whose sums of a clip's one sample occupy 32 of
the GPU's 132 processors, and copies between layouts around it. On a CPU convolutions are the most,
and those after an enlargement are done with fewer multiplications.
"""

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
    """Put `ActivatedNorm` in the place of the decoder's norms and activations.

    On a GPU convolutions get the layout that they are fastest in, on a CPU `PhasedUpsample` takes
    the place of enlargements. Weights must stay where they are.
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
    else:
        for block in decoder.up_blocks:
            if block.upsamplers is not None:
                block.upsamplers = nn.ModuleList(map(PhasedUpsample, block.upsamplers))


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
        normed = group_norm(f)
        if f.shape[2] == 1 or f.shape[2] % 2 == 0:
            return _scale_shift_silu(normed, factor, offset), {}
        # Of an odd number of frames the first is the first latent's alone.
        for frames, latents in ((slice(0, 1), slice(0, 1)), (slice(1, None), slice(1, None))):
            part = normed[:, :, frames]
            part.copy_(_scale_shift_silu(part, factor[:, :, latents], offset[:, :, latents]))
        return normed, {}


class PhasedUpsample(nn.Module):
    """diffusers' enlargement by nearest neighbours and the 3x3 convolution of its frames.

    Each of the four pixels that one becomes sees 2x2 different ones, so that it takes 4 products
    where there were 9; and a frame that is repeated is convolved once.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, upsample: CogVideoXUpsample3D) -> None:
        super().__init__()
        weight, bias = upsample.conv.weight.detach(), upsample.conv.bias.detach()
        self.compress_time = upsample.compress_time
        self.register_buffer("weight", torch.cat([_phase(weight, *at) for at in _PHASES]))
        self.register_buffer("bias", bias.repeat(len(_PHASES)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features [B, C, T, H, W] to [B, D, T or 2T or 2T - 1, 2H, 2W]."""
        batch, _, num_frames, height, width = inputs.shape
        channels = len(self.bias) // len(_PHASES)
        frames = inputs.transpose(1, 2).flatten(0, 1)
        phases = functional.conv2d(frames, self.weight, self.bias, padding=1)
        phases = phases.unflatten(0, (batch, -1)).transpose(1, 2)
        outputs = inputs.new_empty(batch, channels, num_frames, height, 2, width, 2)
        for (y, x), phase in zip(_PHASES, phases.chunk(len(_PHASES), dim=1), strict=True):
            outputs[..., y, :, x] = phase[..., y : y + height, x : x + width]
        outputs = outputs.flatten(5).flatten(3, 4)
        if not self.compress_time or num_frames == 1:
            return outputs
        first, others = outputs[:, :, : num_frames % 2], outputs[:, :, num_frames % 2 :]
        return torch.cat([first, others.repeat_interleave(2, dim=2)], dim=2)


_PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))  # of a pixel that became four: row and column


def _phase(weight: torch.Tensor, y: int, x: int) -> torch.Tensor:
    """The 2x2 kernel [Co, Ci, 2, 2] with which a 3x3 kernel meets neighbours that are equal."""
    for dim, second in ((2, y), (3, x)):
        first, middle, last = weight.unbind(dim)
        pair = [first + middle, last] if second else [first, middle + last]
        weight = torch.stack(pair, dim)
    return weight


def _scale_shift_silu(
    normed: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """SiLU(normed * factor + offset), where the last two [B, C, t, h, w] are fewer pixels.

    Only their rows are enlarged: the rest is repeated by being read again.
    """
    size, latent_size = normed.shape[2:], factor.shape[2:]
    repeats = [whole // part for whole, part in zip(size, latent_size, strict=True)]
    blocks = normed.unflatten(3, (-1, repeats[1])).unflatten(2, (-1, repeats[0]))
    factor, offset = (
        latents.repeat_interleave(repeats[2], -1)[:, :, :, None, :, None]
        for latents in (factor, offset)
    )
    return functional.silu(torch.addcmul(offset, blocks, factor), inplace=True).view(normed.shape)
