"""A jobs file checked against the model, its images and adapters, with every problem at once."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray.data

from vidgen_ray.config import Config, LoRA
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.content_hash import hash_content
from vidgen_ray.generation.jobs_file import JobRow, JobsFile, RowProblem
from vidgen_ray.image_io import read_image
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.request import GenerationRequest


@dataclass(frozen=True)
class ValidJob:
    """A request that passed every check, and the hash that two equal requests share."""

    line: int
    request: GenerationRequest
    content_hash: str


@dataclass(frozen=True)
class ValidatedJobs:
    """The jobs of a file that can be made, and what is wrong with the others."""

    jobs: list[ValidJob]
    problems: list[RowProblem]


def validate_jobs(file: JobsFile, config: Config, *, on_cluster: bool) -> ValidatedJobs:
    """Check every row of a jobs file against the model, its image and its adapter.

    Images are decoded on the cluster or by threads here; no weights are loaded. Raises ConfigError
    where the checkpoint cannot be found.
    """
    checkpoint = open_checkpoint(config.model, weights=False)
    problems = list(file.problems)
    fitting = []
    for job in file.requests:
        try:
            checkpoint.check_request(job.request)
            adapter_sha256 = _adapter_sha256(job.request.lora, checkpoint)
        except RequestError as error:
            problems.append(_problem(job, error))
        else:
            fitting.append((job, adapter_sha256))
    images = _check_images([job for job, _ in fitting], on_cluster)
    jobs = []
    for job, adapter_sha256 in fitting:
        sha256, message = images[job.line]
        if message:
            problems.append(_problem(job, RequestError(message)))
        else:
            digest = hash_content(job.request, sha256, adapter_sha256, config, checkpoint)
            jobs.append(ValidJob(job.line, job.request, digest))
    return ValidatedJobs(jobs, sorted(problems, key=lambda problem: problem.line))


def _adapter_sha256(lora: LoRA | None, checkpoint: Checkpoint) -> str | None:
    if lora is None:
        return None
    from vidgen_ray.model.adapters import open_adapter  # diffusers, which takes seconds

    return open_adapter(lora, checkpoint).sha256


def _check_images(jobs: list[JobRow], on_cluster: bool) -> dict[int, tuple[str, str | None]]:
    """By line: the SHA-256 of the image, and what is wrong with it."""
    if not jobs:
        return {}
    fields = {"image", "height", "width", "image_fit"}
    rows = [{"line": job.line, **job.request.model_dump(include=fields)} for job in jobs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked: Iterable[dict[str, Any]] = (
            ray.data.from_items(rows).map(_check_image).iter_rows()
            if on_cluster
            else pool.map(_check_image, rows)
        )
        return {row["line"]: (row["sha256"], row["problem"] or None) for row in checked}


def _check_image(row: dict[str, Any]) -> dict[str, Any]:
    """Decode the image of a row with `image`, `height`, `width` and `image_fit`.

    Gives the row's `line`, the `sha256` of the image, and the `problem`, empty where there is none.
    """
    try:
        image = read_image(
            row["image"], height=row["height"], width=row["width"], fit=row["image_fit"]
        )
    except RequestError as error:
        return {"line": row["line"], "sha256": "", "problem": str(error)}
    return {"line": row["line"], "sha256": image.sha256, "problem": ""}


def _problem(job: JobRow, error: RequestError) -> RowProblem:
    """Our errors begin with the field they are about."""
    field, colon, rest = str(error).partition(": ")
    if not colon or field not in GenerationRequest.model_fields:
        return RowProblem(job.line, job.request.id, None, str(error))
    return RowProblem(job.line, job.request.id, field, rest)
