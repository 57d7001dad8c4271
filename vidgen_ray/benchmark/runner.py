"""The profiles measured beside a plain diffusers call: seconds, memory, FLOPs, and differences.

Everything is measured in one process and one run, one contestant after the other, so that ratios
hold on any machine. Each is compared with the plain call in its own dtype.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch

from vidgen_ray.benchmark.difference import compare
from vidgen_ray.benchmark.stock_engine import StockEngine
from vidgen_ray.config import Config, Dtype
from vidgen_ray.errors import RequestError, VidgenError
from vidgen_ray.generation.clip_engine import ClipEngine, Generation
from vidgen_ray.generation.content_hash import find_profile
from vidgen_ray.generation.engine import Engine
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import judge
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.device import (
    choose_device,
    describe_device,
    num_cores,
    peak_vram_gb,
    reset_peak_vram,
    resolve_dtype,
    use_cpu,
)
from vidgen_ray.model.flops import ClipFlops, count_flops, matrix_rate
from vidgen_ray.model.stock import load_alternative, load_stock
from vidgen_ray.provenance import versions
from vidgen_ray.request import GenerationRequest
from vidgen_ray.schema import BenchmarkReport, BenchmarkRow, Spread, StageTimes

BASELINE = "baseline"

Log = Callable[[str], None]


@dataclass(frozen=True)
class Contestant:
    """A way to make the clip: the engine that `open_engine` loads, and the request it is given."""

    name: str
    request: GenerationRequest
    dtype: Dtype
    open_engine: Callable[[], ClipEngine]


def run_benchmark(
    config: Config,
    config_name: str,
    request: GenerationRequest,
    *,
    profiles: Sequence[str] = (),
    baseline: bool = True,
    alternatives: Sequence[str] = (),
    repeat: int = 3,
    warm_up_steps: int | None = None,
    log: Log = lambda _: None,
    on_row: Callable[[BenchmarkRow], None] = lambda _: None,
) -> tuple[BenchmarkReport, dict[str, Generation]]:
    """Measure `request` made plainly, by each profile, and by other pipelines; clips by name.

    A profile's own number of steps counts unless `config.pinned` says otherwise. The first clip
    warms up, with `warm_up_steps` steps if given, and is not counted. A contestant that fails
    keeps its row, with the error; `on_row` is called with each as it is done. Raises RequestError
    and ConfigError for bad input.
    """
    checkpoint = open_checkpoint(config.model)
    checkpoint.check_request(request)
    device = choose_device(config.model.device)
    if device.type == "cpu":
        use_cpu(config.model.cpu_threads, config.model.dtype)
    contestants = _contestants(
        config, checkpoint, device, request, profiles, baseline, alternatives
    )
    if not contestants:
        raise RequestError("profile: name at least one, or use --mode baseline or both")
    flops = count_flops(checkpoint, request)
    rates = {
        dtype: matrix_rate(device, getattr(torch, dtype)) / 1e12
        for dtype in {contestant.dtype for contestant in contestants}
    }
    rows: list[BenchmarkRow] = []
    clips: dict[str, Generation] = {}
    plain: dict[Dtype, tuple[BenchmarkRow, Generation]] = {}
    for contestant in contestants:
        log(f"{contestant.name}: loading")
        try:
            row, clip = _measure(contestant, device, config, repeat, warm_up_steps, log)
        except VidgenError as error:
            log(f"{contestant.name}: {error}")
            row = _row(contestant, error=str(error))
        else:
            clips[row.name] = clip
            if contestant.name.startswith(BASELINE):
                plain[contestant.dtype] = row, clip
            if contestant.name not in alternatives:
                row = _with_flops(row, flops, rates[contestant.dtype])
            if contestant.dtype in plain:
                row = _against(row, clip, *plain[contestant.dtype])
        rows.append(row)
        on_row(row)
    report = BenchmarkReport(
        created_at=datetime.now(UTC),
        config=config_name,
        request=request,
        repeat=repeat,
        device=describe_device(device),
        versions=versions(),
        matrix_tflop_per_s=rates,
        rows=rows,
    )
    return report, clips


def _contestants(
    config: Config,
    checkpoint: Checkpoint,
    device: torch.device,
    request: GenerationRequest,
    profiles: Sequence[str],
    baseline: bool,
    alternatives: Sequence[str],
) -> list[Contestant]:
    """The baseline in every dtype that is needed, then the profiles, then the others."""
    plain_dtype = resolve_dtype(config.model.dtype, device)
    dtypes: list[Dtype] = [plain_dtype]
    accelerated = []
    for name in profiles:
        wanted = request.model_copy(update={"mode": "optimized", "profile": name})
        profile = find_profile(wanted, config)
        assert profile is not None
        if profile.num_inference_steps and "num_inference_steps" not in config.pinned:
            update = {"num_inference_steps": profile.num_inference_steps}
            wanted = wanted.model_copy(update=update)
        dtype = resolve_dtype(config.model.under(profile).dtype, device)
        dtypes.append(dtype)
        accelerated.append(Contestant(name, wanted, dtype, partial(Engine, config)))

    def stock(dtype: Dtype) -> Contestant:
        name = BASELINE if dtype == plain_dtype else f"{BASELINE} {dtype}"
        load = partial(load_stock, checkpoint, dtype, device)
        engine = partial(StockEngine, checkpoint, load, checkpoint.source, dtype, device)
        return Contestant(name, request, dtype, engine)

    def other(name: str) -> Contestant:
        load = partial(load_alternative, name, plain_dtype, device)
        engine = partial(StockEngine, checkpoint, load, name, plain_dtype, device)
        return Contestant(name, request, plain_dtype, engine)

    plain = [stock(dtype) for dtype in dict.fromkeys(dtypes)] if baseline else []
    return plain + accelerated + [other(name) for name in alternatives]


def _measure(
    contestant: Contestant,
    device: torch.device,
    config: Config,
    repeat: int,
    warm_up_steps: int | None,
    log: Log,
) -> tuple[BenchmarkRow, Generation]:
    """The row and the last clip of a contestant. The first clip warms up and counts apart."""
    begun = time.perf_counter()
    engine = contestant.open_engine()
    request = contestant.request
    few = {"num_inference_steps": warm_up_steps or request.num_inference_steps}
    engine.generate(request.model_copy(update=few))
    first_clip_s = time.perf_counter() - begun
    reset_peak_vram(device)
    clips = []
    for number in range(repeat):
        clips.append(engine.generate(request))
        total_s = _seconds(clips[-1])["total"]
        log(f"{contestant.name}: clip {number + 1} of {repeat} in {total_s:.2f} s")
    peak = peak_vram_gb(device)
    engine.close()
    torch.compiler.reset()  # each contestant starts from the compile cache on disk
    seconds = _spreads([_seconds(clip) for clip in clips])
    row = _row(
        contestant,
        seconds=seconds,
        first_clip_s=first_clip_s,
        clips_per_hour=3600 / seconds["total"].median,
        peak_vram_gb=peak,
        **_facts(clips[-1], request, config),
    )
    return row, clips[-1]


def _facts(clip: Generation, request: GenerationRequest, config: Config) -> dict[str, object]:
    """What the clip itself says: its model, its steps, its score and verdict."""
    score = score_video(clip.video, num_cores(), clip.image.pixels)
    steps = request.num_inference_steps
    acceleration = clip.model.acceleration
    return {
        "num_computed_steps": acceleration.num_computed_steps if acceleration else steps,
        "model": clip.model,
        "temporal_score": score.score,
        "verdict": judge(score, config.quality)[0],
    }


def _seconds(clip: Generation) -> dict[str, float]:
    """Seconds by stage, and their total, without the time to load."""
    stages: dict[str, float] = clip.stages.model_dump(exclude_none=True, exclude={"load_s"})
    return {**stages, "total": sum(stages.values())}


def _row(contestant: Contestant, **measured: object) -> BenchmarkRow:
    return BenchmarkRow.model_validate(
        {
            "name": contestant.name,
            "dtype": contestant.dtype,
            "num_inference_steps": contestant.request.num_inference_steps,
            **measured,
        }
    )


def _spreads(times: list[dict[str, float]]) -> dict[str, Spread]:
    names = [*(name for name in StageTimes.model_fields if name in times[0]), "total"]
    return {
        name: Spread(least=min(values), median=statistics.median(values), most=max(values))
        for name in names
        for values in [[seconds[name] for seconds in times]]
    }


def _with_flops(row: BenchmarkRow, flops: ClipFlops, rate: float) -> BenchmarkRow:
    """Steps from the step cache cost one block."""
    assert row.num_computed_steps is not None
    skipped = row.num_inference_steps - row.num_computed_steps
    denoise = (row.num_computed_steps * flops.step + skipped * flops.block) / 1e12
    utilisation = denoise / row.seconds["denoise_s"].median / rate
    tflop = denoise + flops.decode / 1e12
    return row.model_copy(update={"tflop": tflop, "utilisation": utilisation})


def _against(
    row: BenchmarkRow, clip: Generation, plain: BenchmarkRow, plain_clip: Generation
) -> BenchmarkRow:
    update: dict[str, object] = {
        "speedup": plain.seconds["total"].median / row.seconds["total"].median
    }
    if clip is not plain_clip and clip.video.frames.shape == plain_clip.video.frames.shape:
        latents = clip.latents
        if latents is not None and plain_clip.latents is not None:
            latents = latents if latents.shape == plain_clip.latents.shape else None
        update["difference"] = compare(
            clip.video.frames, plain_clip.video.frames, latents, plain_clip.latents
        )
    return row.model_copy(update=update)
