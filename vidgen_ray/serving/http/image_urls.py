"""Fetching an image that a client names by URL: https, public addresses, bounded, no redirects.

The name is resolved once and the connection goes to the address that was checked, so that a name
server cannot answer the check with one address and the connection with another.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx

from vidgen_ray.errors import RequestError

_TIMEOUT_S = 20.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is of the open internet: no loopback, private, link-local or mapped."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address in ipaddress.ip_network("64:ff9b::/96"):
            return False
    return address.is_global and not address.is_multicast


async def fetch_image(
    url: str,
    *,
    max_bytes: int,
    field: str = "input_reference",
    allowed: Callable[[Address], bool] = is_public,
    verify: ssl.SSLContext | bool = True,
    timeout_s: float = _TIMEOUT_S,
) -> bytes:
    """The bytes at `url`. Raises RequestError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        host, port, parts = None, 443, urlsplit("")
    if parts.scheme != "https" or not host or parts.username or parts.password:
        raise RequestError(f"{field}: must be an https:// address without user or password")
    try:
        async with asyncio.timeout(timeout_s):
            address = await _resolve(host, port, field, allowed)
            netloc = f"[{address}]" if address.version == 6 else str(address)
            target = parts._replace(netloc=f"{netloc}:{port}", fragment="").geturl()
            headers = {"host": parts.netloc, "accept": "image/*", "accept-encoding": "identity"}
            async with (
                httpx.AsyncClient(verify=verify, trust_env=False) as client,
                client.stream(
                    "GET", target, headers=headers, extensions={"sni_hostname": host}
                ) as answer,
            ):
                return await _read(answer, max_bytes, field)
    except TimeoutError:
        raise RequestError(f"{field}: did not come within {timeout_s:g} s; upload it") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ssl.SSLError) as error:
        raise RequestError(
            f"{field}: cannot be fetched ({type(error).__name__}); upload the image instead"
        ) from None


async def _resolve(host: str, port: int, field: str, allowed: Callable[[Address], bool]) -> Address:
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RequestError(f"{field}: the host cannot be found; fix the address") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(allowed(address) for address in addresses):
        raise RequestError(f"{field}: must be on the public internet; upload the image instead")
    return addresses[0]


async def _read(answer: httpx.Response, max_bytes: int, field: str) -> bytes:
    if answer.status_code != 200:
        raise RequestError(
            f"{field}: the address answers {answer.status_code}, and redirects are not followed; "
            "give the image's own address, or upload it"
        )
    data = bytearray()
    async for chunk in answer.aiter_raw():  # unpacking could make much of little
        data += chunk
        if len(data) > max_bytes:
            raise RequestError(f"{field}: must be at most {max_bytes} bytes; use a smaller file")
    return bytes(data)
