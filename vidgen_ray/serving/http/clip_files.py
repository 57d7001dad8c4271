"""Clips and thumbnails over HTTP: ranges, ETag, the right content type."""

import asyncio
import logging
import os
import re
import tempfile
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response
from pydantic import ValidationError
from starlette.background import BackgroundTask

from vidgen_ray.schema import GenerationRecord
from vidgen_ray.serving.http.context import Context
from vidgen_ray.serving.http.problems import ApiError, not_found
from vidgen_ray.serving.queue.store import Job

logger = logging.getLogger("ray.serve")

_KINDS = {".mp4": "video/mp4", ".jpg": "image/jpeg"}
_RANGE = re.compile(r"(\d{0,18})-(\d{0,18})", re.ASCII)


async def send_clip(request: Request, context: Context, job: Job) -> Response:
    """The clip of a job. Raises ApiError: 409 while it is being made, 404 when there is none."""
    if not job.has_ended:
        message = f"{job.id} is {job.status}; its clip can be had when it is completed"
        raise ApiError(409, "not_ready", message)
    if job.record is None or job.status != "completed":
        raise not_found(f"clip of {job.id}: it was {job.status}")
    try:
        artifact = GenerationRecord.model_validate_json(job.record).artifact
    except ValidationError:
        artifact = None
    if artifact is None:
        raise _lost(job.id, "its record cannot be read")
    return await _send(
        request, context, artifact.filename, artifact.sha256, size=artifact.size_bytes
    )


async def send_thumbnail(request: Request, context: Context, job: Job) -> Response:
    """The conditioning image of a job, small. Raises ApiError 404 and 409."""
    if not job.has_ended:
        raise ApiError(409, "not_ready", f"{job.id} is {job.status}; wait until it is completed")
    return await _send(request, context, f"thumbnails/{job.id}.jpg", job.fingerprint)


def _lost(name: str, why: str) -> ApiError:
    logger.error("%s: %s", name, why)
    return ApiError(410, "clip_lost", f"the file of {name} is lost or damaged on the server")


async def _send(
    request: Request, context: Context, name: str, digest: str, size: int | None = None
) -> Response:
    """A file of the output. With `size`, which its record tells, ApiError 410 where it differs."""
    headers = {"etag": f'"{digest}"', "cache-control": "private, no-cache"}
    asked = request.headers.get("if-none-match", "").split(",")
    if {f'"{digest}"', "*"} & {tag.strip().removeprefix("W/") for tag in asked}:
        return Response(status_code=304, headers=headers)  # the client's copy is whole
    path, cleanup = context.artifacts.local_path(name), None
    if path is None:
        path = await asyncio.to_thread(_copy, context, name)
        cleanup = BackgroundTask(path.unlink, missing_ok=True)
    try:
        stat = path.stat()
    except FileNotFoundError:
        if size is not None:
            raise _lost(name, "there is no such file in the output") from None
        raise not_found(f"file {name!r}") from None
    if size is not None and stat.st_size != size:
        raise _lost(name, f"has {stat.st_size} bytes, must have {size}")
    _check_range(request, stat.st_size)
    return FileResponse(
        path,
        headers=headers,
        media_type=_KINDS[path.suffix],
        filename=Path(name).name,
        content_disposition_type="inline",
        stat_result=stat,
        background=cleanup,
    )


def _copy(context: Context, name: str) -> Path:
    """A copy on this machine of a file that lies elsewhere."""
    handle, copy = tempfile.mkstemp(suffix=Path(name).suffix)
    os.close(handle)
    context.artifacts.fetch(name, Path(copy))
    return Path(copy)


def _check_range(request: Request, size: int) -> None:
    """Drop a Range header that says nothing, as RFC 9110 asks; raise ApiError 416 beyond the end.

    What is left is answered by FileResponse.
    """
    value = request.headers.get("range")
    if value is None:
        return
    parts = [_RANGE.fullmatch(part.strip()) for part in value.partition("=")[2].split(",")]
    pairs = [match.groups() for match in parts if match and any(match.groups())]
    backwards = any(first and last and int(first) > int(last) for first, last in pairs)
    if not value.startswith("bytes=") or len(pairs) < len(parts) or backwards:
        kept = [header for header in request.scope["headers"] if header[0] != b"range"]
        request.scope["headers"] = kept
    elif any(int(first) >= size if first else int(last) == 0 for first, last in pairs):
        headers = {"content-range": f"bytes */{size}"}
        raise ApiError(416, "bad_range", f"the file has {size} bytes", headers=headers)
