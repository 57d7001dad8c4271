"""One attempt at a clip, from its first record to a committed one or to the wish for another.

A record under construction says `failed` until its clip is judged, then `accepted`, or
`needs_review` for a clip that was rejected. Batch, serving and the command line share this.
"""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from vidgen_ray.config import QualityConfig
from vidgen_ray.generation.artifacts import ArtifactStore, attempt_name
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import best_attempt, judge
from vidgen_ray.image_io import ConditioningImage
from vidgen_ray.provenance import versions
from vidgen_ray.schema import (
    AttemptRecord,
    ErrorRecord,
    GenerationRecord,
    GenerationRequest,
    ImageRecord,
    Status,
    Video,
    attempt_seed,
)

if TYPE_CHECKING:  # the engine imports torch, which scoring workers do without
    from vidgen_ray.generation.engine import Generation


def begin(
    request: GenerationRequest, attempt: int, content_hash: str, run_id: str
) -> GenerationRecord:
    """The record of an attempt, counted from 1, before anything is done."""
    return GenerationRecord(
        id=request.id,
        status="failed",
        content_hash=content_hash,
        request=request,
        seed=attempt_seed(request.seed, attempt),
        attempt=attempt,
        created_at=datetime.now(UTC),
        run_id=run_id,
        versions=versions(),
    )


def seeded_request(record: GenerationRecord) -> GenerationRequest:
    """The request with this attempt's own seed, for the engine."""
    assert record.request is not None
    return record.request.model_copy(update={"seed": record.seed})


def with_image(record: GenerationRecord, image: ConditioningImage) -> GenerationRecord:
    """The record with the facts of its conditioning image."""
    assert record.request is not None
    facts = ImageRecord(
        path=record.request.image, sha256=image.sha256, width=image.width, height=image.height
    )
    return record.model_copy(update={"image": facts})


def with_generation(record: GenerationRecord, generation: "Generation") -> GenerationRecord:
    """The record with what the engine measured; the pixels stay out of it."""
    return record.model_copy(
        update={
            "model": generation.model,
            "adapter": generation.adapter,
            "stages": generation.stages,
            "peak_vram_gb": generation.peak_vram_gb,
            "stage_peaks_gb": generation.stage_peaks_gb,
            "device": generation.device,
            "versions": versions(),
        }
    )


def with_score(
    record: GenerationRecord,
    video: Video,
    image: np.ndarray,
    quality: QualityConfig,
    num_threads: int,
) -> GenerationRecord:
    """The record with the clip's score and verdict. `image` is the conditioning image's pixels.

    A clip that cannot be scored is rejected with the reason, so that a person looks at it.
    """
    start = time.perf_counter()
    try:
        score = score_video(video, num_threads, image)
        verdict, reasons = judge(score, quality)
    except Exception as error:  # the clip is there, whatever became of its score
        score, verdict = None, "retry"
        reasons = [f"scoring failed: {type(error).__name__}: {error}"]
    seconds = time.perf_counter() - start
    return record.model_copy(
        update={
            "score": score,
            "status": "accepted" if verdict == "accepted" else "needs_review",
            "reasons": reasons,
            "stages": record.stages.model_copy(update={"score_s": seconds}),
        }
    )


def failed(
    record: GenerationRecord, kind: str, message: str, stage: str, status: Status = "failed"
) -> GenerationRecord:
    """The record of an attempt that ended without a clip."""
    error = ErrorRecord(kind=kind, message=message, stage=stage)
    return record.model_copy(update={"status": status, "error": error})


def settle(
    store: ArtifactStore, record: GenerationRecord, video: Video | None, max_attempts: int
) -> GenerationRecord | None:
    """Store an attempt and decide. Returns the committed record; None asks for another attempt.

    A rejected clip waits for better ones until `max_attempts`; then the best of all is committed
    for review. Raises ArtifactError.
    """
    record = record.model_copy(
        update={"attempts": [_attempt_record(record)], "created_at": datetime.now(UTC)}
    )
    assert record.attempt is not None
    if record.status == "needs_review" and record.attempt < max_attempts:
        name = attempt_name(record.id, record.attempt)
        store.save_attempt(_with_clip(store, record, video, name))
        return None
    earlier = [
        attempt
        for attempt in store.read_attempts(record.id)
        if attempt.content_hash == record.content_hash and attempt.attempt != record.attempt
    ]
    kept = _choose(record, earlier)
    if kept is record:
        final = _with_clip(store, record, video, f"{record.id}.mp4")
    else:
        final = store.promote(kept)
    tried = [entry for attempt in [*earlier, record] for entry in attempt.attempts]
    final = final.model_copy(update={"attempts": tried})
    store.commit(final)
    return final


def _attempt_record(record: GenerationRecord) -> AttemptRecord:
    assert record.attempt is not None
    assert record.seed is not None
    return AttemptRecord(
        attempt=record.attempt,
        seed=record.seed,
        temporal_score=record.score.score if record.score else None,
        verdict="accepted" if record.status == "accepted" else "retry",
    )


def _choose(record: GenerationRecord, earlier: list[GenerationRecord]) -> GenerationRecord:
    """The attempt to keep: an accepted one, else the best that has a clip."""
    if record.status == "accepted" or not earlier:
        return record
    if record.status == "needs_review":
        candidates = [*earlier, record]
        return candidates[best_attempt([candidate.score for candidate in candidates])]
    best = earlier[best_attempt([attempt.score for attempt in earlier])]
    assert record.error is not None
    reason = f"attempt {record.attempt} failed: {record.error.message}"
    return best.model_copy(update={"reasons": [*best.reasons, reason]})


def _with_clip(
    store: ArtifactStore, record: GenerationRecord, video: Video | None, name: str
) -> GenerationRecord:
    if video is None:
        return record
    start = time.perf_counter()
    artifact = store.write_clip(name, video)
    stages = record.stages.model_copy(update={"save_s": time.perf_counter() - start})
    return record.model_copy(update={"artifact": artifact, "stages": stages})
