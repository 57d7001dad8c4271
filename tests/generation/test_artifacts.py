"""The store writes whole files or none, anywhere fsspec reaches, and tells what it cannot do."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from vidgen_ray.addresses import read_address
from vidgen_ray.config import load_config
from vidgen_ray.errors import ArtifactError
from vidgen_ray.generation.artifacts import DISCLOSURE, ArtifactStore
from vidgen_ray.generation.attempt import Attempt, FailedAttempt, ScoredAttempt
from vidgen_ray.generation.clip_engine import Generation
from vidgen_ray.generation.commit import commit_or_retry
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.image_io import ConditioningImage
from vidgen_ray.request import resolve_request
from vidgen_ray.schema import (
    ErrorRecord,
    GenerationRecord,
    ModelRecord,
    StageTimes,
    TemporalScore,
    Video,
)
from vidgen_ray.video_io import read_video


def make_video(shade: int = 0) -> Video:
    frames = np.full((3, 32, 48, 3), shade, np.uint8)
    frames[:, :, :24] = 200
    return Video(frames, 8)


@cache
def measured_score() -> TemporalScore:
    texture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return score_video(Video(np.stack([np.roll(texture, shift, 1) for shift in range(4)]), 8))


def make_attempt(number: int = 1, content_hash: str = "hash") -> Attempt:
    fields = {"id": "a", "image": "a.png", "prompt": "push in", "seed": 3}
    return Attempt(resolve_request(fields, load_config("nano")), number, "run", content_hash)


def scored(
    number: int = 1, score: float = 0.9, reasons: tuple[str, ...] = (), **more: str
) -> ScoredAttempt:
    """An attempt with a clip of a shade of its own; rejected where there are reasons."""
    model = ModelRecord(
        checkpoint="c",
        fingerprint="f",
        trained=True,
        dtype="float32",
        scheduler="s",
        offload="none",
        vae_tiling=False,
    )
    image = ConditioningImage(np.zeros((32, 48, 3), np.uint8), "sha", 48, 32)
    generation = Generation(
        make_video(number * 40), image, model, None, StageTimes(), None, {}, "cpu"
    )
    measured = measured_score().model_copy(update={"score": score})
    return ScoredAttempt(
        make_attempt(number, **more), generation, {}, measured, list(reasons), score_s=0.1
    )


def rejected(number: int, score: float, **more: str) -> ScoredAttempt:
    return scored(number, score, ("the motion jumps",), **more)


def failed(number: int = 1) -> FailedAttempt:
    error = ErrorRecord(kind="EngineError", message="it broke", stage="generate")
    return FailedAttempt(make_attempt(number), error)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    address = str(tmp_path / "run")
    if request.param == "s3":
        address = f"s3://{request.getfixturevalue('s3_bucket')}/run"
    return ArtifactStore(address)


def test_a_committed_clip_is_read_back(store: ArtifactStore) -> None:
    store.check_writable()
    final = commit_or_retry(store, scored(), 1).record
    assert final.artifact is not None
    assert (final.artifact.filename, final.artifact.num_frames) == ("a.mp4", 3)
    assert final.stages.save_s is not None
    assert store.read("a.json") is not None
    data = store.read("a.mp4")
    assert data is not None
    assert len(data) == final.artifact.size_bytes
    assert DISCLOSURE.encode() in data
    [read] = store.read_records().values()
    assert read.artifact == final.artifact
    assert read.attempts == final.attempts


def test_a_clip_cut_short_is_no_clip(store: ArtifactStore) -> None:
    commit_or_retry(store, scored(), 1)
    store.write("a.mp4", b"short")
    assert store.read_records() == {}


def test_the_best_of_rejected_attempts_is_kept(store: ArtifactStore) -> None:
    scores = {1: 0.3, 2: 0.5, 3: 0.4}
    for attempt in (1, 2):
        retry = commit_or_retry(store, rejected(attempt, scores[attempt]), 3).retry
        assert retry is not None
        assert retry.number == attempt + 1
    assert store.read_records() == {}
    assert store.ids_with_attempts() == ["a"]
    result = commit_or_retry(store, rejected(3, 0.4), 3)
    final = result.record
    assert result.retry is None
    assert (final.status, final.attempt) == ("needs_review", 2)
    assert [entry.temporal_score for entry in final.attempts] == [0.3, 0.5, 0.4]
    assert store.ids_with_attempts() == []
    data = store.read("a.mp4")
    assert data is not None
    import io

    frame = read_video(io.BytesIO(data)).frames[0]
    assert abs(int(frame[16, 40].mean()) - 80) < 8


def test_an_accepted_attempt_wins_over_earlier_ones(store: ArtifactStore) -> None:
    commit_or_retry(store, rejected(1, 0.5), 3)
    final = commit_or_retry(store, scored(2, 0.9), 3).record
    assert (final.status, final.attempt, len(final.attempts)) == ("accepted", 2, 2)


def test_a_failed_attempt_after_a_rejected_one_keeps_that_clip(store: ArtifactStore) -> None:
    commit_or_retry(store, rejected(1, 0.5), 3)
    final = commit_or_retry(store, failed(2), 3).record
    assert final.status == "needs_review"
    assert final.artifact is not None
    assert "attempt 2 failed: it broke" in final.reasons


def test_attempts_at_other_content_do_not_count(store: ArtifactStore) -> None:
    commit_or_retry(store, rejected(1, 0.99, content_hash="other"), 3)
    final = commit_or_retry(store, rejected(3, 0.1), 3).record
    assert (final.attempt, len(final.attempts)) == (3, 1)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.write("a.json", b"before")
    with pytest.raises(ArtifactError, match="output: cannot write"):
        store.write("a.json", object())  # type: ignore[arg-type]
    assert store.read("a.json") == b"before"
    assert list((tmp_path / ".vidgen").iterdir()) == []


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.write("holiday.json", b'{"photos": 3}')
    with pytest.raises(ArtifactError, match=r"holiday\.json is not a record.*move it away"):
        store.read_records()


@pytest.mark.parametrize("address", ["nowhere://x/y", "s4://bucket"])
def test_an_unknown_address_is_refused(address: str) -> None:
    with pytest.raises(ArtifactError, match="output: cannot open"):
        ArtifactStore(address)


def test_records_of_any_age_are_read(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    record = GenerationRecord(
        id="old",
        status="failed",
        content_hash="",
        request=None,
        created_at=datetime.now(UTC),
        run_id="r",
    )
    store.commit(record)
    assert store.read_records() == {"old": record}


def test_one_record_is_read_by_its_id(store: ArtifactStore) -> None:
    assert store.read_record("a") is None
    committed = commit_or_retry(store, scored(), max_attempts=1).record
    assert store.read_record("a") == committed
    store.write("a.mp4", b"cut short")
    assert store.read_record("a") is None
    store.remove_file("a.mp4")
    assert store.read_record("a") is None


def test_a_clip_is_removed_with_all_that_is_its_own(store: ArtifactStore, tmp_path: Path) -> None:
    commit_or_retry(store, scored(), max_attempts=1)
    commit_or_retry(store, rejected(1, 0.5), max_attempts=2)
    store.write_thumbnail("a", make_video().frames[0])
    store.write("b.mp4", b"another")
    store.fetch("a.mp4", tmp_path / "copy.mp4")
    assert read_video(str(tmp_path / "copy.mp4")).frames.shape == (3, 32, 48, 3)
    store.remove("a")
    store.remove("a")
    assert store.names("") == ["b.mp4"]
    assert store.names("thumbnails") == []
    assert store.read_attempts("a") == []


def test_a_file_is_read_by_its_address(store: ArtifactStore) -> None:
    store.write("uploads/a", b"image")
    assert read_address(store.address_of("uploads/a"), field="image", max_bytes=99) == b"image"
    path = store.local_path("uploads/a")
    assert path is None or path.read_bytes() == b"image"
