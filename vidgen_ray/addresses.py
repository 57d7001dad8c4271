"""Read and join local paths and fsspec addresses, with one clear error for each failure."""

import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from vidgen_ray.errors import RequestError

_HOSTLESS = {"file", "local", "memory", "zip", "tar"}
_JOB_FOLDER = "runtime_resources"  # where Ray unpacks the working directory of a job


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
    """Turn any exception of a filesystem into a RequestError that names `field` and `address`."""
    try:
        yield
    except RequestError:
        raise
    except FileNotFoundError as error:
        raise RequestError(f"{field}: {missing_file(address)}") from error
    except PermissionError as error:
        raise RequestError(
            f"{field}: must be readable, got {address!r} without permission to read it; "
            "change its permissions or the credentials"
        ) from error
    except Exception as error:  # every fsspec backend has errors of its own
        raise RequestError(
            f"{field}: cannot be read: {address!r}: {one_line(error)}; correct the address"
        ) from error


def locate(address: str, field: str) -> tuple[Any, str, int | None]:
    """The fsspec filesystem, the path in it, and the size in bytes if it is reported."""
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
    """A library's error as one line, to quote in a message of ours."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def missing_file(address: str) -> str:
    """The message for a file that does not exist; in a Ray job it explains `.gitignore`."""
    message = f"no such file: {address!r}; correct the address"
    path = os.path.abspath(os.path.expanduser(address)) if "://" not in address else ""
    if _JOB_FOLDER not in Path(path).parts:
        return message
    return (
        f"{message}. `ray job submit --working-dir` does not upload files that .gitignore or "
        ".rayignore excludes: remove it there, or use an address that every node can read"
    )


@contextmanager
def atomic_path(target: Path, staging: Path | None = None) -> Iterator[Path]:
    """A temporary path that is renamed to `target` if the context ends without an error.

    It lies in the folder `staging`, on the same disk, by default beside `target`. Otherwise it is
    removed, so that `target` exists whole or not at all.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent if staging is None else staging
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{target.stem}.{uuid.uuid4().hex[:8]}.partial{target.suffix}"
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def join(folder: str, path: str) -> str:
    """`path` relative to `folder`, unless it is absolute, in a home folder or a URL."""
    if not path or "://" in path or path.startswith("~") or os.path.isabs(path):
        return path
    if "://" not in folder:
        return os.path.join(folder, path)
    before, scheme, rest, after = _split(folder)
    # The bucket or server name comes first; `..` must not climb above it.
    host, _, inner = ("", "", rest) if scheme in _HOSTLESS else rest.partition("/")
    inner = posixpath.normpath(posixpath.join(f"/{inner}" if host else inner, path))
    return f"{before}{scheme}://{host}{inner}{after}"


def folder_of(address: str) -> str:
    """The absolute folder of a file: workers run in another working directory."""
    if "://" not in address:
        return os.path.dirname(os.path.abspath(os.path.expanduser(address)))
    before, scheme, rest, after = _split(address)
    folder = without_query(f"{scheme}://{rest}").partition("://")[2].rpartition("/")[0]
    return f"{before}{scheme}://{folder}{after}"


def _split(address: str) -> tuple[str, str, str, str]:
    """Split a chained address around its first link with a scheme: before, scheme, path, after.

    fsspec chains with `::`: `zip://jobs.csv::s3://bucket/a.zip`, `simplecache::s3://bucket/a`.
    """
    links = address.split("::")
    index = next(index for index, link in enumerate(links) if "://" in link)
    scheme, _, rest = links[index].partition("://")
    before = "".join(f"{link}::" for link in links[:index])
    return before, scheme, rest, "".join(f"::{link}" for link in links[index + 1 :])


def without_query(address: str) -> str:
    """The address without the query of a signed URL, so that it ends in the file's suffix."""
    if "://" not in address:
        return address
    _, scheme, rest, _ = _split(address)
    return f"{scheme}://{re.split('[?#]', rest)[0] if scheme in {'http', 'https'} else rest}"
