"""What a webhook address may look like, checked before it is stored."""

import re
from urllib.parse import urlsplit

import httpx

MAX_URL_CHARACTERS = 2000
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


def check_webhook_url(url: str, schemes: tuple[str, ...] = ("https",)) -> str:
    """The host of `url`. Raises ValueError that says which rule it breaks."""
    if len(url) > MAX_URL_CHARACTERS:
        raise ValueError(f"must have at most {MAX_URL_CHARACTERS} characters, got {len(url)}")
    if not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise ValueError("must be printable ASCII without spaces or backslashes; percent-encode it")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        sent_to = httpx.URL(url).host  # what will really be called
    except (ValueError, httpx.InvalidURL):
        raise ValueError("must be an address with a host, and a port from 1 to 65535") from None
    if parts.scheme not in schemes:
        raise ValueError(f"must start with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user or password")
    if not host or port == 0 or host != sent_to.lower():
        raise ValueError("must be an address with a host, and a port from 1 to 65535")
    return host
