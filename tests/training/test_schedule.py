"""Which clips go into which step does not depend on how many workers share it."""

import pytest

from vidgen_ray.config import TrainingConfig
from vidgen_ray.training.schedule import TrainingSchedule


def _schedule(num_clips: int = 7, num_workers: int = 1, **training: object) -> TrainingSchedule:
    return TrainingSchedule(TrainingConfig(**training), num_clips, num_workers)  # type: ignore[arg-type]


def test_each_clip_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    schedule = _schedule(num_clips=6, gradient_accumulation_steps=2, num_epochs=2)
    assert (schedule.steps_per_epoch, schedule.num_steps) == (3, 6)
    epochs = [
        [clip for step in steps for clip in schedule.clips_of(step)]
        for steps in ((0, 1, 2), (3, 4, 5))
    ]
    assert [sorted(clips) for clips in epochs] == [list(range(6))] * 2
    assert epochs[0] != epochs[1]
    assert schedule.clips_of(4) == _schedule(num_clips=6, gradient_accumulation_steps=2).clips_of(4)


def test_an_epoch_that_does_not_divide_fills_its_last_step_with_its_first_clips() -> None:
    schedule = _schedule(num_clips=5, gradient_accumulation_steps=2)
    assert schedule.steps_per_epoch == 3
    assert schedule.clips_of(2)[1] == schedule.clips_of(0)[0]


def test_fewer_clips_than_a_step_takes_are_repeated() -> None:
    assert sorted(_schedule(num_clips=2, batch_size=5).clips_of(0)) in (
        [0, 0, 0, 1, 1],
        [0, 0, 1, 1, 1],
    )


def test_two_workers_take_the_slots_that_one_accumulates() -> None:
    one = _schedule(gradient_accumulation_steps=2, batch_size=2)
    two = _schedule(num_workers=2, batch_size=2)
    assert one.global_batch == two.global_batch == 4
    assert [list(one.slots_of(0, k)) for k in (0, 1)] == [list(two.slots_of(r, 0)) for r in (0, 1)]
    assert one.clips_of(3) == two.clips_of(3)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    schedule = _schedule(num_clips=100, num_epochs=1, warmup_steps=10, learning_rate=1.0)
    rates = [schedule.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5, abs=0.02)
    assert rates == [*rates[:10], *sorted(rates[10:], reverse=True)]
    assert 0 < rates[-1] < 0.001
    constant = _schedule(num_clips=100, warmup_steps=10, learning_rate=1.0, schedule="constant")
    assert constant.learning_rate(99) == 1.0


def test_max_steps_ends_an_epoch_early() -> None:
    schedule = _schedule(num_clips=10, num_epochs=3, max_steps=14)
    assert (schedule.num_steps, schedule.num_epochs) == (14, 2)
    assert [step for step in range(14) if schedule.ends_epoch(step)] == [9, 13]
