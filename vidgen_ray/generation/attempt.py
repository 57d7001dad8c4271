"""One attempt at a clip as typed steps: to make, prepared, generated, scored, or failed."""

import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np

from vidgen_ray.config import Config, QualityConfig
from vidgen_ray.generation.clip_engine import Cancelled, ClipEngine, Generation, OnStep
from vidgen_ray.generation.content_hash import hash_content
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import judge
from vidgen_ray.image_io import ConditioningImage, read_request_image
from vidgen_ray.provenance import versions
from vidgen_ray.request import GenerationRequest, attempt_seed
from vidgen_ray.schema import ErrorRecord, GenerationRecord, ImageRecord, TemporalScore

if TYPE_CHECKING:
    from vidgen_ray.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class Attempt:
    """An attempt to make, counted from 1. Attempts with equal `content_hash` make one clip."""

    request: GenerationRequest
    number: int
    run_id: str
    content_hash: str = ""

    @property
    def id(self) -> str:
        """The clip's id."""
        return self.request.id

    @property
    def seed(self) -> int:
        """This attempt's own seed."""
        return attempt_seed(self.request.seed, self.number)

    def retry(self) -> "Attempt":
        """The attempt after this one."""
        return replace(self, number=self.number + 1)


@dataclass(frozen=True)
class PreparedAttempt:
    """An attempt whose conditioning image is read."""

    attempt: Attempt
    image: ConditioningImage


@dataclass(frozen=True)
class GeneratedAttempt:
    """An attempt with its clip; `versions` are of the machine that made it."""

    attempt: Attempt
    generation: Generation
    versions: dict[str, str]


@dataclass(frozen=True)
class ScoredAttempt:
    """An attempt with its clip and verdict: accepted where there are no `reasons` against it.

    `score` is None for a clip that could not be scored, which is rejected.
    """

    attempt: Attempt
    generation: Generation
    versions: dict[str, str]
    score: TemporalScore | None
    reasons: list[str]
    score_s: float

    @property
    def accepted(self) -> bool:
        """The verdict."""
        return not self.reasons


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt that ended without a clip."""

    attempt: Attempt
    error: ErrorRecord
    image: ConditioningImage | None = None
    status: Literal["failed", "quarantined"] = "failed"
    versions: dict[str, str] = field(default_factory=versions)


def prepare(attempt: Attempt) -> PreparedAttempt:
    """Read the conditioning image. Raises RequestError."""
    request = attempt.request
    image = read_request_image(request)
    return PreparedAttempt(attempt, image)


def with_content_hash(
    prepared: PreparedAttempt, config: Config, checkpoint: "Checkpoint"
) -> PreparedAttempt:
    """The attempt with the hash of its content. Raises RequestError for an adapter at fault."""
    from vidgen_ray.model.adapters import open_adapter  # torch and diffusers, which take seconds

    attempt = prepared.attempt
    lora = attempt.request.lora
    adapter_sha256 = open_adapter(lora, checkpoint).sha256 if lora else None
    digest = hash_content(
        attempt.request, prepared.image.sha256, adapter_sha256, config, checkpoint
    )
    return replace(prepared, attempt=replace(attempt, content_hash=digest))


def generate(
    engine: ClipEngine,
    prepared: PreparedAttempt,
    on_step: OnStep | None = None,
    cancelled: Cancelled | None = None,
    timeout_s: float | None = None,
) -> GeneratedAttempt:
    """Make the clip with this attempt's own seed. Raises what `ClipEngine.generate` raises."""
    attempt = prepared.attempt
    request = attempt.request.model_copy(update={"seed": attempt.seed})
    generation = engine.generate(
        request, on_step, cancelled, image=prepared.image, timeout_s=timeout_s
    )
    return GeneratedAttempt(attempt, replace(generation, latents=None), versions())


def score(generated: GeneratedAttempt, quality: QualityConfig, num_threads: int) -> ScoredAttempt:
    """Measure and judge the clip. One that cannot be scored is rejected with the reason."""
    start = time.perf_counter()
    generation = generated.generation
    measured: TemporalScore | None = None
    try:
        measured = score_video(generation.video, num_threads, generation.image.pixels)
        _, reasons = judge(measured, quality)
    except Exception as error:  # the clip exists, so a person can look at it
        reasons = [f"scoring failed: {type(error).__name__}: {error}"]
    return ScoredAttempt(
        generated.attempt,
        generation,
        generated.versions,
        measured,
        reasons,
        time.perf_counter() - start,
    )


def fail(
    attempt: Attempt, error: Exception, stage: str, image: ConditioningImage | None = None
) -> FailedAttempt:
    """The attempt that `error` ended in `stage`."""
    return FailedAttempt(
        attempt, ErrorRecord(kind=type(error).__name__, message=str(error), stage=stage), image
    )


def to_record(ended: ScoredAttempt | FailedAttempt) -> GenerationRecord:
    """Everything known about an attempt, but for the files that are made of it."""
    attempt = ended.attempt
    common = {
        "id": attempt.id,
        "content_hash": attempt.content_hash,
        "request": attempt.request,
        "seed": attempt.seed,
        "attempt": attempt.number,
        "created_at": datetime.now(UTC),
        "run_id": attempt.run_id,
        "versions": ended.versions,
    }
    if isinstance(ended, FailedAttempt):
        image = ended.image and _image_record(attempt.request, ended.image)
        return GenerationRecord(**common, status=ended.status, image=image, error=ended.error)
    generation = ended.generation
    return GenerationRecord(
        **common,
        status="accepted" if ended.accepted else "needs_review",
        image=_image_record(attempt.request, generation.image),
        model=generation.model,
        adapter=generation.adapter,
        stages=generation.stages.model_copy(update={"score_s": ended.score_s}),
        peak_vram_gb=generation.peak_vram_gb,
        stage_peaks_gb=generation.stage_peaks_gb,
        device=generation.device,
        score=ended.score,
        reasons=ended.reasons,
    )


def image_pixels(ended: ScoredAttempt | FailedAttempt) -> np.ndarray | None:
    """The conditioning image, uint8 [height, width, 3]; None where it could not be read."""
    image = ended.image if isinstance(ended, FailedAttempt) else ended.generation.image
    return None if image is None else image.pixels


def _image_record(request: GenerationRequest, image: ConditioningImage) -> ImageRecord:
    return ImageRecord(
        path=request.image, sha256=image.sha256, width=image.width, height=image.height
    )
