"""Routes that clients of other servers expect: POST /v1/videos/sync and remix."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vidgen_ray.serving.http.clip_files import send_clip
from vidgen_ray.serving.http.clip_routes import generate_clip
from vidgen_ray.serving.http.context import Owner, Serving
from vidgen_ray.serving.http.openapi import form_and_json
from vidgen_ray.serving.http.problems import documented
from vidgen_ray.serving.http.request_body import read_body
from vidgen_ray.serving.http.responses import VideoResource, encoded, view
from vidgen_ray.serving.http.video_routes import IdempotencyKey

_MP4: dict[str, Any] = {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}


def compatible_routes() -> APIRouter:
    """The router."""
    router = APIRouter(prefix="/v1/videos", tags=["Videos"])

    @router.post(
        "/sync",
        response_class=Response,
        responses={
            200: {"description": "The clip.", "content": _MP4},
            **documented(400, 401, 403, 404, 409, 413, 415, 416, 422, 429, 500, 503, 504),
        },
        openapi_extra=form_and_json("input_reference"),
        summary="Create a video and download it",
    )
    async def sync(
        request: Request, context: Serving, owner: Owner, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Wait for the clip, as vllm-omni's clients do, and answer with the MP4.

        The headers `X-Video-ID` and `X-Verdict` name the job and the verdict on its clip.
        """
        job = await generate_clip(request, context, owner, idempotency_key)
        response = await send_clip(request, context, job)
        response.headers["x-video-id"] = job.id
        response.headers["x-verdict"] = view(job).verdict or "none"
        return response

    @router.post(
        "/{video_id}/remix",
        response_model=VideoResource,
        responses=documented(400, 401, 403, 404, 409, 413, 415, 422, 429, 503),
        openapi_extra=form_and_json(None),
        summary="Remix",
    )
    async def remix(
        request: Request,
        video_id: str,
        context: Serving,
        owner: Owner,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Create a job with the image of another, and a new prompt.

        A field that the body leaves out, `seed` too, is that of the other job, which may be in any
        state but must not have been deleted.
        """
        source = await context.find(video_id, owner)
        if idempotency_key is None:
            await context.job_creator.check_room(owner)
        body = await read_body(request, context.arguments.max_image_bytes, needs_image=False)
        job, _ = await context.job_creator.accept(body, owner, idempotency_key, source)
        context.wake()
        return Response(encoded(job), media_type="application/json")

    return router
