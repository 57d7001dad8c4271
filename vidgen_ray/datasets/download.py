"""Download a dataset's files with resume and checksums."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec

from vidgen_ray.addresses import one_line
from vidgen_ray.datasets.sources import DATASETS, DatasetName
from vidgen_ray.datasets.videos import VIDEO_SUFFIXES
from vidgen_ray.errors import DatasetError

CHECKSUMS = "SHA256SUMS"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CHUNK_BYTES = 8_000_000
# Base classes of aiohttp, of httpx and its forks, and of Python: by name, because which of the
# libraries is there depends on the backend.
_NETWORK_ERRORS = {"ClientConnectionError", "TransportError", "ConnectionError", "TimeoutError"}
_ARCHIVE = ".zip"
_FILE_SUFFIXES = {".zip", ".json", ".jsonl", ".csv", ".txt", ".gz", ".tar", *VIDEO_SUFFIXES}


@dataclass(frozen=True)
class RemoteFile:
    """A file at the source, its name below the output folder, and its size if reported.

    `version` changes with the content if the source reports an ETag, time or CRC.
    """

    filesystem: Any
    path: str
    name: str
    size_bytes: int | None
    version: str


@dataclass(frozen=True)
class Downloaded:
    """A complete local file; `is_new` is False if it existed before."""

    name: str
    size_bytes: int
    is_new: bool


def list_files(dataset: DatasetName, source: str | None, limit: int | None) -> list[RemoteFile]:
    """The files of a dataset to download.

    `source` is a hub id (`owner/name`), a file, an archive, or a folder at any fsspec address;
    None means the dataset's usual place. `limit` counts videos; with it only that many videos and
    the annotations are fetched from inside an archive. Raises DatasetError.
    """
    facts = DATASETS[dataset]
    address = source or facts.address
    if address is None:
        raise DatasetError(f"source: {facts.title} is not offered for download. {facts.obtain}")
    if _HUB_ID.fullmatch(address) and not os.path.exists(address):
        address = f"hf://datasets/{address}"
    address = address.rstrip("/")
    try:
        if _is_file(address):
            files = list(_one(address, limit))
        elif address.startswith(("http://", "https://")):  # servers do not list their folders
            sums = _published_checksums(address)
            files = sums + [
                file for name in facts.files for file in _one(f"{address}/{name}", limit)
            ]
        else:
            files = list(_inside(*fsspec.url_to_fs(address)))
    except Exception as error:  # every fsspec backend has errors of its own
        if unreachable := _unreachable(error):
            raise DatasetError(
                f"source: cannot reach {_host(address)} ({unreachable}); check this machine's "
                "network, DNS and proxy, or give a local copy with --source"
            ) from error
        raise DatasetError(
            f"source: {address!r} cannot be read: {one_line(error)}; give another with --source"
        ) from error
    if not files:
        raise DatasetError(f"source: {address!r} offers no files; give another with --source")
    return _limited(files, limit)


def fetch(
    file: RemoteFile, output: Path, on_bytes: Callable[[int], None] | None = None
) -> Downloaded:
    """Fetch one file into the folder `output`, continuing a partial download.

    Its SHA-256 is appended to `SHA256SUMS`; one that is already listed, by an earlier download or
    the publisher, must match. Raises DatasetError.
    """
    if file.name == CHECKSUMS:
        return _adopt_checksums(file, output)
    target = output / file.name
    if not target.resolve().is_relative_to(output.resolve()):
        raise DatasetError(f"source: names a file outside the output, {file.name!r}")
    known = read_checksums(output / CHECKSUMS)
    if target.exists() and file.size_bytes in (None, target.stat().st_size) and file.name in known:
        _check(file.name, sha256_of(target), known)
        return Downloaded(file.name, target.stat().st_size, False)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{_tag(file)}.partial")
    try:
        _copy(file, partial, on_bytes or (lambda num_bytes: None))
    except Exception as error:  # every fsspec backend has errors of its own
        raise DatasetError(
            f"source: the download of {file.name} failed: {one_line(error)}; run the same command "
            "again to resume it"
        ) from error
    digest = sha256_of(partial)
    try:
        _check(file.name, digest, known)
    except DatasetError:
        partial.unlink()
        raise
    partial.replace(target)
    if file.name not in known:
        with (output / CHECKSUMS).open("a", encoding="utf-8") as sums:
            sums.write(f"{digest}  {file.name}\n")
    return Downloaded(file.name, target.stat().st_size, True)


def read_checksums(path: Path) -> dict[str, str]:
    """Digests by file name of a `SHA256SUMS`; empty if there is no such file."""
    return parse_checksums(path.read_text(encoding="utf-8")) if path.exists() else {}


def parse_checksums(text: str) -> dict[str, str]:
    """Digests by file name, of lines as sha256sum writes them; the first one of a name wins."""
    lines = [line.strip().split(maxsplit=1) for line in reversed(text.split("\n"))]
    return {line[1].lstrip("*"): line[0].lower() for line in lines if len(line) == 2}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file(address: str) -> bool:
    return PurePosixPath(address.partition("?")[0]).suffix.lower() in _FILE_SUFFIXES


def _published_checksums(address: str) -> list[RemoteFile]:
    try:
        return list(_one(f"{address}/{CHECKSUMS}", None))
    except FileNotFoundError as error:
        if _unreachable(error):
            raise
        return []


def _unreachable(error: BaseException) -> str | None:
    """The network error behind a library's error, one line; None if the source answered.

    fsspec reports a host that cannot be reached as FileNotFoundError with the cause attached.
    """
    cause: BaseException | None = error
    while cause is not None:
        if _NETWORK_ERRORS & {kind.__name__ for kind in type(cause).__mro__}:
            return one_line(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _host(address: str) -> str:
    return "huggingface.co" if address.startswith("hf://") else urlsplit(address).netloc or address


def _adopt_checksums(file: RemoteFile, output: Path) -> Downloaded:
    """Add the publisher's digests of files that are not listed yet to our own list."""
    output.mkdir(parents=True, exist_ok=True)
    text = file.filesystem.cat_file(file.path).decode("utf-8", errors="replace")
    ours = output / CHECKSUMS
    new = parse_checksums(text).items() - read_checksums(ours).items()
    with ours.open("a", encoding="utf-8") as sums:
        sums.writelines(f"{digest}  {name}\n" for name, digest in sorted(new))
    return Downloaded(CHECKSUMS, len(text), bool(new))


