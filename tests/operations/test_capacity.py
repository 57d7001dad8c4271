"""A plan says what its rates say, and the simulated queue agrees with theory."""

import math
from pathlib import Path

import pytest

from vidgen_ray.errors import RequestError
from vidgen_ray.operations.capacity import (
    Rate,
    Scaling,
    choose_rate,
    plan_batch,
    poisson_arrivals,
    read_rates,
    simulate,
)

ROOT = Path(__file__).parents[2]
RATE = Rate("h200", None, "NVIDIA H200", clip_s=100, cpu_s=10, load_s=20, attempts_per_clip=1.0)


def fixed(num_replicas: int) -> Scaling:
    return Scaling(num_replicas, num_replicas)


def test_rates_that_ship_are_those_that_were_measured() -> None:
    rate = choose_rate(read_rates(), "h200")
    assert rate.device == "NVIDIA H200"
    assert 10 < rate.clip_s < 1000
    assert 0 < rate.cpu_s < 60
    assert choose_rate(read_rates(), None) == rate
    assert read_rates() == read_rates(str(ROOT / "PROJECT_SUMMARY.json"))


def test_each_measured_profile_has_its_rate() -> None:
    seconds = {
        profile: choose_rate(read_rates(), "h200", profile).clip_s
        for profile in ("baseline", "exact", "int8", "fp8", "fast")
    }
    assert choose_rate(read_rates(), "h200").profile == "baseline"
    assert min(seconds, key=lambda name: -seconds[name]) == "baseline"
    assert 1.5 < seconds["baseline"] / seconds["exact"] < 1.7
    with pytest.raises(RequestError, match=r"profile: no rate of 'warp' .*H200; measured: .*exact"):
        choose_rate(read_rates(), "h200", "warp")


def test_a_gpu_that_was_not_measured_is_named_with_those_that_were() -> None:
    with pytest.raises(RequestError, match=r"on a100; measured: .*H200"):
        choose_rate(read_rates(), "a100")


@pytest.mark.parametrize("content", ["", "[]", '{"batches": 3}', '{"total": 1}'])
def test_a_file_that_is_no_summary_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(RequestError, match="rates: "):
        read_rates(str(tmp_path / "summary.json"))


def test_the_fewest_gpus_that_meet_the_deadline() -> None:
    plan = plan_batch(RATE, 100, deadline_s=3600, start_s=300, price_per_gpu_hour=2.0)
    # 3600 - 300 - 20 - 10 leave 32 clips a GPU
    assert plan.num_gpus == 4
    assert plan.wall_s == 300 + 20 + 25 * 100 + 10
    assert plan.cost == pytest.approx(2 * 4 * plan.wall_s / 3600)
    fewer = 3
    assert 320 + math.ceil(100 / fewer) * 100 + 10 > 3600


def test_rejected_clips_count_and_scoring_needs_cores() -> None:
    twice = Rate("x", None, "GPU", clip_s=100, cpu_s=60, load_s=0, attempts_per_clip=2.0)
    plan = plan_batch(twice, 50, deadline_s=10_060, start_s=0, price_per_gpu_hour=None)
    assert (plan.num_gpus, plan.num_score_cores, plan.cost) == (1, 1, None)
    assert plan.wall_s == 100 * 100 + 60


def test_a_deadline_before_the_first_clip_is_refused() -> None:
    with pytest.raises(RequestError, match="deadline: must be at least 430 s"):
        plan_batch(RATE, 1, deadline_s=429, start_s=300, price_per_gpu_hour=None)


@pytest.mark.thorough
@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_replica_waits_as_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is load * clip_s / (2 (1 - load))."""
    clip_s = 10.0
    arrivals = poisson_arrivals(load * 3600 / clip_s, hours=400, seed=1)
    waiting = simulate(arrivals, clip_s, fixed(1))
    assert waiting.mean_s == pytest.approx(load * clip_s / (2 * (1 - load)), rel=0.1)
    assert waiting.utilisation == pytest.approx(load, rel=0.05)
    assert waiting.num_clips == len(arrivals)


def test_more_replicas_wait_less() -> None:
    arrivals = poisson_arrivals(60, hours=100)
    waits = [simulate(arrivals, 100, fixed(count)).p99_s for count in (2, 3, 4)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > waits[-1]


def test_from_zero_the_first_clip_waits_for_a_replica() -> None:
    scaling = Scaling(0, 2, start_s=60, upscale_delay_s=5, downscale_delay_s=30)
    waiting = simulate([0.0, 1000.0], 10, scaling)
    assert 60 <= waiting.p50_s <= 70
    assert waiting.p99_s == pytest.approx(waiting.p50_s, abs=2)  # it was let go in between
    assert waiting.mean_replicas < 0.3


def test_a_quick_upscale_helps_and_costs() -> None:
    arrivals = poisson_arrivals(90, hours=200)
    slow = simulate(arrivals, 100, Scaling(1, 8, start_s=600))
    quick = simulate(arrivals, 100, Scaling(1, 8, start_s=60))
    assert quick.p99_s < slow.p99_s


def test_no_arrivals_are_an_error() -> None:
    with pytest.raises(RequestError, match="arrivals"):
        simulate([], 10, fixed(1))
