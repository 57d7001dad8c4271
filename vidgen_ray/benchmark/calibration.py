"""Choose the steps and the step cache's threshold of a profile on the model's own weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import yaml

from vidgen_ray.config import Config, Profile
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.clip_engine import Generation
from vidgen_ray.generation.engine import Engine
from vidgen_ray.generation.image_match import psnr_db
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import judge
from vidgen_ray.model.device import num_cores
from vidgen_ray.schema import GenerationRequest

_NAME = "candidate"


@dataclass(frozen=True)
class Trial:
    """A candidate over all requests. `psnr_db` is the worst, None where all frames are equal;
    `same_verdict` is that of the baseline for every clip. Times are sums."""

    num_inference_steps: int
    step_cache: float | None
    num_computed_steps: int
    denoise_s: float
    psnr_db: float | None
    same_verdict: bool

    def passes(self, min_psnr_db: float) -> bool:
        return self.same_verdict and (self.psnr_db is None or self.psnr_db >= min_psnr_db)


def calibrate(
    config: Config,
    requests: Sequence[GenerationRequest],
    *,
    profile: Profile,
    steps: Sequence[int],
    thresholds: Sequence[float | None],
    min_psnr_db: float,
    log: Callable[[str], None] = lambda _: None,
) -> list[Trial]:
    """Try every pair of `steps` and `thresholds` on top of `profile`, against the baseline clips of
    `requests` with the same seeds.

    A candidate that fails on one request is not tried on the others. Raises RequestError and
    EngineError.
    """
    if not requests or not steps or not thresholds:
        raise RequestError("calibrate: needs a request, a number of steps and a threshold at least")
    tree = config.model_copy(update={"profiles": {_NAME: profile}})
    engine = Engine(tree)
    expected = []
    for request in requests:
        plain = request.model_copy(update={"mode": "baseline", "profile": None})
        made = engine.generate(plain)
        expected.append((made.video.frames, _verdict(made, config), made.stages.denoise_s or 0.0))
        log(f"{request.id}: baseline, {expected[-1][2]:.1f} s of denoising, {expected[-1][1]}")
    trials = []
    for num_steps in steps:
        for threshold in thresholds:
            changed = profile.model_copy(update={"step_cache": threshold})
            engine.config = tree.model_copy(update={"profiles": {_NAME: changed}})
            trial = _try(engine, requests, expected, num_steps, threshold, min_psnr_db)
            quality = "equal" if trial.psnr_db is None else f"{trial.psnr_db:.1f} dB"
            log(
                f"{num_steps} steps, step_cache {threshold or 'off'}: {trial.num_computed_steps} "
                f"computed, {quality}, {'same' if trial.same_verdict else 'another'} verdict, "
                f"{trial.denoise_s:.1f} s: "
                f"{'passes' if trial.passes(min_psnr_db) else 'fails'}"
            )
            trials.append(trial)
    return trials


def choose(trials: Sequence[Trial], min_psnr_db: float) -> Trial | None:
    """The quickest trial that passes: fewest computed steps, then least time."""
    passing = [trial for trial in trials if trial.passes(min_psnr_db)]
    return min(passing, key=lambda trial: (trial.num_computed_steps, trial.denoise_s), default=None)


def as_profile(name: str, profile: Profile, trial: Trial) -> str:
    """The profile with the trial's settings, as YAML for a configuration file."""
    chosen = profile.model_copy(
        update={"num_inference_steps": trial.num_inference_steps, "step_cache": trial.step_cache}
    )
    return yaml.safe_dump({"profiles": {name: chosen.model_dump(exclude_defaults=True)}})


def _try(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    expected: Sequence[tuple[object, str, float]],
    num_steps: int,
    threshold: float | None,
    min_psnr_db: float,
) -> Trial:
    update = {"mode": "optimized", "profile": _NAME, "num_inference_steps": num_steps}
    worst: float | None = None
    computed, denoise_s = [], 0.0
    for request, (frames, verdict, _) in zip(requests, expected, strict=True):
        made = engine.generate(request.model_copy(update=update))
        assert made.model.acceleration is not None
        computed.append(made.model.acceleration.num_computed_steps)
        denoise_s += made.stages.denoise_s or 0.0
        quality = psnr_db(made.video.frames, frames)  # type: ignore[arg-type]
        if quality is not None:
            worst = quality if worst is None else min(worst, quality)
        same = _verdict(made, engine.config) == verdict
        trial = Trial(num_steps, threshold, max(computed), denoise_s, worst, same)
        if not trial.passes(min_psnr_db):
            break
    return trial


def _verdict(made: Generation, config: Config) -> str:
    score = score_video(made.video, num_cores(), made.image.pixels)
    return judge(score, config.quality)[0]
