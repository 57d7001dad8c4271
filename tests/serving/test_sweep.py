"""Nothing is left over of deleted, cancelled and expired jobs, whatever was written meanwhile."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_jobs import add, lease

from vidgen_ray.errors import ArtifactError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.queue.store import JobResult, JobStore
from vidgen_ray.serving.queue.sweep import Sweeper
from vidgen_ray.serving.queue.uploads import upload_name

RETENTION_S = 0.05


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(f"sqlite:///{tmp_path}/jobs.db", retention_s=RETENTION_S)


@pytest.fixture(params=["local", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "local":
        return ArtifactStore(str(tmp_path / "out"))
    return ArtifactStore(f"s3://{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")


def commit(artifacts: ArtifactStore, job_id: str) -> None:
    """Every file that a job can have."""
    names = [f"{job_id}.mp4", f"thumbnails/{job_id}.jpg", f"attempts/{job_id}/1.mp4"]
    for name in (*names, upload_name(job_id), f"{job_id}.json"):
        artifacts.write(name, b"x")


def files(artifacts: ArtifactStore) -> set[str]:
    fresh = ArtifactStore(artifacts.address)
    folders = ["", "uploads", "thumbnails"]
    names = {f"{folder}/{name}".lstrip("/") for folder in folders for name in fresh.names(folder)}
    return names | {f"attempts/{name}" for name in fresh.ids_with_attempts()}


def hurry(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move the clock of the removals on."""
    ahead = [0.0]
    now = time.time
    monkeypatch.setattr("vidgen_ray.serving.queue.removals.time.time", lambda: now() + ahead[0])

    def move(seconds: float) -> None:
        ahead[0] += seconds

    return move


def test_a_clip_that_is_committed_after_its_job_was_deleted_goes(
    store: JobStore, artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = hurry(monkeypatch)
    sweeper = Sweeper(store, artifacts, RETENTION_S)
    add(store, "kept", "gone")
    commit(artifacts, "kept")
    kept = files(artifacts)
    store.remove("gone")
    sweeper.remove_scheduled()
    for late_s in (2, 8, 50, 540):  # the Scorer was still at it
        commit(artifacts, "gone")
        move(late_s + 0.1)
        sweeper.remove_scheduled()
        assert files(artifacts) == kept
    for _ in range(10):
        move(10_000)
        sweeper.remove_scheduled()
    assert store.removals.due() == []


def test_a_clip_that_is_committed_after_its_job_was_cancelled_goes_but_not_the_image(
    store: JobStore, artifacts: ArtifactStore
) -> None:
    add(store, "a")
    store.cancel("a")
    commit(artifacts, "a")
    Sweeper(store, artifacts, RETENTION_S).remove_scheduled()
    assert files(artifacts) == {upload_name("a")}


def test_a_file_that_cannot_be_removed_holds_up_no_other(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = ArtifactStore(str(tmp_path / "out"))
    add(store, "one", "two")
    for job_id in ("one", "two"):
        commit(artifacts, job_id)
        store.remove(job_id)
    remove = artifacts.remove

    def fails_for_one(job_id: str) -> None:
        if job_id == "one":
            raise ArtifactError("output: x")
        remove(job_id)

    monkeypatch.setattr(artifacts, "remove", fails_for_one)
    Sweeper(store, artifacts, RETENTION_S).remove_scheduled()
    assert not any("two" in name for name in files(artifacts))


def test_expired_jobs_go_with_their_files_a_few_at_a_time(
    store: JobStore, artifacts: ArtifactStore
) -> None:
    ids = [f"j{number:02d}" for number in range(25)]
    add(store, *ids, "later")
    commit(artifacts, "j00")
    commit(artifacts, "later")
    for job in lease(store, limit=25):
        store.finish(job.id, job.lease_token, JobResult("completed"))
    time.sleep(2 * RETENTION_S)
    sweeper = Sweeper(store, artifacts, RETENTION_S)
    assert sweeper.remove_expired()
    assert len(store.existing(ids)) == 5
    assert sweeper.remove_expired()
    assert not sweeper.remove_expired()
    assert store.existing([*ids, "later"]) == {"later"}
    assert not any("j00" in name for name in files(artifacts))


def test_an_image_without_a_job_goes_at_the_second_look(
    store: JobStore, artifacts: ArtifactStore
) -> None:
    sweeper = Sweeper(store, artifacts, None)
    sweeper.remove_stray_uploads()
    for job_id in ("kept", "late", "stray"):
        artifacts.write(upload_name(job_id), b"x")
    add(store, "kept")
    sweeper.remove_stray_uploads()
    assert set(artifacts.names("uploads")) == {"kept", "late", "stray"}
    add(store, "late")
    sweeper.remove_stray_uploads()
    assert set(artifacts.names("uploads")) == {"kept", "late"}


def test_old_clips_without_a_job_go_and_nothing_else(
    store: JobStore, artifacts: ArtifactStore
) -> None:
    ids = {name: f"video_{name * 32}" for name in "abc"}
    for job_id in ids.values():
        commit(artifacts, job_id)
    artifacts.write("harbour.mp4", b"x")  # of a batch, perhaps
    add(store, ids["a"])
    before = files(artifacts)
    Sweeper(store, artifacts, 3600).remove_orphans()
    Sweeper(store, artifacts, None).remove_orphans()
    assert files(artifacts) == before
    time.sleep(1.1)  # object stores tell whole seconds
    Sweeper(store, artifacts, RETENTION_S).remove_orphans()
    assert files(artifacts) == {name for name in before if not set(name[6:]) & set("bc")} | {
        name for name in before if ids["a"] in name or "harbour" in name
    }
