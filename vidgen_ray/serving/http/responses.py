"""Jobs as clients see them: the records under the API's names, and never a path of the server."""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from vidgen_ray.config import GenerationDefaults
from vidgen_ray.generation.job_fields import server_fields
from vidgen_ray.request import GenerationRequest
from vidgen_ray.schema import AttemptRecord, GenerationRecord
from vidgen_ray.serving.http.clip_settings import whole_seconds
from vidgen_ray.serving.http.create_job import REMIXED_FROM
from vidgen_ray.serving.queue.store import Job, JobStatus

logger = logging.getLogger("ray.serve")


class View(BaseModel):
    """A part of an answer. Fields without a value are null, not left out."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class VideoError(View):
    """Why there is no clip."""

    code: str
    message: str


class LoraView(View):
    """The adapter a clip is made with."""

    name: str
    scale: float


class JobResource(View):
    """A job, and the clip once it is there; VideoResource adds the parameters of the request."""

    id: str
    object: Literal["video"] = "video"
    status: JobStatus
    progress: int = Field(ge=0, le=100, description="Steps done, in percent; 100 when completed.")
    model: str
    prompt: str
    template: str | None = Field(description="The standard prompt that `prompt` was made of.")
    size: str = Field(description='Width and height, "720x480".')
    seconds: str = Field(description="Duration of the clip, rounded.")
    seed: int = Field(description="The seed of the clip; of a later attempt, derived from yours.")
    lora: LoraView | None
    created_at: int
    started_at: int | None
    completed_at: int | None = Field(description="When it ended, however it did.")
    expires_at: int | None = Field(description="When job and clip are removed.")
    error: VideoError | None
    remixed_from_video_id: str | None = Field(description="The video this one is a remix of.")
    url: str | None = Field(description="The clip's address on this server.")
    attempt: int = Field(description="Which attempt of the quality gate, from 1.")
    attempts: list[AttemptRecord]
    temporal_score: float | None = Field(description="Of 1; see docs/batch.md.")
    verdict: Literal["accepted", "needs_review"] | None
    reasons: list[str] = Field(description="Why a clip needs review.")
    stage_durations: dict[str, float] = Field(
        description="Seconds: `queued`, each stage of the clip that was kept, and `total`."
    )
    peak_memory_mb: float | None


# The parameters of a request that the answer repeats as they took effect.
_PARAMETERS = {
    name: field for name, field in server_fields().items() if name not in JobResource.model_fields
}

if TYPE_CHECKING:
    VideoResource = JobResource
else:
    VideoResource = create_model(
        "VideoResource",
        __base__=JobResource,
        __doc__="A job with its effective parameters, and the clip once it is there.",
        **{
            name: (field.annotation, Field(description=field.description))
            for name, field in _PARAMETERS.items()
        },
    )


class VideoList(View):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[VideoResource]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(View):
    """What is left of a job."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ModelView(View):
    """A name that `model` takes: the served model, or one of its LoRA adapters."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vidgen"
    parent: str | None = Field(description="For an adapter, the model it is for.")


class ModelList(View):
    """What can be asked for."""

    object: Literal["list"] = "list"
    data: list[ModelView]


@lru_cache(maxsize=2048)
def view(job: Job) -> VideoResource:
    """The job as its owner sees it; one whose row cannot be read has the error `unreadable_job`."""
    try:
        return _view(job)
    except (ValidationError, RecursionError) as error:
        logger.error("unreadable job: %s", error, extra={"video_id": job.id})
        return _unreadable(job)


def _view(job: Job) -> VideoResource:
    request = GenerationRequest.model_validate_json(job.request)
    record = GenerationRecord.model_validate_json(job.record) if job.record else None
    made = record if record and record.artifact else None
    return VideoResource(
        id=job.id,
        status=job.status,
        progress=_progress(job),
        model=job.model,
        prompt=request.prompt,
        remixed_from_video_id=request.metadata.get(REMIXED_FROM),
        template=request.metadata.get("template", {}).get("name"),
        size=f"{request.width}x{request.height}",
        seconds=str(whole_seconds(request.num_frames, request.fps)),
        created_at=int(job.created_at),
        started_at=_whole(job.started_at),
        completed_at=_whole(job.ended_at),
        expires_at=_whole(job.expires_at),
        error=_error(job),
        url=f"/artifacts/{job.id}.mp4" if job.status == "completed" else None,
        attempt=job.attempt,
        attempts=record.attempts if record else [],
        temporal_score=made.score.score if made and made.score else None,
        verdict=_verdict(made),
        reasons=made.reasons if made else [],
        stage_durations=_durations(job, record),
        peak_memory_mb=_megabytes(made.peak_vram_gb) if made else None,
        seed=made.seed if made and made.seed is not None else request.seed,
        **{name: getattr(request, name) for name in _PARAMETERS},
        lora=LoraView(name=job.lora, scale=request.lora.scale)
        if job.lora and request.lora
        else None,
    )


def _unreadable(job: Job) -> VideoResource:
    message = "the server cannot read what it stored of this job; delete it, and ask the operator"
    unknown: dict[str, Any] = {"prompt": "", "size": "", "seconds": "", "seed": 0}
    unknown |= GenerationDefaults().model_dump(include=set(_PARAMETERS))
    nullable = ("template", "lora", "url", "temporal_score", "verdict", "peak_memory_mb")
    unknown |= dict.fromkeys((*nullable, "remixed_from_video_id"))
    return VideoResource(
        **unknown,
        id=job.id,
        status="failed",
        progress=0,
        model=job.model,
        created_at=int(job.created_at),
        started_at=_whole(job.started_at),
        completed_at=_whole(job.ended_at),
        expires_at=_whole(job.expires_at),
        error=VideoError(code="unreadable_job", message=message),
        attempt=job.attempt,
        attempts=[],
        reasons=[],
        stage_durations={},
    )


@lru_cache(maxsize=2048)
def encoded(job: Job) -> str:
    """The view as JSON; a job that many follow is encoded once."""
    return view(job).model_dump_json()


def _progress(job: Job) -> int:
    if job.status == "completed":
        return 100
    # Decoding, scoring and saving follow the last step.
    return min(99, 100 * job.step // max(1, job.num_steps))


def _error(job: Job) -> VideoError | None:
    if job.error_code is None:
        return None
    return VideoError(code=job.error_code, message=job.error_message or "")


def _verdict(record: GenerationRecord | None) -> Literal["accepted", "needs_review"] | None:
    if record is None:
        return None
    return "accepted" if record.status == "accepted" else "needs_review"


def _durations(job: Job, record: GenerationRecord | None) -> dict[str, float]:
    durations = {}
    if job.started_at is not None:
        durations["queued"] = max(0.0, job.started_at - job.created_at)  # clocks are set back
    if record is not None:
        stages = record.stages.model_dump(exclude_none=True)
        durations |= {name.removesuffix("_s"): seconds for name, seconds in stages.items()}
    if job.ended_at is not None:
        durations["total"] = max(0.0, job.ended_at - job.created_at)
    return {name: round(seconds, 4) for name, seconds in durations.items()}


def _megabytes(gigabytes: float | None) -> float | None:
    return None if gigabytes is None else round(gigabytes * 1000, 1)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
