"""`metadata.jsonl`, read and written line by line, so that its length costs no memory."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from vidgen_ray.addresses import folder_of, join, one_line
from vidgen_ray.config import describe
from vidgen_ray.errors import DatasetError
from vidgen_ray.schema import Clip

_MAX_PROBLEMS = 20


def read_metadata(address: str) -> Iterator[Clip]:
    """The clips of a metadata file, plain or compressed, at a path or fsspec address.

    `video` and `image` come as addresses that hold from any folder. Lines with problems are left
    out, and told together in a DatasetError after the last sound line, or sooner if they are many.
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
        more = ", and perhaps more" if len(problems) == _MAX_PROBLEMS else ""
        raise DatasetError(
            f"metadata: {address} has {len(problems)} lines that are no clips{more}; mend them:\n"
            + "\n".join(problems)
        )


def write_metadata(address: str, clips: Iterable[Clip]) -> int:
    """Write clips one a line, whole or not at all; how many there were.

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
def reading(address: str, field: str) -> Iterator[IO[str]]:
    """A text file of a dataset, decompressed as its name says. Raises DatasetError."""
    try:
        with fsspec.open(
            address, "rt", encoding="utf-8-sig", newline="", compression="infer"
        ) as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(f"{field}: no such file: {address!r}; mend the address") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{field}: must be UTF-8 text, got {address!r}: {error}") from None
    except (OSError, EOFError, ImportError) as error:
        raise DatasetError(f"{field}: cannot be read: {address!r}: {one_line(error)}") from error


@contextmanager
def writing(address: str) -> Iterator[IO[str]]:
    """A text file that is there when the context ends without an error, and not before."""
    try:
        filesystem, path = fsspec.url_to_fs(address)
        if not isinstance(filesystem, LocalFileSystem):
            # An object store shows a file when it is closed, and drops it on an error.
            with filesystem.transaction, filesystem.open(path, "wt", encoding="utf-8") as file:
                yield file
            return
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(partial, "w", encoding="utf-8", newline="\n") as file:
                yield file
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    except (OSError, ImportError, ValueError) as error:
        raise DatasetError(f"output: cannot be written: {address!r}: {one_line(error)}") from error


def _relative(address: str, folder: str) -> str:
    prefix = folder.rstrip("/") + "/"
    inside = address.startswith(prefix) and ".." not in address[len(prefix) :].split("/")
    return address[len(prefix) :] if inside else address
