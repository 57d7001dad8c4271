"""The HTTP application: routes, errors, limits, and its OpenAPI description."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response

from vidgen_ray import __version__
from vidgen_ray.serving.http import problems
from vidgen_ray.serving.http.clip_routes import clip_routes
from vidgen_ray.serving.http.cluster_metrics import gather_metrics
from vidgen_ray.serving.http.context import Context, Owner, Serving
from vidgen_ray.serving.http.health import Health
from vidgen_ray.serving.http.responses import ModelList, ModelView
from vidgen_ray.serving.http.video_routes import video_routes

_DESCRIPTION = """\
One photo and one prompt become a clip of a few seconds, scored and judged.

`POST /generate-video` waits for the clip. `POST /v1/videos` answers at once with a job to poll or
to follow; it has the form of OpenAI's videos API, so that its clients work. Every error has the
same shape and an `X-Request-ID` that the operator can find in the logs.
"""


def build_api(context: Context) -> FastAPI:
    """The application around one ingress replica's parts."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gc.freeze()  # what is here stays; a look for garbage among it holds up everybody for 0.1 s
        refreshing = asyncio.create_task(context.vitals.run())
        yield
        refreshing.cancel()

    app = FastAPI(
        title="vidgen-ray",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
    )
    app.state.context = context
    problems.install(app)
    app.include_router(clip_routes())
    app.include_router(video_routes())

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")

    @app.get("/health", response_model=Health, tags=["Service"], summary="Health")
    async def health() -> Health:
        """Each deployment's status, the model, and the queue. Always quick, and open to anybody."""
        return context.vitals.health

    @app.get(
        "/v1/models",
        response_model=ModelList,
        responses=problems.documented(401, 403),
        tags=["Service"],
        summary="Models",
    )
    async def models(context: Serving, owner: Owner) -> ModelList:
        """The served model, and the LoRA adapters that go with it."""
        return ModelList(data=await asyncio.to_thread(_models, context))

    @app.get(
        "/v1/models/{name}",
        response_model=ModelView,
        responses=problems.documented(401, 403, 404, 422),
        tags=["Service"],
        summary="Model",
    )
    async def model(name: str, context: Serving, owner: Owner) -> ModelView:
        """One of them."""
        for known in await asyncio.to_thread(_models, context):
            if known.id == name:
                return known
        raise problems.not_found(f"model {name[:120]!r}")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"description": "The page.", "content": {"text/plain": {}}},
            **problems.documented(401, 403),
        },
        tags=["Service"],
        summary="Metrics",
    )
    async def metrics(owner: Owner) -> Response:
        """Of every node, for Prometheus: `ray_vidgen_*`, `ray_serve_*` and `ray_node_*`."""
        return PlainTextResponse(await gather_metrics(), media_type="text/plain; version=0.0.4")

    return app


def _models(context: Context) -> list[ModelView]:
    base = context.intake.model_id
    adapters = [
        ModelView(id=name, created=int(path.stat().st_mtime), parent=base)
        for name, path in context.intake.loras().items()
    ]
    return [ModelView(id=base, created=0, parent=None), *adapters]
