"""Read and write `metadata.jsonl` line by line, in constant memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression
from pydantic import ValidationError

from vidgen_ray.addresses import (
    atomic_path,
    folder_of,
    join,
    missing_file,
    one_line,
    without_query,
)
from vidgen_ray.config import describe
from vidgen_ray.errors import DatasetError
from vidgen_ray.schema import Clip

_MAX_PROBLEMS = 20


def read_metadata(address: str) -> Iterator[Clip]:
    """The clips of a metadata file, plain or compressed, at a path or fsspec address.

    `video` and `image` are returned as absolute addresses. Invalid lines are skipped and reported
    together in a DatasetError after the last valid line, or as soon as there are 20 of them.
    """
    folder = folder_of(address)
    problems: list[str] = []
    with reading(address, "metadata") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                clip = Clip.model_validate_json(line)
            except ValidationError as error:
                problems.append(f"line {number}: {'; '.join(describe(error))}")
                if len(problems) == _MAX_PROBLEMS:
                    break
                continue
            image = None if clip.image is None else join(folder, clip.image)
            yield clip.model_copy(update={"video": join(folder, clip.video), "image": image})
    if problems:
        count = "1 invalid line" if len(problems) == 1 else f"{len(problems)} invalid lines"
        more = ", perhaps more" if len(problems) == _MAX_PROBLEMS else ""
        raise DatasetError(
            f"metadata: {address} has {count}{more}; correct them:\n" + "\n".join(problems)
        )


def write_metadata(address: str, clips: Iterable[Clip]) -> int:
    """Write one clip a line, the whole file or nothing; returns the number of clips.

    Addresses inside the file's folder become relative, so that the folder can be moved.
    """
    folder = folder_of(address)
    num_clips = 0
    with writing(address) as file:
        for clip in clips:
            image = None if clip.image is None else _relative(clip.image, folder)
            near = clip.model_copy(update={"video": _relative(clip.video, folder), "image": image})
            file.write(near.model_dump_json(exclude_none=True) + "\n")
            num_clips += 1
    return num_clips


@contextmanager
def reading(address: str, field: str) -> Iterator[TextIOWrapper]:
    """A text file of a dataset, decompressed by its suffix. Raises DatasetError."""
    compression = infer_compression(without_query(address))
    try:
        with fsspec.open(
            address, "rt", encoding="utf-8-sig", newline="", compression=compression
        ) as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(f"{field}: {missing_file(address)}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{field}: must be UTF-8 text, got {address!r}: {error}; save it as UTF-8"
        ) from None
    except (OSError, EOFError, ImportError) as error:
        raise DatasetError(f"{field}: cannot be read: {address!r}: {one_line(error)}") from error


@contextmanager
def writing(address: str) -> Iterator[IO[str]]:
    """A text file that appears at `address` if the context ends without an error."""
    try:
        filesystem, path = fsspec.url_to_fs(address)
        if isinstance(filesystem, LocalFileSystem):
            with atomic_path(Path(path)) as partial, _open(partial) as file:
                yield file
            return
        with TemporaryDirectory() as folder:
            partial = Path(folder) / "partial"
            with _open(partial) as file:
                yield file
            filesystem.put_file(str(partial), path)
    except (OSError, ImportError, ValueError) as error:
        raise DatasetError(f"output: cannot be written: {address!r}: {one_line(error)}") from error


def _open(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", newline="\n")


def _relative(address: str, folder: str) -> str:
    prefix = folder.rstrip("/") + "/"
    inside = address.startswith(prefix) and ".." not in address[len(prefix) :].split("/")
    return address[len(prefix) :] if inside else address
