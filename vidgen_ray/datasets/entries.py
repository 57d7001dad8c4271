"""What an importer makes of a dataset's rows: entries, and rejections with their reasons."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ijson

from vidgen_ray.addresses import one_line
from vidgen_ray.datasets.metadata import reading
from vidgen_ray.errors import DatasetError

MAX_CELL_CHARACTERS = 50_000_000  # a row of Panda-70M lists every clip of a long video


@dataclass(frozen=True)
class VideoFile:
    """A name that a clip's file may have: a path inside the folder of videos, or a bare stem.

    Without a span the file is the clip.
    """

    name: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Entry:
    """A clip with its captions by id. `files` are names to look for, the best first."""

    where: str
    video_id: str
    captions: list[tuple[str, str]]
    files: list[VideoFile]
    url: str | None = None
    split: str | None = None
    category: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A row, or a caption of one, that makes no clip. `rule` is the same for all such rows."""

    where: str
    rule: str
    detail: str = ""


def csv_rows(address: str, required: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file by the names of its header, each with its line, one at a time.

    Raises DatasetError where a required column is missing.
    """
    with reading(address, "source") as file, _large_cells():
        reader = csv.DictReader(file, restkey="", restval="")
        names = {name.strip() for name in reader.fieldnames or []}
        if not required <= names:
            raise DatasetError(
                f"source: {address} must have the columns {sorted(required)}, got "
                f"{sorted(names)[:20]}; is this the right dataset?"
            )
        try:
            for row in reader:
                cells = {name.strip(): value for name, value in row.items() if name}
                yield f"line {reader.line_num}", cells
        except csv.Error as error:
            raise DatasetError(f"source: {address}, line {reader.line_num}: {error}") from None


@contextmanager
def _large_cells() -> Iterator[None]:
    """The limit is one of the process, and jobs files have a lower one."""
    before = csv.field_size_limit(MAX_CELL_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def json_items(address: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """The items of a list in a JSON file, each with its number from 1, one at a time.

    `prefix` is ijson's: `item` for a list at the top, `videos.item` for one under a key.
    """
    with reading(address, "source") as file:
        try:
            items = ijson.items(file.buffer, prefix, use_float=True)
            for number, item in enumerate(items, start=1):
                yield f"{prefix.removesuffix('item')}item {number}", item
        except ijson.JSONError as error:
            raise DatasetError(
                f"source: {address} is not whole JSON: {one_line(error)}; fetch it again"
            ) from None


def caption_fault(caption: object) -> str | None:
    """Why a caption cannot be a prompt."""
    if not isinstance(caption, str) or not caption.strip():
        return "has no caption"
    return "has a caption over 10,000 characters" if len(caption) > 10_000 else None
