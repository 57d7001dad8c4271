"""Draw training samples: a clip with a timestep, noise and dropout."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen_ray.config import TrainingConfig
from vidgen_ray.encoding.shards import EncodedClip


@dataclass(frozen=True)
class Sample:
    """The inputs of the loss, float32 except the embeddings; a batch has a leading axis.

    `latents`, `noise` and `condition` are [T, channels, h, w]; `condition` is the conditioning
    image in the first latent frame and zeros after it, as in the pipeline. `prompt_embeds` is
    [tokens, width] and `timestep` an int64 scalar.
    """

    latents: Tensor
    noise: Tensor
    condition: Tensor
    prompt_embeds: Tensor
    timestep: Tensor


@dataclass(frozen=True)
class SampleBuilder:
    """Draws samples; the scales map the VAE's latents to the transformer's input.

    Each sample has its own generator, seeded with the run's seed, the step and the sample's slot in
    the global batch. So a resumed run needs no random state, and the draws depend neither on the
    number of workers nor on accumulation.
    """

    training: TrainingConfig
    num_timesteps: int
    latents_scale: float
    image_latents_scale: float
    empty_prompt_embeds: Tensor

    def build(self, clip: EncodedClip, step: int, slot: int, num_slots: int) -> Sample:
        """The sample in `slot` of the `num_slots` of a step."""
        generator = torch.Generator().manual_seed(_seed(self.training.seed, step, slot))
        # Each slot draws from its own part of the timesteps: uniform overall, with less variance
        # between steps (CogVideoX, arXiv 2408.06072, section 3.2, "explicit uniform sampling").
        place = (slot + torch.rand((), generator=generator).item()) / num_slots
        timestep = min(int(place * self.num_timesteps), self.num_timesteps - 1)
        latents = _draw(clip.posterior, generator).transpose(0, 1) * self.latents_scale
        image = _draw(_choose(clip.image_posteriors, generator), generator)
        no_image, no_prompt = torch.rand(2, generator=generator).tolist()
        condition = torch.zeros_like(latents)
        if no_image >= self.training.image_dropout:
            condition[0] = image * self.image_latents_scale
        dropped = no_prompt < self.training.prompt_dropout
        return Sample(
            latents=latents.contiguous(),
            noise=torch.randn(latents.shape, generator=generator),
            condition=condition,
            prompt_embeds=self.empty_prompt_embeds if dropped else clip.prompt_embeds,
            timestep=torch.tensor(timestep),
        )


def stack(samples: Sequence[Sample], device: torch.device) -> Sample:
    """A batch of samples, on `device`."""
    fields = zip(*(vars(sample).values() for sample in samples), strict=True)
    return Sample(*(torch.stack(values).to(device) for values in fields))


def _draw(posterior: Tensor, generator: torch.Generator) -> Tensor:
    """Sample a Gaussian: [2 * channels, ...] of mean and log-variance -> [channels, ...]."""
    mean, log_variance = posterior.float().chunk(2)
    return mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)


def _choose(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of the noised images [n, ...], which follow the clean one; the clean one if alone."""
    if len(images) == 1:
        return images[0]
    return images[int(torch.randint(1, len(images), (), generator=generator))]


def _seed(*numbers: int) -> int:
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
