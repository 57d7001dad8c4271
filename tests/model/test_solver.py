"""`SyncFreeDPM` makes the same steps as diffusers' scheduler, bit for bit."""

import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from vidgen_ray.model.solver import SyncFreeDPM
from vidgen_ray.model.untrained import SCHEDULE


def run(scheduler: CogVideoXDPMScheduler, num_steps: int, seed: int) -> torch.Tensor:
    scheduler.set_timesteps(num_steps, "cpu")
    generator = torch.Generator().manual_seed(seed)
    sample, old = torch.randn(1, 3, 4, 2, 2, generator=generator), None
    timesteps = scheduler.timesteps
    for index, timestep in enumerate(timesteps):
        output = torch.sin(3 * sample + index)
        back = timesteps[index - 1] if index else None
        sample, old = scheduler.step(
            output, old, timestep, back, sample, generator=generator, return_dict=False
        )
    return sample


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_steps_and_noise_match_diffusers(num_steps: int) -> None:
    theirs = CogVideoXDPMScheduler(**SCHEDULE)
    ours = SyncFreeDPM.from_config(theirs.config)
    for seed in (0, 1):
        assert torch.equal(run(ours, num_steps, seed), run(theirs, num_steps, seed))


def test_an_interrupted_clip_leaves_no_state() -> None:
    scheduler = SyncFreeDPM(**SCHEDULE)
    expected = run(scheduler, 5, seed=2)
    scheduler.set_timesteps(9, "cpu")
    sample = torch.zeros(1, 3, 4, 2, 2)
    generator = torch.Generator().manual_seed(9)
    scheduler.step(sample, None, 999, None, sample, generator=generator)
    assert torch.equal(run(scheduler, 5, seed=2), expected)
