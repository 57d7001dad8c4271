"""The VAE's encoder and the text encoder, each loaded alone to turn clips into training data."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidgen_ray.config import DtypeSetting
from vidgen_ray.model.acceleration import enable_tiling
from vidgen_ray.model.checkpoint import Checkpoint, load_part, load_tokenizer
from vidgen_ray.model.device import resolve_dtype

# The noise on conditioning images that the model was trained with: sigma is log-normal, in units of
# pixels from -1 to 1 (CogVideoX, arXiv 2408.06072, and the diffusers example that trains its LoRA).
_LOG_SIGMA_MEAN, _LOG_SIGMA_STD = -3.0, 0.5


class VideoEncoder:
    """The VAE, encoding."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: DtypeSetting, device: torch.device, *, tiling: bool
    ) -> None:
        """Load the VAE of `checkpoint`. Raises ConfigError."""
        self._device = device
        resolved = resolve_dtype(dtype, device)
        self._dtype = getattr(torch, resolved)
        vae = load_part(checkpoint, "vae", resolved)
        self._vae = vae.to(device).eval().requires_grad_(False)
        if tiling:
            enable_tiling(self._vae)

    @torch.inference_mode()
    def encode_video(self, frames: np.ndarray) -> Tensor:
        """Frames, uint8 [F, H, W, 3], to the latent posterior, [2 * channels, T, h, w] on the CPU.

        The first half of the channels is the mean, the second the logarithm of the variance, before
        any scaling.
        """
        return self._posterior(self._pixels(frames).permute(3, 0, 1, 2)[None])[0]

    @torch.inference_mode()
    def encode_image(self, image: np.ndarray, num_noised: int, seed: int) -> Tensor:
        """An image, uint8 [H, W, 3], to posteriors [1 + num_noised, 2 * channels, h, w] on the CPU.

        The first is of the clean image, the others of it under Gaussian noise, each of its own
        strength, the same for the same seed and device.
        """
        clean = self._pixels(image[None]).permute(0, 3, 1, 2)
        generator = torch.Generator(self._device).manual_seed(seed)
        draw: dict[str, Any] = {"generator": generator, "device": self._device}
        strength = torch.randn(num_noised, 1, 1, 1, **draw)
        sigma = (_LOG_SIGMA_MEAN + _LOG_SIGMA_STD * strength).exp()
        noised = clean + sigma * torch.randn(num_noised, *clean.shape[1:], **draw)
        # One at a time, as the pipeline does, and to need no more memory than the clip.
        images = torch.cat([clean, noised.to(clean.dtype)])[:, :, None]
        return torch.cat([self._posterior(picture[None]) for picture in images])[:, :, 0]

    def _pixels(self, frames: np.ndarray) -> Tensor:
        # Scaled as diffusers does it, to the last bit: from 0..1 to -1..1 in float32.
        unit = torch.from_numpy(frames).to(self._device).float() / 255
        return (2 * unit - 1).to(self._dtype)

    def _posterior(self, pixels: Tensor) -> Tensor:
        distribution = self._vae.encode(pixels).latent_dist
        posterior = torch.cat([distribution.mean, distribution.logvar], dim=1)
        if not torch.isfinite(posterior).all():
            raise ArithmeticError("the VAE's latents are not finite")
        return posterior.cpu()


class PromptEncoder:
    """The tokenizer and the text encoder."""

    def __init__(self, checkpoint: Checkpoint, dtype: DtypeSetting, device: torch.device) -> None:
        """Load the text encoder of `checkpoint`. Raises ConfigError."""
        self._device = device
        self._num_tokens = checkpoint.max_text_tokens
        self._tokenizer = load_tokenizer(checkpoint)
        encoder = load_part(checkpoint, "text_encoder", resolve_dtype(dtype, device))
        self._encoder = encoder.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> tuple[Tensor, list[int]]:
        """Embeddings [len(prompts), max tokens, width] on the CPU, and each prompt's tokens.

        As in the pipeline, padding is attended to, and what exceeds the limit is not read.
        """
        ids = self._tokenizer(
            prompts,
            padding="max_length",
            max_length=self._num_tokens,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        counts = [len(tokens) for tokens in self._tokenizer(prompts).input_ids]
        embeds = self._encoder(ids.to(self._device))[0]
        return embeds.to(self._encoder.dtype).cpu(), counts

    @property
    def num_tokens(self) -> int:
        """The most tokens of a prompt that the model reads."""
        return self._num_tokens


def latent_scales(checkpoint: Checkpoint) -> tuple[float, float]:
    """What latents of clips and of conditioning images are multiplied by for the transformer.

    The released I2V weights were trained with unscaled image latents, hence `invert_scale_latents`,
    by which diffusers divides where it should multiply.
    """
    vae = checkpoint.configs.vae
    scale = vae.scaling_factor
    return scale, 1 / scale if vae.invert_scale_latents else scale
