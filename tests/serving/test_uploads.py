"""Nothing is left over: expired jobs go with their files, and images that never got a job."""

import time
from pathlib import Path

from test_jobs import add, lease

from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.queue.store import JobStore, Outcome
from vidgen_ray.serving.queue.uploads import StrayUploads, remove_expired, upload_name


def test_expired_jobs_go_with_their_files(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.db", retention_s=0.05)
    artifacts = ArtifactStore(str(tmp_path / "out"))
    add(store, "a", "b")
    for job_id in ("a", "b"):
        for name in (upload_name(job_id), f"{job_id}.mp4", f"{job_id}.json"):
            artifacts.write(name, b"x")
    (job,) = lease(store, limit=1)
    store.finish("a", job.lease_token, Outcome("completed"))
    time.sleep(0.1)
    remove_expired(store, artifacts)
    assert store.get("a") is None
    assert store.get("b") is not None
    assert (
        sorted(path.stem for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["b"] * 3
    )


def test_an_image_without_a_job_goes_at_the_second_look(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.db")
    artifacts = ArtifactStore(str(tmp_path / "out"))
    strays = StrayUploads(store, artifacts)
    strays.sweep()
    for job_id in ("kept", "late", "stray"):
        artifacts.write(upload_name(job_id), b"x")
    add(store, "kept")
    strays.sweep()
    assert set(artifacts.names("uploads")) == {"kept", "late", "stray"}
    add(store, "late")
    strays.sweep()
    assert set(artifacts.names("uploads")) == {"kept", "late"}
