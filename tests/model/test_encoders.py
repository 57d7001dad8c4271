"""The encoders make what the pipeline itself would make of the same clip and prompt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline
from PIL import Image

from vidgen_ray.config import ModelConfig
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.encoders import PromptEncoder, VideoEncoder, latent_scales

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(checkpoint=str(tiny_folder)))


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> CogVideoXImageToVideoPipeline:
    return CogVideoXImageToVideoPipeline.from_pretrained(tiny_folder, dtype=torch.float32)


def _frames() -> np.ndarray:
    y, x, t = np.mgrid[0:64, 0:96, 0:9]
    return np.stack([x * 2 + t * 5, y * 3, x + y], -1).transpose(2, 0, 1, 3).astype(np.uint8)


def test_prompts_are_embedded_bit_for_bit_as_in_the_pipeline(
    checkpoint: Checkpoint, pipeline: CogVideoXImageToVideoPipeline
) -> None:
    prompts = ["slow push in", "", "camera pans left over the harbour"]
    embeds, counts = PromptEncoder(checkpoint, "float32", CPU).encode(prompts)
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert torch.equal(embeds, expected)
    assert counts[1] == 1
    assert counts[2] > counts[0]


def test_a_prompt_that_is_too_long_says_so(checkpoint: Checkpoint) -> None:
    encoder = PromptEncoder(checkpoint, "float32", CPU)
    embeds, counts = encoder.encode(["push in " * 300])
    assert embeds.shape[1] == encoder.num_tokens == 226
    assert counts[0] > 226


def test_the_clean_image_gives_the_latents_that_the_pipeline_prepares(
    checkpoint: Checkpoint, pipeline: CogVideoXImageToVideoPipeline
) -> None:
    frames = _frames()
    posteriors = VideoEncoder(checkpoint, "float32", CPU, tiling=False).encode_image(
        frames[0], 2, 7
    )
    image = pipeline.video_processor.preprocess(Image.fromarray(frames[0]), height=64, width=96)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        _, expected = pipeline.prepare_latents(
            image, 1, 16, 9, 64, 96, torch.float32, CPU, generator
        )
    mean, log_variance = posteriors[0].chunk(2)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    scale = latent_scales(checkpoint)[1]
    drawn = (mean + (0.5 * log_variance).exp() * noise) * scale
    torch.testing.assert_close(drawn, expected[0, 0], atol=1e-6, rtol=1e-6)
    assert (expected[0, 1:] == 0).all()


def test_noised_images_differ_and_come_back_with_their_seed(checkpoint: Checkpoint) -> None:
    encoder, image = VideoEncoder(checkpoint, "float32", CPU, tiling=False), _frames()[0]
    first = encoder.encode_image(image, 2, 7)
    assert first.shape == (3, 32, 8, 12)
    assert len({tensor.sum().item() for tensor in first}) == 3
    assert torch.equal(first, encoder.encode_image(image, 2, 7))
    assert not torch.equal(first[1], encoder.encode_image(image, 2, 8)[1])


def test_a_clip_decodes_from_the_mean_of_its_posterior(
    checkpoint: Checkpoint, pipeline: CogVideoXImageToVideoPipeline
) -> None:
    frames = _frames()
    posterior = VideoEncoder(checkpoint, "float32", CPU, tiling=False).encode_video(frames)
    assert posterior.shape == (32, 3, 8, 12)
    pixels = pipeline.video_processor.preprocess_video([Image.fromarray(frame) for frame in frames])
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist
    assert torch.equal(posterior, torch.cat([expected.mean[0], expected.logvar[0]]))


def test_the_5b_divides_image_latents_by_the_scale_where_the_small_model_multiplies(
    checkpoint: Checkpoint,
) -> None:
    assert latent_scales(checkpoint) == (0.7, pytest.approx(1 / 0.7))
    embedded = open_checkpoint(ModelConfig(checkpoint="embedded"))
    config = json.loads((embedded.folder / "vae" / "config.json").read_text())
    assert latent_scales(embedded) == (pytest.approx(config["scaling_factor"]),) * 2


def test_a_damaged_part_is_one_clear_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint.folder, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    (broken / "text_encoder" / "model.safetensors").write_bytes(b"cut short")
    damaged = replace(checkpoint, folder=broken)
    with pytest.raises(ConfigError, match=r"model\.checkpoint: .*vae/.* cannot be read"):
        VideoEncoder(damaged, "float32", CPU, tiling=False)
    with pytest.raises(ConfigError, match=r"model\.checkpoint: .*text_encoder/.* cannot be read"):
        PromptEncoder(damaged, "float32", CPU)
