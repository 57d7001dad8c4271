"""The HTTP application: routes, errors, limits, and its OpenAPI description."""

import contextlib
import gc
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from vidgen_ray import __version__
from vidgen_ray.serving.http import problems
from vidgen_ray.serving.http.clip_routes import clip_routes
from vidgen_ray.serving.http.compatible_routes import compatible_routes
from vidgen_ray.serving.http.context import Context
from vidgen_ray.serving.http.guard import Guard
from vidgen_ray.serving.http.service_routes import service_routes
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
        gc.freeze()  # what is here stays; collecting it would block all requests for 0.1 s
        context.background.start("health", context.health.run)
        context.background.start("storage", context.health.probe)
        context.background.start("api_keys", context.keys_file.run)
        yield
        context.background.stop()

    app = FastAPI(
        title="vidgen-ray",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # Swagger UI and Redoc would come from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    problems.install(app)
    _add_middlewares(app, context)
    app.include_router(clip_routes())
    app.include_router(compatible_routes())
    app.include_router(video_routes())
    app.include_router(service_routes())
    return app


def _add_middlewares(app: FastAPI, context: Context) -> None:
    arguments = context.arguments
    if arguments.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=arguments.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_middleware(
        Guard,
        allowed_hosts=arguments.allowed_hosts,
        allowed_origins=arguments.allowed_origins,
        loopback_only=not context.keys.are_needed and not arguments.allow_open_network,
    )
