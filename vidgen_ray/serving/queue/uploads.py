"""The files of a job in the output store."""

from vidgen_ray.generation.artifacts import ArtifactStore

UPLOADS = "uploads"


def upload_name(job_id: str) -> str:
    """The name of a job's image in the output store."""
    return f"{UPLOADS}/{job_id}"


def remove_files(artifacts: ArtifactStore, job_id: str, *, keep_upload: bool = False) -> None:
    """Remove clip, record, thumbnail, attempts and image of a job. Raises ArtifactError."""
    artifacts.remove(job_id)
    if not keep_upload:
        artifacts.remove_file(upload_name(job_id))
