"""What every reader yields: entries, and rejected rows with their reasons."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import ijson

from vidgen_ray.addresses import one_line
from vidgen_ray.datasets.metadata import reading
from vidgen_ray.errors import DatasetError

MAX_CELL_CHARACTERS = 50_000_000  # a row of Panda-70M lists every clip of a long video

_DELIMITERS = ",;\t|"
_CLOCK_TIME = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:[.,]\d+)?)")


@dataclass(frozen=True)
class VideoFile:
    """A name that a clip's file may have: a path inside the folder of videos, or a bare stem.

    Without a span the whole file is the clip.
    """

    name: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Entry:
    """A clip with its captions by id. `files` are names to look for, the preferred one first."""

    where: str
    video_id: str
    captions: list[tuple[str, str]]
    files: list[VideoFile]
    url: str | None = None
    split: str | None = None
    category: str | None = None
    licence: str | None = None
    image: str | None = None
    source_span: tuple[float, float] | None = None  # of the clip in the video at `url`, seconds


@dataclass(frozen=True)
class Rejected:
    """A row or caption that was left out. `rule` is the same text for all rows of that kind."""

    where: str
    rule: str
    detail: str = ""


def csv_rows(address: str, required: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV file as dicts by column name, each with its line number.

    The delimiter (comma, semicolon, tab or bar) is taken from the header. Raises DatasetError if a
    required column is missing.
    """
    with reading(address, "source") as file, _large_cells():
        header, num_skipped = file.readline(), 0
        if header.lower().startswith("sep="):  # Excel's own hint
            header, num_skipped = file.readline(), 1
        reader = csv.DictReader(
            chain([header], file), restkey="", restval="", delimiter=_delimiter(header, required)
        )
        names = {name.strip() for name in reader.fieldnames or []}
        if not required <= names:
            raise DatasetError(
                f"source: {address} must have the columns {sorted(required)}, got "
                f"{sorted(names)[:20]}; is this the right dataset?"
            )
        try:
            for row in reader:
                cells = {name.strip(): value for name, value in row.items() if name}
                yield f"line {reader.line_num + num_skipped}", cells
        except csv.Error as error:
            where = f"line {reader.line_num + num_skipped}"
            raise DatasetError(f"source: {address}, {where}: {error}") from None


def _delimiter(header: str, required: set[str]) -> str:
    """The delimiter that splits the header into the required columns, or into the most columns."""

    def quality(delimiter: str) -> tuple[bool, int]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return required <= set(names), len(names)

    return max(_DELIMITERS, key=quality)


@contextmanager
def _large_cells() -> Iterator[None]:
    """csv's limit is global to the process, and jobs files have a lower one."""
    before = csv.field_size_limit(MAX_CELL_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def json_items(address: str, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the items of a list in a JSON file one at a time, each with its number from 1.

    `prefix` is ijson's: `item` for a list at the top, `videos.item` for one under a key. Raises
    DatasetError, also for `item` if the top level is no list.
    """
    if prefix == "item" and not is_json_list(address):
        raise DatasetError(
            f"source: {address} must be a JSON list with one item a clip, got an object with the "
            f"keys {json_keys(address)[:20]}; is this the right dataset?"
        )
    with reading(address, "source") as file, _whole_json(address):
        items = ijson.items(file.buffer, prefix, use_float=True)
        for number, item in enumerate(items, start=1):
            yield f"{prefix.removesuffix('item')}item {number}", item


def is_json_list(address: str) -> bool:
    """Whether a JSON file holds a list at the top. Raises DatasetError."""
    with reading(address, "source") as file, _whole_json(address):
        _, event, _ = next(ijson.parse(file.buffer))
        return bool(event == "start_array")


def json_keys(address: str) -> list[str]:
    """The keys of the object at the top of a JSON file. Raises DatasetError."""
    with reading(address, "source") as file, _whole_json(address):
        events = ijson.parse(file.buffer)
        return [value for prefix, event, value in events if (prefix, event) == ("", "map_key")]


@contextmanager
def _whole_json(address: str) -> Iterator[None]:
    try:
        yield
    except ijson.JSONError as error:
        raise DatasetError(
            f"source: {address} is not complete JSON: {one_line(error)}; fetch it again"
        ) from None


def caption_fault(caption: object) -> str | None:
    """Why a caption cannot be a prompt; None if it can."""
    if not isinstance(caption, str) or not caption.strip():
        return "has no caption"
    return "has a caption over 10,000 characters" if len(caption) > 10_000 else None


def seconds_of(value: object) -> float | None:
    """Seconds from a number, its text (`1.5`, `1,5`) or a clock time (`0:01:02.5`); else None."""
    if isinstance(value, bool):
        return None
    text = str(value).strip()
    if clock := _CLOCK_TIME.fullmatch(text):
        hours, minutes, seconds = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    try:
        seconds_s = float(text.replace(",", "."))
    except ValueError:
        return None
    return seconds_s if 0 <= seconds_s < float("inf") else None


def video_names(path: str) -> list[str]:
    """Names to look for of a path that may be absolute, or written on Windows.

    A path of another machine ends in a name that may still be found here.
    """
    posix = posix_path(path)
    is_absolute = posix.startswith("/") or bool(PureWindowsPath(posix).drive)
    return [posix, PurePosixPath(posix).name] if is_absolute else [posix]


def posix_path(path: str) -> str:
    r"""`path` with forward slashes: `clips\a.mp4` and `C:\clips\a.mp4` are Windows paths."""
    return path.strip().replace("\\", "/") if "://" not in path else path.strip()


def first_of(row: dict[str, Any], keys: Sequence[str]) -> Any:
    """The first value of `row` under one of `keys` that is neither None nor empty."""
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)
