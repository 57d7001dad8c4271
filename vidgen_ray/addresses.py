"""Bytes from a path or any fsspec address, and one clear error where there are none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from vidgen_ray.errors import RequestError


def read_address(
    address: str, *, field: str, max_bytes: int, compression: str | None = None
) -> bytes:
    """The bytes at a path or fsspec address, decompressed if `compression` names a format.

    Raises RequestError when there is no such file, or it cannot be read or is over `max_bytes`.
    """
    with readable(address, field):
        filesystem, path, size = locate(address, field)
        if size is not None and size > max_bytes:
            raise too_large(field, max_bytes, f"{size} bytes", address)
        with filesystem.open(path, "rb", compression=compression) as file:
            data: bytes = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large(field, max_bytes, "more", address)
    return data


@contextmanager
def readable(address: str, field: str) -> Iterator[None]:
    """Turn whatever a filesystem raises into a RequestError."""
    try:
        yield
    except RequestError:
        raise
    except FileNotFoundError as error:
        raise RequestError(f"{field}: no such file: {address!r}; mend the address") from error
    except PermissionError as error:
        raise RequestError(
            f"{field}: must be readable, got {address!r} without permission to read it; "
            "change its permissions or the credentials"
        ) from error
    except Exception as error:  # every fsspec backend has errors of its own
        raise RequestError(
            f"{field}: cannot be read: {address!r}: {one_line(error)}; mend the address"
        ) from error


def locate(address: str, field: str) -> tuple[Any, str, int | None]:
    """The fsspec filesystem, the path in it and the size in bytes where it tells."""
    filesystem, path = fsspec.core.url_to_fs(address)
    info = filesystem.info(path)
    if info.get("type") == "directory":
        raise RequestError(f"{field}: must be a file, got the folder {address!r}; name a file")
    if info.get("type") == "other":
        raise RequestError(f"{field}: must be a file, got {address!r}, a pipe or device; copy it")
    return filesystem, path, info.get("size")


def too_large(field: str, max_bytes: int, got: str, name: str) -> RequestError:
    """The error for a file over its limit."""
    return RequestError(
        f"{field}: must be at most {max_bytes} bytes, got {got} ({name!r}); use a smaller file"
    )


def one_line(error: BaseException) -> str:
    """An error of a library, fit to stand inside one of ours."""
    return " ".join(f"{type(error).__name__}: {error}".split())
