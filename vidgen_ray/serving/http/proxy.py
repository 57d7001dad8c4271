"""Middlewares for Serve's HTTP proxy, which sees a request before the application does.

`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=vidgen_ray.serving.http.proxy.middlewares` installs them;
`vidgen serve` and the container image set it.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

MAX_REQUEST_ID_CHARACTERS = 128


def middlewares() -> list[Middleware]:
    """What Serve calls for."""
    return [Middleware(CleanRequestId)]


class CleanRequestId:
    """Printable ASCII of at most 128 characters in X-Request-ID; Serve fails on anything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = _cleaned(scope["headers"])
        await self._app(scope, receive, send)


def clean(request_id: str) -> str:
    """A client's request id as it may stand in logs and answers."""
    kept = "".join(c for c in request_id[:MAX_REQUEST_ID_CHARACTERS] if "!" <= c <= "~")
    return kept


def _cleaned(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without an id that nothing is left of, and with the first one of several."""
    kept, found = [], False
    for name, value in headers:
        if name != b"x-request-id":
            kept.append((name, value))
        elif not found and (id_ := clean(value.decode("latin-1"))):
            found = True
            kept.append((name, id_.encode()))
    return kept
