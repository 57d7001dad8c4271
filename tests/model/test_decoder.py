"""The fused decoder matches diffusers', for first and later frames, tiled or not."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.upsampling import CogVideoXUpsample3D

from vidgen_ray.model.acceleration import enable_tiling
from vidgen_ray.model.decoder import SpatialNormSiLU, SubPixelUpsample, fuse_decoder
from vidgen_ray.model.untrained import ARCHITECTURES


def make_vae(
    architecture: str = "tiny", dtype: torch.dtype = torch.float32
) -> AutoencoderKLCogVideoX:
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(**ARCHITECTURES[architecture].vae).to(dtype).eval()


def decode(vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        frames: torch.Tensor = vae.decode(latents).sample
    return frames


@pytest.mark.parametrize("num_latent_frames", [1, 2, 3, 5])
@pytest.mark.parametrize("tiled", [False, True])
def test_decoded_frames_match_diffusers(num_latent_frames: int, tiled: bool) -> None:
    vae = make_vae()
    if tiled:
        enable_tiling(vae)
    height, width = (2 * vae.tile_latent_min_height, 12) if tiled else (6, 10)
    latents = torch.randn(1, vae.config.latent_channels, num_latent_frames, height, width)
    expected = decode(vae, latents)
    fuse_decoder(vae)
    kinds = [type(module) for module in vae.decoder.modules()]
    assert kinds.count(SpatialNormSiLU) > 4
    assert kinds.count(SubPixelUpsample) > 1
    assert CogVideoXUpsample3D not in kinds
    torch.testing.assert_close(decode(vae, latents), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("compress_time", [False, True])
def test_sub_pixel_upsampling_matches_diffusers(num_frames: int, compress_time: bool) -> None:
    torch.manual_seed(0)
    upsample = CogVideoXUpsample3D(3, 5, compress_time=compress_time)
    features = torch.randn(2, 3, num_frames, 4, 6)
    with torch.no_grad():
        expected = upsample(features)
        upsampled = SubPixelUpsample(upsample)(features)
    torch.testing.assert_close(upsampled, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_decodes_like_its_single_clips() -> None:
    vae = make_vae()
    fuse_decoder(vae)
    latents = torch.randn(2, vae.config.latent_channels, 3, 4, 6)
    both = decode(vae, latents)
    each = torch.cat([decode(vae, latents[:1]), decode(vae, latents[1:])])
    torch.testing.assert_close(both, each, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_against_float64_is_no_larger_than_diffusers(dtype: torch.dtype) -> None:
    vae = make_vae()
    vae.decoder.conv_in.conv.bias.data += 30.0  # a large mean, where E[x^2] - E[x]^2 cancels
    latents = torch.randn(1, vae.config.latent_channels, 3, 6, 10)
    expected = decode(vae.double(), latents.double())
    plain = decode(vae.to(dtype), latents.to(dtype))
    fuse_decoder(vae)
    fused = decode(vae, latents.to(dtype))
    error, limit = ((frames.double() - expected).norm() for frames in (fused, plain))
    assert error < 1.5 * limit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_latent_frames", [1, 2, 3, 5])
def test_on_a_gpu_the_error_in_bfloat16_is_no_larger_than_diffusers(num_latent_frames: int) -> None:
    vae = make_vae("cogvideox_5b_i2v").cuda()
    latents = torch.randn(2, vae.config.latent_channels, num_latent_frames, 15, 20, device="cuda")
    expected = decode(vae, latents)
    vae = vae.to(torch.bfloat16)
    plain = decode(vae, latents.bfloat16())
    fuse_decoder(vae)
    fused = decode(vae, latents.bfloat16())
    assert fused.shape == plain.shape
    error, limit = ((frames.float() - expected).norm() for frames in (fused, plain))
    assert 0 < error < 1.1 * limit
