"""GPUs, hours and money that clips take, computed from measured rates."""

import heapq
import json
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vidgen_ray.addresses import one_line
from vidgen_ray.errors import RequestError
from vidgen_ray.schema import BatchSummary, ProjectSummary

_TICK_S = 1.0
_HOUR_S = 3600.0


SHIPPED_RATES = Path(__file__).parent / "rates.json"


@dataclass(frozen=True)
class Rate:
    """What a clip takes: seconds of a GPU, seconds of a CPU core beside it, seconds to load.

    `attempts_per_clip` counts the retries of rejected clips. `profile` is None where a summary does
    not name it.
    """

    name: str
    profile: str | None
    device: str
    clip_s: float
    cpu_s: float
    load_s: float
    attempts_per_clip: float


@dataclass(frozen=True)
class CapacityPlan:
    """What a batch on `num_gpus` GPUs takes."""

    num_gpus: int
    wall_s: float
    gpu_hours: float
    cost: float | None
    num_score_cores: int


@dataclass(frozen=True)
class Scaling:
    """Autoscaling of replicas; the fields are those of Serve's `autoscaling_config`.

    `start_s` is the time from the decision to a ready replica: starting a node, loading weights.
    """

    min_replicas: int = 1
    max_replicas: int = 8
    start_s: float = 0.0
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 300.0


@dataclass(frozen=True)
class Waiting:
    """Seconds that clips waited in the queue, and the replicas that this took."""

    num_clips: int
    p50_s: float
    p99_s: float
    mean_s: float
    mean_replicas: float
    utilisation: float


def read_rates(path: str | None = None) -> list[Rate]:
    """The rates in a `PROJECT_SUMMARY.json`, or in the `summary.json` of a batch.

    By default those that ship with the package. Raises RequestError.
    """
    if path is None:
        return [Rate(**rate) for rate in json.loads(SHIPPED_RATES.read_text())]
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"rates: cannot be read: {path}: {error}; name a PROJECT_SUMMARY.json or the "
            "summary.json of a batch with --rates"
        ) from None
    try:
        if "batches" in tree:
            return _project_rates(ProjectSummary.model_validate(tree))
        return _batch_rates({Path(path).parent.name: BatchSummary.model_validate(tree)})
    except (ValidationError, TypeError) as error:
        raise RequestError(f"rates: {path} is no summary: {one_line(error)}") from None


def rates_on(rates: Sequence[Rate], gpu: str | None) -> list[Rate]:
    """The rates whose device or name holds `gpu`, in any case; by default those of GPUs.

    Raises RequestError where there is none.
    """
    found = [
        rate
        for rate in rates
        if (gpu or "").lower() in f"{rate.name} {rate.device}".lower()
        and (gpu or not rate.device.startswith("CPU"))
    ]
    if not found:
        known = ", ".join(dict.fromkeys(f"{rate.device} ({rate.name})" for rate in rates)) or "none"
        raise RequestError(
            f"gpu: no rate was measured on {gpu or 'a GPU'}; measured: {known}. Run a small batch "
            "there and name its summary.json with --rates"
        )
    return found


def choose_rate(rates: Sequence[Rate], gpu: str | None, profile: str | None = None) -> Rate:
    """The first rate of `rates_on` with `profile`, by default the first of all.

    Raises RequestError.
    """
    there = rates_on(rates, gpu)
    for rate in there:
        if profile in (None, rate.profile):
            return rate
    known = ", ".join(rate.profile for rate in there if rate.profile) or "none"
    raise RequestError(
        f"profile: no rate of {profile!r} was measured on {there[0].device}; measured: {known}. "
        "Run a small batch with it and name its summary.json with --rates"
    )


