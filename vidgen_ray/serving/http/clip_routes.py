"""The routes that wait and answer with a clip: POST /generate-video and GET /artifacts."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vidgen_ray.serving.http.clip_files import send_clip
from vidgen_ray.serving.http.context import Context, Owner, Serving
from vidgen_ray.serving.http.openapi import form_and_json
from vidgen_ray.serving.http.problems import ApiError, documented, not_found
from vidgen_ray.serving.http.request_body import read_body
from vidgen_ray.serving.http.responses import VideoResource, encoded
from vidgen_ray.serving.http.video_routes import IdempotencyKey
from vidgen_ray.serving.queue.store import Job

_MP4: dict[str, Any] = {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}


def clip_routes() -> APIRouter:
    """The router."""
    router = APIRouter(tags=["Clips"])

    @router.post(
        "/generate-video",
        response_model=VideoResource,
        responses=documented(400, 401, 403, 409, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=form_and_json("image"),
        summary="Make a clip and wait for it",
    )
    async def generate(
        request: Request, context: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Wait until the clip is made, and answer with its address, score, verdict and parameters.

        A client that leaves cancels its clip, unless it sent an `Idempotency-Key`: the same request
        with the same key then finds it. For clips that take minutes use `/v1/videos`.
        """
        ended = await generate_clip(request, context, owner, idempotency_key)
        return Response(encoded(ended), media_type="application/json")

    @router.get(
        "/artifacts/{filename}",
        response_class=Response,
        responses={
            200: {"description": "The clip.", "content": _MP4},
            206: {"description": "A range of it.", "content": _MP4},
            304: {"description": "As the client has it."},
            **documented(401, 403, 404, 409, 410, 416, 422, 503),
        },
        summary="Download a clip",
    )
    async def artifact(request: Request, filename: str, context: Serving, owner: Owner) -> Response:
        """`<id>.mp4`, whole or by ranges."""
        job_id, dot, suffix = filename.rpartition(".")
        if not dot or suffix != "mp4":
            raise not_found(f"file {filename[:120]!r}")
        return await send_clip(request, context, await context.find(job_id, owner))

    router.add_api_route(
        "/artifacts/{filename}", artifact, methods=["HEAD"], include_in_schema=False
    )
    return router


async def generate_clip(
    request: Request, context: Context, owner: str, idempotency_key: str | None
) -> Job:
    """The completed job of a create request; a client that leaves without an idempotency key
    cancels it. Raises ApiError."""
    if idempotency_key is None:  # else the job may be there already
        await context.job_creator.check_room(owner)
    body = await read_body(request, context.arguments.max_image_bytes)
    job, _ = await context.job_creator.accept(body, owner, idempotency_key)
    context.wake()
    try:
        return await _wait(request, context, job)
    except BaseException:
        # With a key others may wait for the same job, on this Ingress or on another.
        if idempotency_key is None:
            await asyncio.shield(_cancel(context, job))
        raise


async def _wait(request: Request, context: Context, job: Job) -> Job:
    """The completed job. Raises ApiError for any other end, and when the client leaves."""
    ended = asyncio.create_task(context.watch.until_end(job))
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait(
            [ended, left],
            timeout=context.arguments.wait_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not ended.done():
            raise ApiError(504, "timeout", _TOO_LONG if not left.done() else "the client has left")
        final = ended.result()
    finally:
        ended.cancel()
        left.cancel()
    if final is None:
        raise not_found(f"video {job.id!r}: it was deleted while it was made")
    if final.status == "cancelled":
        raise ApiError(409, "cancelled", f"{job.id} was cancelled while it was made")
    if final.status == "failed":
        code = final.error_code or "generation_failed"
        status_code = {"timeout": 504, "invalid_request": 422}.get(code, 500)
        raise ApiError(status_code, code, final.error_message or "")
    return final


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(context: Context, job: Job) -> None:
    await asyncio.to_thread(context.store.cancel, job.id)
    context.wake()


_TOO_LONG = (
    "the clip took longer than the server waits; it was cancelled, unless the request had an "
    "Idempotency-Key; use /v1/videos"
)
