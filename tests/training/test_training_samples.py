"""What is drawn for a sample depends on the seed, the step and the slot, and on nothing else."""

import torch

from vidgen_ray.config import TrainingConfig
from vidgen_ray.encoding.shards import EncodedClip
from vidgen_ray.training.samples import SampleBuilder, stack


def _clip(num_noised: int = 2, log_variance: float = -30.0) -> EncodedClip:
    """Means count up; with a log-variance of -30 a draw is the mean."""
    mean = torch.arange(3 * 2 * 4 * 4, dtype=torch.float32).view(3, 2, 4, 4)
    posterior = torch.cat([mean, torch.full_like(mean, log_variance)])
    means = torch.stack([torch.full((3, 4, 4), 100.0 * index) for index in range(1 + num_noised)])
    images = torch.cat([means, torch.full_like(means, log_variance)], dim=1)
    return EncodedClip(posterior, images, torch.ones(5, 8))


def _builder(**training: object) -> SampleBuilder:
    settings = TrainingConfig(**{"image_dropout": 0, "prompt_dropout": 0, **training})  # type: ignore[arg-type]
    return SampleBuilder(settings, 1000, 0.5, 2.0, torch.zeros(5, 8))


def test_latents_are_scaled_and_the_image_stands_in_the_first_frame_alone() -> None:
    sample = _builder().build(_clip(num_noised=0), step=3, slot=0, num_slots=1)
    assert sample.latents.shape == sample.noise.shape == sample.condition.shape == (2, 3, 4, 4)
    expected = torch.arange(96.0).view(3, 2, 4, 4).transpose(0, 1) * 0.5
    torch.testing.assert_close(sample.latents, expected, atol=1e-4, rtol=0)
    assert sample.condition[0].abs().max() < 1e-4  # the clean image's mean is 0
    assert (sample.condition[1:] == 0).all()


def test_a_noised_image_is_chosen_where_there_are_some() -> None:
    drawn = {
        round(_builder().build(_clip(), step, 0, 1).condition[0].mean().item())
        for step in range(30)
    }
    assert drawn == {200, 400}  # twice the means 100 and 200; never the clean image


def test_the_posterior_is_sampled_with_its_variance() -> None:
    samples = [_builder().build(_clip(log_variance=0.0), step, 0, 1).latents for step in range(200)]
    spread = torch.stack(samples).std(dim=0).mean().item()
    assert abs(spread - 0.5) < 0.02  # a standard deviation of 1, scaled by 0.5


def test_the_same_place_draws_the_same_and_another_place_another() -> None:
    clip, builder = _clip(), _builder()
    first = builder.build(clip, 5, 1, 2)
    again = builder.build(clip, 5, 1, 2)
    torch.testing.assert_close(vars(first), vars(again), atol=0, rtol=0)
    for other in (
        builder.build(clip, 6, 1, 2),
        builder.build(clip, 5, 0, 2),
        _builder(seed=1).build(clip, 5, 1, 2),
    ):
        assert not torch.equal(first.noise, other.noise)


def test_the_slots_of_a_step_divide_the_timesteps_evenly() -> None:
    for step in range(20):
        drawn = [int(_builder().build(_clip(), step, slot, 4).timestep) for slot in range(4)]
        assert [value // 250 for value in drawn] == [0, 1, 2, 3]


def test_image_and_prompt_are_dropped_as_often_as_asked() -> None:
    builder = _builder(image_dropout=0.2, prompt_dropout=0.4)
    samples = [builder.build(_clip(), step, 0, 1) for step in range(400)]
    no_image = sum((sample.condition == 0).all().item() for sample in samples)
    no_prompt = sum((sample.prompt_embeds == 0).all().item() for sample in samples)
    assert 55 < no_image < 105
    assert 130 < no_prompt < 190
    batch = stack(samples[:3], torch.device("cpu"))
    assert batch.latents.shape == (3, 2, 3, 4, 4)
    assert batch.timestep.shape == (3,)
