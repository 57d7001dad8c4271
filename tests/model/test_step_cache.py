"""The step cache reuses the residual after small changes, and never across clips."""

import torch

from vidgen_ray.model.step_cache import StepCache


def test_a_small_change_reuses_the_residual_and_a_large_one_does_not() -> None:
    cache = StepCache(0.1)
    first, rest = torch.ones(1, 4, 2), torch.full((1, 4, 2), 5.0)
    assert cache.lookup(first) is None
    cache.store(first, rest)
    assert cache.lookup(1.05 * first) is rest
    assert cache.lookup(1.2 * first) is None
    torch.testing.assert_close(torch.tensor(cache.changes), torch.tensor([0.05, 0.2]))


def test_changes_are_relative_to_the_last_computed_step() -> None:
    cache = StepCache(0.1)
    first = torch.ones(1, 4, 2)
    cache.store(first, first)
    for factor in (1.04, 1.08):
        assert cache.lookup(factor * first) is not None
    assert cache.lookup(1.12 * first) is None


def test_after_a_reset_everything_is_computed() -> None:
    cache = StepCache(0.5)
    cache.store(torch.ones(2), torch.ones(2))
    cache.reset()
    assert cache.lookup(torch.ones(2)) is None
    assert cache.changes == []


def test_ranks_decide_on_the_reduced_sums() -> None:
    cache = StepCache(0.1, all_reduce=lambda sums: sums + torch.tensor([1.0, 0.0]))
    cache.store(torch.ones(4), torch.ones(4))
    assert cache.lookup(torch.ones(4)) is None  # locally the change is 0
