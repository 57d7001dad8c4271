"""The files of a job: where its image lies, how they go, and which are left over."""

from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.queue.store import JobStore

_FOLDER = "uploads"


def upload_name(job_id: str) -> str:
    """The name of a job's image in the output store."""
    return f"{_FOLDER}/{job_id}"


def remove_files(artifacts: ArtifactStore, job_id: str) -> None:
    """Remove clip, record, thumbnail, attempts and image of a job. Raises ArtifactError."""
    artifacts.remove(job_id)
    artifacts.remove_file(upload_name(job_id))


def remove_expired(store: JobStore, artifacts: ArtifactStore) -> None:
    """Remove jobs whose time is over, files first. Raises ArtifactError and StoreError."""
    for job_id in store.expired():
        remove_files(artifacts, job_id)
        store.remove(job_id)


class StrayUploads:
    """Removes images without a job: their process was killed between image and row."""

    def __init__(self, store: JobStore, artifacts: ArtifactStore) -> None:
        self._store = store
        self._artifacts = artifacts
        self._strays: set[str] = set()

    def sweep(self) -> None:
        """Remove what was a stray in the last sweep already: a younger one may get its row yet."""
        names = self._artifacts.names(_FOLDER)
        strays = set(names) - set(self._store.get_many(names)) if names else set()
        for name in strays & self._strays:
            self._artifacts.remove_file(upload_name(name))
        self._strays = strays
