"""What an adapter changes in fixed prompts' clips, and whether it passes."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from vidgen_ray.errors import RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.request import GenerationRequest
from vidgen_ray.schema import GenerationRecord, Look, ValidatedPrompt, Validation
from vidgen_ray.validation.prompts import ValidationPrompts, arm_of
from vidgen_ray.video_io import read_video

# Mean grey levels: half precision on a GPU may differ by less from run to run, an adapter that acts
# changes more.
MIN_PIXEL_DIFFERENCE = 0.05


def compare(
    prompts: ValidationPrompts, store: ArtifactStore, threshold: float, run_id: str
) -> Validation:
    """Measure the differences between the clips in `store`, and judge them.

    The adapter passes if every clip with it scores `threshold` at least, none that was accepted
    without it needs review with it, and it changes the picture. Raises ArtifactError and
    RequestError where a clip cannot be read.
    """
    records = store.read_records()
    compared = [_compare(job.request, records, store, threshold) for job in prompts.requests]
    made = [record for prompt in compared if (record := records.get(prompt.with_id))]
    adapter = next((record.adapter for record in made if record.adapter), None)
    differences = [
        prompt.pixel_difference for prompt in compared if prompt.pixel_difference is not None
    ]
    acts = not differences or max(differences) >= MIN_PIXEL_DIFFERENCE
    return Validation(
        passed=acts and all(prompt.passed for prompt in compared),
        verdict=_verdict(compared, differences, acts, threshold),
        threshold=threshold,
        adapter=adapter,
        trigger=prompts.trigger,
        prompts=compared,
        run_id=run_id,
        created_at=datetime.now(UTC),
    )


def pixel_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean |first - second| of two clips, uint8 [num_frames, height, width, 3], in grey levels."""
    if first.shape != second.shape:
        raise RequestError(f"the clips must have one shape, got {first.shape} and {second.shape}")
    pairs = zip(first, second, strict=True)
    return float(np.mean([np.abs(a.astype(np.int16) - b).mean() for a, b in pairs]))


def measure_look(frames: np.ndarray) -> Look:
    """The look of a clip's last frame, of uint8 [num_frames, height, width, 3]."""
    last = frames[-1].astype(np.float64)
    return Look(
        brightness=float((last @ (0.299, 0.587, 0.114)).mean()),
        colour=float((last.max(axis=-1) - last.min(axis=-1)).mean()),
    )


def _compare(
    request: GenerationRequest,
    records: dict[str, GenerationRecord],
    store: ArtifactStore,
    threshold: float,
) -> ValidatedPrompt:
    without_id, with_id = arm_of(request, None).id, f"{request.id}.with"
    without, with_ = records.get(without_id), records.get(with_id)
    score_without, score_with = _score(without), _score(with_)
    reasons = [
        f"{side} the adapter: {record.error.message if record and record.error else 'no clip'}"
        for side, record in (("without", without), ("with", with_))
        if record is None or record.artifact is None
    ]
    if with_ and with_.artifact:
        reasons += _faults(without, with_, score_with, threshold)
    first, second = _frames(without, store), _frames(with_, store)
    return ValidatedPrompt(
        id=request.id,
        prompt=request.prompt,
        without_id=without_id,
        with_id=with_id,
        score_without=score_without,
        score_with=score_with,
        score_difference=None
        if score_without is None or score_with is None
        else score_with - score_without,
        pixel_difference=None
        if first is None or second is None
        else pixel_difference(first, second),
        look_without=None if first is None else measure_look(first),
        look_with=None if second is None else measure_look(second),
        passed=not reasons,
        reasons=reasons,
    )


def _faults(
    without: GenerationRecord | None,
    with_: GenerationRecord,
    score: float | None,
    threshold: float,
) -> list[str]:
    """What is wrong with a clip that was made with the adapter."""
    if score is None:
        return ["with the adapter the clip could not be scored"]
    if score < threshold:
        return [f"temporal score {score:.3f} with the adapter is below {threshold:g}"]
    if with_.status != "accepted" and without is not None and without.status == "accepted":
        return [f"accepted without the adapter, not with it: {'; '.join(with_.reasons)}"]
    return []


def _score(record: GenerationRecord | None) -> float | None:
    return record.score.score if record and record.artifact and record.score else None


def _frames(record: GenerationRecord | None, store: ArtifactStore) -> np.ndarray | None:
    if record is None or record.artifact is None:
        return None
    return read_video(store.address_of(record.artifact.filename)).frames


def _verdict(
    compared: Sequence[ValidatedPrompt], differences: Sequence[float], acts: bool, threshold: float
) -> str:
    if not acts:
        return (
            f"the adapter does not act: with and without it no clip differs by "
            f"{MIN_PIXEL_DIFFERENCE:g} grey levels; is it trained, and its --lora-scale above 0?"
        )
    num_passed = sum(prompt.passed for prompt in compared)
    scores = [prompt.score_with for prompt in compared if prompt.score_with is not None]
    text = f"{num_passed} of {len(compared)} prompts pass (temporal score {threshold:g} or better"
    if scores:
        text += f"; lowest {min(scores):.3f}, mean {np.mean(scores):.3f}"
    if differences:
        text += f"; the adapter changes {np.mean(differences):.1f} grey levels on average"
    return text + ")"