def _one(address: str, limit: int | None) -> Iterator[RemoteFile]:
    if limit is not None and address.lower().endswith(_ARCHIVE):
        yield from _inside(fsspec.filesystem("zip", fo=address), "")
        return
    filesystem, path = fsspec.url_to_fs(address)
    info = filesystem.info(path)
    yield _remote(filesystem, path, PurePosixPath(address).name, info)


def _inside(filesystem: Any, root: str) -> Iterator[RemoteFile]:
    found: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    for path, info in sorted(found.items()):
        name = path[len(root) :].strip("/") or PurePosixPath(path).name
        if not PurePosixPath(name).name.startswith("."):
            yield _remote(filesystem, path, name, info)


def _remote(filesystem: Any, path: str, name: str, info: dict[str, Any]) -> RemoteFile:
    version = str(info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("CRC"))
    return RemoteFile(filesystem, path, name, info.get("size"), version)


def _limited(files: list[RemoteFile], limit: int | None) -> list[RemoteFile]:
    """Checksums and annotations first, then at most `limit` videos."""
    files = sorted(files, key=lambda file: file.name != CHECKSUMS)
    videos = [file for file in files if PurePosixPath(file.name).suffix.lower() in VIDEO_SUFFIXES]
    others = [file for file in files if file not in videos]
    return others + (videos if limit is None else videos[:limit])


def _tag(file: RemoteFile) -> str:
    """A tag of the remote version, so that parts of two versions are never joined."""
    return hashlib.sha256(f"{file.size_bytes}/{file.version}".encode()).hexdigest()[:8]


def _copy(file: RemoteFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
    try:
        _copy_rest(file, partial, on_bytes)
    except ValueError:  # fsspec's error for a server without range requests
        file.filesystem.get_file(file.path, str(partial))
    if file.size_bytes not in (None, partial.stat().st_size):
        raise OSError(f"got {partial.stat().st_size} of {file.size_bytes} bytes")


def _copy_rest(file: RemoteFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
    """Append the missing bytes; those received before an error are kept."""
    with (
        partial.open("ab") as target,
        file.filesystem.open(file.path, "rb", cache_type="none") as source,
    ):
        source.seek(target.tell())
        on_bytes(target.tell())
        while data := source.read(_CHUNK_BYTES):
            target.write(data)
            target.flush()
            on_bytes(len(data))


def _check(name: str, digest: str, known: dict[str, str]) -> None:
    if known.get(name, digest) != digest:
        raise DatasetError(
            f"output: {name} has the SHA-256 {digest}, but {CHECKSUMS} has {known[name]}; remove "
            "the file, or the line if the publisher has a new version, and run again"
        )