def plan_batch(
    rate: Rate,
    num_clips: int,
    *,
    deadline_s: float,
    start_s: float,
    price_per_gpu_hour: float | None,
) -> CapacityPlan:
    """The fewest GPUs that generate `num_clips` within `deadline_s`; a GPU is up after `start_s`.

    A worker generates one clip after the other while CPUs score. Raises RequestError where no
    number of GPUs is enough.
    """
    num_attempts = math.ceil(num_clips * rate.attempts_per_clip)
    begin_s = start_s + rate.load_s
    rounds = int((deadline_s - begin_s - rate.cpu_s) // rate.clip_s)
    if rounds < 1:
        least = begin_s + rate.clip_s + rate.cpu_s
        raise RequestError(
            f"deadline: must be at least {least:.0f} s, the time of the first clip, got "
            f"{deadline_s:.0f} s"
        )
    num_gpus = math.ceil(num_attempts / rounds)
    wall_s = begin_s + math.ceil(num_attempts / num_gpus) * rate.clip_s + rate.cpu_s
    gpu_hours = num_gpus * wall_s / _HOUR_S
    return CapacityPlan(
        num_gpus=num_gpus,
        wall_s=wall_s,
        gpu_hours=gpu_hours,
        cost=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
        num_score_cores=math.ceil(num_gpus * rate.cpu_s / rate.clip_s),
    )


def poisson_arrivals(per_hour: float, hours: float, seed: int = 0) -> list[float]:
    """Random request times in seconds, a Poisson process with this mean rate."""
    source = random.Random(seed)
    times, now = [], source.expovariate(per_hour / _HOUR_S)
    while now < hours * _HOUR_S:
        times.append(now)
        now += source.expovariate(per_hour / _HOUR_S)
    return times


def simulate(arrivals: Sequence[float], clip_s: float, scaling: Scaling) -> Waiting:
    """Simulate a first-in-first-out queue of requests at `arrivals` (seconds, ascending).

    A replica generates one clip at a time, in `clip_s`. Once a second the target is the number of
    waiting and running clips, within the limits; a higher target for `upscale_delay_s` starts
    replicas, a lower one for `downscale_delay_s` stops idle ones. Raises RequestError.
    """
    if not arrivals:
        raise RequestError("arrivals: no request in the simulated time; simulate more hours")
    free = [0.0] * scaling.min_replicas  # when each replica can begin its next clip
    queue: deque[float] = deque()
    waits: list[float] = []
    ends: list[float] = []  # of the clips that run
    above = below = replica_s = now = 0.0
    coming = iter(arrivals)
    following = next(coming, None)
    while following is not None or queue or ends:
        now += _TICK_S
        while following is not None and following <= now:
            queue.append(following)
            following = next(coming, None)
        while queue and free and max(free[0], queue[0]) <= now:
            asked = queue.popleft()
            begun = max(asked, heapq.heappop(free))
            waits.append(begun - asked)
            heapq.heappush(free, begun + clip_s)
            heapq.heappush(ends, begun + clip_s)
        while ends and ends[0] <= now:
            heapq.heappop(ends)
        wanted = min(scaling.max_replicas, max(scaling.min_replicas, len(queue) + len(ends)))
        above = above + _TICK_S if wanted > len(free) else 0.0
        below = below + _TICK_S if wanted < len(free) else 0.0
        if above >= scaling.upscale_delay_s and wanted > len(free):
            for _ in range(wanted - len(free)):
                heapq.heappush(free, now + scaling.start_s)
            above = 0.0
        elif below >= scaling.downscale_delay_s:
            free = _stop_idle(free, wanted, now)
            below = 0.0
        replica_s += len(free) * _TICK_S
    waits.sort()
    return Waiting(
        num_clips=len(waits),
        p50_s=_quantile(waits, 0.5),
        p99_s=_quantile(waits, 0.99),
        mean_s=sum(waits) / len(waits),
        mean_replicas=replica_s / now,
        utilisation=len(waits) * clip_s / replica_s,
    )


def _stop_idle(free: list[float], wanted: int, now: float) -> list[float]:
    idle = sorted(time for time in free if time <= now)
    kept = [time for time in free if time > now] + idle[len(free) - wanted :]
    heapq.heapify(kept)
    return kept


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def _batch_rates(batches: dict[str, BatchSummary]) -> list[Rate]:
    return [rate for name, batch in batches.items() if (rate := _rate(name, batch)) is not None]


def _rate(name: str, summary: BatchSummary) -> Rate | None:
    stages: dict[str, Any] = summary.median_stages.model_dump()
    on_device = ("text_s", "image_encode_s", "denoise_s", "decode_s")
    if stages["denoise_s"] is None or not summary.devices or summary.total == 0:
        return None
    is_baseline = summary.model is not None and summary.model.acceleration is None
    return Rate(
        name=name,
        profile="baseline" if is_baseline else None,
        device=summary.devices[0],
        clip_s=sum(stages[stage] or 0.0 for stage in on_device),
        cpu_s=(stages["score_s"] or 0.0) + (stages["save_s"] or 0.0),
        load_s=stages["load_s"] or 0.0,
        attempts_per_clip=max(1.0, summary.made / summary.total),
    )


def _project_rates(project: ProjectSummary) -> list[Rate]:
    """Those of the batches; then of each profile that a benchmark measured on such a device.

    A benchmark times the device alone: CPU and load times are the batch's.
    """
    rates = _batch_rates(project.batches)
    beside = {rate.device: rate for rate in rates}
    for name, report in project.benchmarks.items():
        for row in report.rows:
            batch = beside.get(report.device)
            if batch is None or row.error or "total" not in row.seconds or row.name == "baseline":
                continue
            clip_s = row.seconds["total"].median
            rates.append(replace(batch, name=name, profile=row.name, clip_s=clip_s))
    return rates
