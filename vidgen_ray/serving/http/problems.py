"""Error answers: one JSON shape for all of them, with a request id."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from ray.serve.context import _get_serve_request_context
from starlette.exceptions import HTTPException

from vidgen_ray.config import describe
from vidgen_ray.errors import ArtifactError, StoreError
from vidgen_ray.serving.http.proxy import clean

logger = logging.getLogger("ray.serve")


class ProblemDetail(BaseModel):
    """What is wrong. `param` is the field at fault, where one is."""

    message: str
    type: str
    code: str
    param: str | None = None
    request_id: str


class Problem(BaseModel):
    """Every error answer."""

    error: ProblemDetail


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status_code: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


def invalid(message: str, param: str | None = None) -> ApiError:
    """422: a field is wrong. `param` is taken from a message `field: rule` by default."""
    field, colon, _ = message.partition(":")
    known = field if colon and field.replace("_", "").replace(".", "").isalnum() else None
    return ApiError(422, "invalid_request", message, param=param or known)


def invalid_fields(error: ValidationError) -> ApiError:
    """422 that names every field that is wrong."""
    return invalid("; ".join(describe(error)))


def not_found(what: str) -> ApiError:
    """404."""
    return ApiError(404, "not_found", f"there is no {what}")


def request_id() -> str:
    """The id of the current request: the client's X-Request-ID, or one that Serve gave."""
    return clean(_get_serve_request_context().request_id or "") or "unknown"


def documented(*status_codes: int) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route: these statuses answer with a Problem."""
    return {code: {"model": Problem, "description": _MEANING[code]} for code in status_codes}


def install(app: FastAPI) -> None:
    """Make every error of `app` a Problem."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        if error.status_code == 422:
            error.status_code = request.app.state.context.arguments.validation_status
        return error_response(error)

    @app.exception_handler(StoreError)
    @app.exception_handler(ArtifactError)
    async def store_error(_: Request, error: Exception) -> JSONResponse:
        logger.error("%s", error)
        message = "the server cannot store or read jobs at the moment; nothing was accepted"
        return error_response(ApiError(503, "unavailable", message, headers={"Retry-After": "5"}))

    @app.exception_handler(RecursionError)
    async def too_deep(_: Request, error: RecursionError) -> JSONResponse:
        return error_response(ApiError(400, "bad_json", "the body is nested too deeply"))

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc'][1:])}: {problem['msg']}"
            for problem in error.errors()
        ]
        return await api_error(request, invalid("; ".join(problems)))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "invalid_request")
        detail = _MEANING.get(error.status_code, str(error.detail))
        return error_response(ApiError(error.status_code, code, detail, headers=error.headers))

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> JSONResponse:
        logger.error("unexpected error", exc_info=error)
        message = "unexpected error; tell the operator the request id"
        return error_response(ApiError(500, "internal_error", message))


def error_response(error: ApiError) -> JSONResponse:
    """The answer of an error, as a Problem."""
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    detail = ProblemDetail(
        message=error.message,
        type=kind,
        code=error.code,
        param=error.param,
        request_id=request_id(),
    )
    return JSONResponse({"error": detail.model_dump()}, error.status_code, error.headers)


_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media"}

_MEANING = {
    400: "the body cannot be read as what its content type says",
    401: "an API key is needed: `Authorization: Bearer vg_...`",
    403: "the server answers this machine alone, or not the web page that asks",
    404: "there is no such thing, or it is somebody else's",
    405: "this address does not take that method",
    409: "not as things stand: not ended yet, or an idempotency key used for something else",
    410: "the clip was made, but its file is lost or damaged",
    413: "the body is too large",
    415: "the body must be multipart/form-data or application/json",
    416: "the file has no such range",
    422: "a field is wrong; the message names it, the rule, the value and the fix",
    429: "the queue is full; try again after Retry-After seconds",
    500: "the model could not make this clip",
    503: "the server cannot store or read jobs at the moment; nothing was accepted",
    504: "the clip took longer than the server waits; it was cancelled",
}
