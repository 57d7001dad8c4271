"""From a scored attempt to files: the one place where a clip is encoded, kept and recorded.

Stages that change, sign or deliver a clip belong in `_write_clip`: after the verdict, before the
record.
"""

import time
from dataclasses import dataclass

from vidgen_ray.generation.artifacts import ArtifactStore, attempt_name
from vidgen_ray.generation.attempt import (
    Attempt,
    FailedAttempt,
    ScoredAttempt,
    image_pixels,
    to_record,
)
from vidgen_ray.generation.verdict import best_attempt
from vidgen_ray.schema import AttemptRecord, GenerationRecord


@dataclass(frozen=True)
class AttemptResult:
    """What became of an attempt: a committed record, or a rejected one and the attempt to make
    next."""

    record: GenerationRecord
    retry: Attempt | None


def commit_or_retry(
    store: ArtifactStore, ended: ScoredAttempt | FailedAttempt, max_attempts: int
) -> AttemptResult:
    """Commit the attempt, or keep it aside and ask for another. Raises ArtifactError.

    A rejected clip waits for better ones until `max_attempts`; then the best of all is committed
    for review.
    """
    pixels = image_pixels(ended)
    if pixels is not None:
        store.write_thumbnail(ended.attempt.id, pixels)
    record = to_record(ended)
    record = record.model_copy(update={"attempts": [_attempt_record(ended)]})
    is_last = ended.attempt.number >= max_attempts
    if isinstance(ended, ScoredAttempt) and not ended.accepted and not is_last:
        name = attempt_name(record.id, ended.attempt.number)
        store.save_attempt(_write_clip(store, name, ended, record))
        return AttemptResult(record, ended.attempt.retry())
    earlier = [
        other
        for other in store.read_attempts(record.id)
        if other.content_hash == record.content_hash and other.attempt != record.attempt
    ]
    final = _kept(store, ended, record, earlier)
    tried = [entry for attempt in [*earlier, record] for entry in attempt.attempts]
    final = final.model_copy(update={"attempts": tried})
    store.commit(final)
    return AttemptResult(final, None)


def _attempt_record(ended: ScoredAttempt | FailedAttempt) -> AttemptRecord:
    score = ended.score if isinstance(ended, ScoredAttempt) else None
    accepted = isinstance(ended, ScoredAttempt) and ended.accepted
    return AttemptRecord(
        attempt=ended.attempt.number,
        seed=ended.attempt.seed,
        temporal_score=score.score if score else None,
        verdict="accepted" if accepted else "rejected",
    )


def _kept(
    store: ArtifactStore,
    ended: ScoredAttempt | FailedAttempt,
    record: GenerationRecord,
    earlier: list[GenerationRecord],
) -> GenerationRecord:
    """The record to commit, its clip in place: of this attempt if it is accepted or the best one,
    else of the best of the earlier ones."""
    if isinstance(ended, FailedAttempt):
        if not earlier:
            return record
        best = earlier[best_attempt([other.score for other in earlier])]
        reason = f"attempt {ended.attempt.number} failed: {ended.error.message}"
        return store.promote(best.model_copy(update={"reasons": [*best.reasons, reason]}))
    scores = [*(other.score for other in earlier), ended.score]
    best_index = len(earlier) if ended.accepted else best_attempt(scores)
    if best_index < len(earlier):
        return store.promote(earlier[best_index])
    return _write_clip(store, f"{record.id}.mp4", ended, record)


def _write_clip(
    store: ArtifactStore, name: str, scored: ScoredAttempt, record: GenerationRecord
) -> GenerationRecord:
    """Encode the clip to `name`; the record with the file and the time it took."""
    start = time.perf_counter()
    artifact = store.write_clip(name, scored.generation.video)
    stages = record.stages.model_copy(update={"save_s": time.perf_counter() - start})
    return record.model_copy(update={"artifact": artifact, "stages": stages})
