"""The routes under /v1/videos: OpenAI's videos API, and what newsrooms need beyond it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from vidgen_ray.errors import ArtifactError
from vidgen_ray.request import ID_PATTERN
from vidgen_ray.serving.http.clip_files import send_clip, send_thumbnail
from vidgen_ray.serving.http.context import Context, Owner, Serving
from vidgen_ray.serving.http.openapi import EVENTS, LINKS, form_and_json
from vidgen_ray.serving.http.problems import documented, invalid, not_found
from vidgen_ray.serving.http.request_body import read_body
from vidgen_ray.serving.http.responses import DeletedVideo, VideoList, VideoResource, encoded, view
from vidgen_ray.serving.queue.store import Job
from vidgen_ray.serving.queue.uploads import remove_files

logger = logging.getLogger("ray.serve")

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key gives the same job, however often it is sent.",
    ),
]

_KNOWN = (401, 403, 404, 422, 503)


class _EventStream(StreamingResponse):
    """Server-sent events that are encoded already, once for all followers."""

    media_type = "text/event-stream"


def video_routes() -> APIRouter:
    """The router."""
    router = APIRouter(prefix="/v1/videos", tags=["Videos"])
    _add_create(router)
    _add_list(router)
    _add_job(router)
    _add_end(router)
    _add_content(router)
    return router


def _add_create(router: APIRouter) -> None:
    @router.post(
        "",
        response_model=VideoResource,
        responses={
            200: {"links": LINKS},
            **documented(400, 401, 403, 409, 413, 415, 422, 429, 503),
        },
        openapi_extra=form_and_json("input_reference"),
        summary="Create a video",
    )
    async def create(
        request: Request, context: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Keep a job for one clip and answer at once; poll it, or follow its events.

        Multipart or JSON. A clip is made from `input_reference`, an image. What is left out comes
        from the server's configuration.
        """
        if idempotency_key is None:  # else the job may be there already
            await context.job_creator.check_room(owner)
        body = await read_body(request, context.arguments.max_image_bytes)
        job, _ = await context.job_creator.accept(body, owner, idempotency_key)
        context.wake()
        return _json(job)


def _add_list(router: APIRouter) -> None:
    @router.get(
        "", response_model=VideoList, responses=documented(401, 403, 404, 422, 503), summary="List"
    )
    async def page(
        context: Serving,
        owner: Owner,
        after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
        limit: Annotated[int, Query(ge=0, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """Your jobs by age, the newest first."""
        if after is not None and not ID_PATTERN.fullmatch(after):
            raise not_found(f"video {after[:120]!r}")
        jobs, has_more = await asyncio.to_thread(
            context.store.page, owner, after=after, limit=limit, order=order
        )
        return VideoList(
            data=[view(job) for job in jobs],
            first_id=jobs[0].id if jobs else None,
            last_id=jobs[-1].id if jobs else None,
            has_more=has_more,
        )


def _add_job(router: APIRouter) -> None:
    @router.get(
        "/{video_id}",
        response_model=VideoResource,
        responses=documented(*_KNOWN),
        summary="Retrieve",
    )
    async def retrieve(video_id: str, context: Serving, owner: Owner) -> Response:
        """The job as it stands; `progress` counts the steps that are done."""
        return _json(await context.find(video_id, owner))

    @router.get(
        "/{video_id}/events",
        response_class=Response,
        responses={200: {"description": "The stream.", "content": EVENTS}, **documented(*_KNOWN)},
        summary="Follow",
    )
    async def events(video_id: str, context: Serving, owner: Owner) -> _EventStream:
        """Server-sent events: the job at every step, until it ends.

        `event` is `video.queued`, `video.in_progress`, `video.completed`, `video.failed`,
        `video.cancelled` or `video.deleted`; `data` is the job. It comes again every 15 s at least.
        """
        job = await context.find(video_id, owner)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return _EventStream(_events(context, job), headers=headers)


def _add_end(router: APIRouter) -> None:
    @router.post(
        "/{video_id}/cancel",
        response_model=VideoResource,
        responses=documented(*_KNOWN),
        summary="Cancel",
    )
    async def cancel(video_id: str, context: Serving, owner: Owner) -> Response:
        """Stop a clip within one step. The job stays, as `cancelled`; one that ended stays so."""
        await context.find(video_id, owner)
        job = await asyncio.to_thread(context.store.cancel, video_id, owner)
        if job is None:
            raise not_found(f"video {video_id!r}")
        context.wake()
        return _json(job)

    @router.delete(
        "/{video_id}", response_model=DeletedVideo, responses=documented(*_KNOWN), summary="Delete"
    )
    async def delete(video_id: str, context: Serving, owner: Owner) -> DeletedVideo:
        """Remove job and clip; one that is being made is stopped first."""
        job = await context.find(video_id, owner)
        if not await asyncio.to_thread(context.store.remove, job.id, owner):
            raise not_found(f"video {video_id!r}")
        context.wake()
        try:
            await asyncio.to_thread(remove_files, context.artifacts, job.id)
        except ArtifactError as error:  # the sweep removes them
            logger.error("%s", error, extra={"video_id": job.id})
        return DeletedVideo(id=job.id)


def _add_content(router: APIRouter) -> None:
    @router.get(
        "/{video_id}/content",
        response_class=Response,
        responses={
            200: {"description": "The clip or its thumbnail.", "content": _MEDIA},
            206: {"description": "A range of it.", "content": _MEDIA},
            304: {"description": "As the client has it."},
            **documented(401, 403, 404, 409, 410, 416, 422, 503),
        },
        summary="Download",
    )
    async def content(
        request: Request,
        video_id: str,
        context: Serving,
        owner: Owner,
        variant: Literal["video", "thumbnail", "spritesheet"] = "video",
    ) -> Response:
        """The MP4, whole or by ranges; `variant=thumbnail` is the conditioning image, small."""
        job = await context.find(video_id, owner)
        if variant == "spritesheet":
            raise invalid("variant: must be video or thumbnail; there are no sprite sheets")
        if variant == "thumbnail":
            return await send_thumbnail(request, context, job)
        return await send_clip(request, context, job)

    router.add_api_route("/{video_id}/content", content, methods=["HEAD"], include_in_schema=False)


async def _events(context: Context, job: Job) -> AsyncGenerator[str]:
    async with contextlib.aclosing(context.watch.follow(job)) as changes:
        async for change in changes:
            yield _event(change) if change else _deleted(job.id)


@lru_cache(maxsize=1024)
def _event(job: Job) -> str:
    """An event as it is sent; one that many follow is written once."""
    return f"event: video.{job.status}\ndata: {encoded(job)}\n\n"


def _deleted(job_id: str) -> str:
    return f"event: video.deleted\ndata: {DeletedVideo(id=job_id).model_dump_json()}\n\n"


def _json(job: Job) -> Response:
    return Response(encoded(job), media_type="application/json")


_MEDIA: dict[str, Any] = {
    "video/mp4": {"schema": {"type": "string", "format": "binary"}},
    "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
}
