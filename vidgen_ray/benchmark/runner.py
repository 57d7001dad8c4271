"""The profiles beside a plain diffusers call: seconds, memory, operations, and what they change.

Everything is measured in one process and one run, one contestant after the other, so that ratios
hold whatever the machine is. Each is compared with the plain call in its own dtype.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch

from vidgen_ray.config import Config, Dtype
from vidgen_ray.errors import RequestError, VidgenError
from vidgen_ray.generation.comparison import compare
from vidgen_ray.generation.content_hash import find_profile
from vidgen_ray.generation.engine import Engine
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.stage_clock import StageClock
from vidgen_ray.generation.verdict import judge
from vidgen_ray.image_io import read_image
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
from vidgen_ray.model.stock import call_stock, load_alternative, load_stock
from vidgen_ray.provenance import versions
from vidgen_ray.schema import (
    BenchmarkReport,
    BenchmarkRow,
    GenerationRequest,
    ModelRecord,
    Spread,
    StageTimes,
    Video,
)

BASELINE = "baseline"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Clip:
    """One measured clip, whoever made it."""

    frames: np.ndarray
    latents: torch.Tensor | None
    seconds: dict[str, float]
    model: ModelRecord | None = None


Make = Callable[[GenerationRequest], Clip]


@dataclass(frozen=True)
class Contestant:
    """A way to make the clip. `start` loads it, and gives what makes the clip of a request."""

    name: str
    request: GenerationRequest
    image: np.ndarray  # the conditioning image, uint8 [height, width, 3]
    dtype: Dtype
    start: Callable[[], Make]


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
    say: Say = lambda _: None,
    on_row: Callable[[BenchmarkRow], None] = lambda _: None,
) -> tuple[BenchmarkReport, dict[str, Clip]]:
    """Measure `request` made plainly, by each profile, and by other pipelines; clips by name.

    A profile's own number of steps counts unless `config.pinned` says otherwise. The first clip
    warms up, with `warm_up_steps` steps if given, and is not counted. A contestant that fails
    keeps its row, with the error; `on_row` hears of each at once. Raises RequestError and
    ConfigError for bad input.
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
    clips: dict[str, Clip] = {}
    plain: dict[Dtype, tuple[BenchmarkRow, Clip]] = {}
    for contestant in contestants:
        say(f"{contestant.name}: loading")
        try:
            row, clip = _measure(contestant, device, config, repeat, warm_up_steps, say)
        except VidgenError as error:
            say(f"{contestant.name}: {error}")
            rows.append(_row(contestant, error=str(error)))
            on_row(rows[-1])
            continue
        if contestant.name.startswith(BASELINE):
            plain[contestant.dtype] = row, clip
        if contestant.name not in alternatives:
            row = _with_flops(row, flops, rates[contestant.dtype])
        if contestant.dtype in plain:
            row = _against(row, clip, *plain[contestant.dtype])
        rows.append(row)
        clips[row.name] = clip
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
    image = read_image(
        request.image, height=request.height, width=request.width, fit=request.image_fit
    ).pixels
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
        accelerated.append(Contestant(name, wanted, image, dtype, _engine(config)))

    def stock(dtype: Dtype) -> Contestant:
        name = BASELINE if dtype == plain_dtype else f"{BASELINE} {dtype}"
        load = lambda: load_stock(checkpoint, dtype, device)  # noqa: E731
        return Contestant(name, request, image, dtype, _plain(load, image, device))

    def other(name: str) -> Contestant:
        load = lambda: load_alternative(name, plain_dtype, device)  # noqa: E731
        return Contestant(name, request, image, plain_dtype, _plain(load, image, device))

    plain = [stock(dtype) for dtype in dict.fromkeys(dtypes)] if baseline else []
    return plain + accelerated + [other(name) for name in alternatives]


def _engine(config: Config) -> Callable[[], Make]:
    def start() -> Make:
        engine = Engine(config)

        def make(request: GenerationRequest) -> Clip:
            made = engine.generate(request)
            seconds = made.stages.model_dump(exclude_none=True, exclude={"load_s"})
            return Clip(made.video.frames, made.latents, seconds, made.model)

        return make

    return start


def _plain(
    load: Callable[[], object], pixels: np.ndarray, device: torch.device
) -> Callable[[], Make]:
    stages = {"encode_prompt": "text_s", "prepare_latents": "image_encode_s"}
    stages["decode_latents"] = "decode_s"

    def start() -> Make:
        pipeline = load()

        def make(request: GenerationRequest) -> Clip:
            clock = StageClock(device)
            with clock.stage("denoise_s"), clock.stages_of(pipeline, stages):
                clip = call_stock(pipeline, request, pixels)
            return Clip(clip.frames, clip.latents, clock.seconds)

        return make

    return start


def _measure(
    contestant: Contestant,
    device: torch.device,
    config: Config,
    repeat: int,
    warm_up_steps: int | None,
    say: Say,
) -> tuple[BenchmarkRow, Clip]:
    """The first clip warms up and counts apart; the others count."""
    begun = time.perf_counter()
    make = contestant.start()
    request = contestant.request
    few = {"num_inference_steps": warm_up_steps or request.num_inference_steps}
    make(request.model_copy(update=few))
    first_clip_s = time.perf_counter() - begun
    reset_peak_vram(device)
    clips = []
    for number in range(repeat):
        clips.append(make(request))
        total = sum(clips[-1].seconds.values())
        say(f"{contestant.name}: clip {number + 1} of {repeat} in {total:.2f} s")
    peak = peak_vram_gb(device)
    del make
    torch.compiler.reset()  # each starts from what is on the disk
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    clip = clips[-1]
    video = Video(clip.frames, contestant.request.fps)
    score = score_video(video, num_cores(), contestant.image)
    verdict, _ = judge(score, config.quality)
    model = clip.model
    accelerated = model.acceleration if model else None
    steps = contestant.request.num_inference_steps
    seconds = _spreads([{**clip.seconds, "total": sum(clip.seconds.values())} for clip in clips])
    row = _row(
        contestant,
        num_computed_steps=accelerated.num_computed_steps if accelerated else steps,
        model=model,
        seconds=seconds,
        first_clip_s=first_clip_s,
        clips_per_hour=3600 / seconds["total"].median,
        peak_vram_gb=peak,
        temporal_score=score.score,
        verdict=verdict,
    )
    return row, clip


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


def _against(row: BenchmarkRow, clip: Clip, plain: BenchmarkRow, plain_clip: Clip) -> BenchmarkRow:
    update: dict[str, object] = {
        "speedup": plain.seconds["total"].median / row.seconds["total"].median
    }
    if clip is not plain_clip and clip.frames.shape == plain_clip.frames.shape:
        latents = clip.latents
        if latents is not None and plain_clip.latents is not None:
            latents = latents if latents.shape == plain_clip.latents.shape else None
        update["difference"] = compare(clip.frames, plain_clip.frames, latents, plain_clip.latents)
    return row.model_copy(update=update)
