"""Where the image of a job lies until its clip is made, and how a job's files go."""

from vidgen_ray.generation.artifacts import ArtifactStore


def upload_name(job_id: str) -> str:
    """The name of a job's image in the output store."""
    return f"uploads/{job_id}"


def remove_files(artifacts: ArtifactStore, job_id: str) -> None:
    """Remove clip, record, thumbnail, attempts and image of a job. Raises ArtifactError."""
    artifacts.remove(job_id)
    artifacts.remove_file(upload_name(job_id))
