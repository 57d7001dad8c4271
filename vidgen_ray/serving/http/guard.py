"""What every request passes before a route sees it: Host, Origin, and the form of its path."""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidgen_ray.serving.http.problems import ApiError, error_response

_CROSS_SITE = {"cross-site", "same-site"}


class Guard:
    """ASGI middleware that refuses what a foreign web page makes a browser send."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Iterable[str],
        allowed_origins: Iterable[str],
        loopback_only: bool,
    ) -> None:
        """`loopback_only`: the server has no API keys, so that the Host must be this machine's.

        A page on another host can make a browser call 127.0.0.1, also under a name of its own (DNS
        rebinding); what it cannot do is send another Host or Origin.
        """
        self._app = app
        self._hosts = {host.lower() for host in allowed_hosts}
        self._origins = set(allowed_origins)
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope["method"], Headers(scope=scope))
        if problem is not None:
            await error_response(problem)(scope, receive, _with_nosniff(send))
            return
        await self._app(_without_slash(scope), receive, _with_nosniff(send))

    def _problem(self, method: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if not self._is_allowed_host(_name(host)):
            return _forbidden(
                f"Host: {host[:80]!r} is not answered; the operator can add it to allowed_hosts"
            )
        origin = headers.get("origin")
        if origin is not None:
            if origin in self._origins or urlsplit(origin).netloc.lower() == host.lower():
                return None
            return _forbidden(
                f"Origin: web pages of {origin[:80]!r} may not use this server; the "
                "operator can add it to allowed_origins"
            )
        is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in _CROSS_SITE and not is_link:
            return _forbidden("Sec-Fetch-Site: other web pages may not use this server")
        return None

    def _is_allowed_host(self, name: str) -> bool:
        if name in self._hosts:
            return True
        return _is_loopback(name) if self._loopback_only else not self._hosts


def _forbidden(message: str) -> ApiError:
    return ApiError(403, "forbidden", message)


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _without_slash(scope: Scope) -> Scope:
    """`/v1/videos/` is `/v1/videos`: a redirect would have to guess the scheme behind a proxy."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    shorter = path.rstrip("/")
    path = f"{root}/" if shorter == root else shorter
    return {**scope, "path": path, "raw_path": path.encode()} if path != scope["path"] else scope


def _with_nosniff(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-content-type-options"] = "nosniff"
        await send(message)

    return sending
