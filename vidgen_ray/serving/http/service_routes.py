"""The routes about the service itself: health, models, metrics and the list of routes."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from vidgen_ray.serving.http.context import Context, Owner, Serving
from vidgen_ray.serving.http.docs_page import docs_page
from vidgen_ray.serving.http.health import Health
from vidgen_ray.serving.http.problems import documented, not_found
from vidgen_ray.serving.http.responses import ModelList, ModelView

_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": Health, "description": "The status is not ok."}
}


def service_routes() -> APIRouter:
    """The router."""
    router = APIRouter()
    _add_pages(router)
    _add_health(router)
    _add_models(router)
    _add_metrics(router)
    return router


def _add_pages(router: APIRouter) -> None:
    @router.get("/", include_in_schema=False)
    async def home(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(request.app.openapi()))


def _add_health(router: APIRouter) -> None:
    @router.get(
        "/health",
        response_model=Health,
        responses={**_NOT_READY, **documented(422)},
        tags=["Service"],
        summary="Health",
    )
    async def health(
        context: Serving,
        response: Response,
        strict: Annotated[bool, Query(description="503 unless the status is ok.")] = False,
    ) -> Health:
        """Each deployment's status, the model, the queue, and what does not work. Always quick, and
        open to anybody."""
        state = context.health.health
        if strict and state.status != "ok":
            response.status_code = 503
        return state

    @router.get(
        "/health/ready",
        response_model=Health,
        responses=_NOT_READY,
        tags=["Service"],
        summary="Readiness",
    )
    async def ready(context: Serving, response: Response) -> Health:
        """The same, with 503 unless the status is ok: for load balancers."""
        return await health(context, response, strict=True)

    for path, endpoint in (("/health", health), ("/health/ready", ready)):
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


def _add_models(router: APIRouter) -> None:
    @router.get(
        "/v1/models",
        response_model=ModelList,
        responses=documented(401, 403),
        tags=["Service"],
        summary="Models",
    )
    async def models(context: Serving, owner: Owner) -> ModelList:
        """The served model, and the LoRA adapters that go with it."""
        return ModelList(data=await asyncio.to_thread(_models, context))

    @router.get(
        "/v1/models/{name}",
        response_model=ModelView,
        responses=documented(401, 403, 404, 422),
        tags=["Service"],
        summary="Model",
    )
    async def model(name: str, context: Serving, owner: Owner) -> ModelView:
        """One of them."""
        for known in await asyncio.to_thread(_models, context):
            if known.id == name:
                return known
        raise not_found(f"model {name[:120]!r}")


def _add_metrics(router: APIRouter) -> None:
    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"description": "The page.", "content": {"text/plain": {}}},
            **documented(401, 403),
        },
        tags=["Service"],
        summary="Metrics",
    )
    async def metrics(context: Serving, owner: Owner) -> Response:
        """For Prometheus: with an operator's key, and where there are no keys, the metrics of every
        node; with any other key, the lengths of the owner's own queue."""
        if context.is_operator(owner):
            page = await context.metrics.page()
        else:
            page = queue_page(await asyncio.to_thread(context.store.count, owner))
        return PlainTextResponse(page, media_type="text/plain; version=0.0.4")


def queue_page(counts: dict[str, int]) -> str:
    """The queue of one owner as a Prometheus page."""
    lines = [
        f'vidgen_owner_queue_length{{state="{state}"}} {counts.get(state, 0)}'
        for state in ("queued", "in_progress")
    ]
    return "# TYPE vidgen_owner_queue_length gauge\n" + "\n".join(lines) + "\n"


def _models(context: Context) -> list[ModelView]:
    base = context.job_creator.model_id
    adapters = [
        ModelView(id=name, created=int(path.stat().st_mtime), parent=base)
        for name, path in context.job_creator.loras().items()
    ]
    return [ModelView(id=base, created=0, parent=None), *adapters]
