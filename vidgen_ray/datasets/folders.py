"""Read folders of clips with captions in the layouts that trainers use."""

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import fsspec

from vidgen_ray.addresses import folder_of, missing_file, one_line
from vidgen_ray.datasets.entries import (
    Entry,
    Rejected,
    VideoFile,
    caption_fault,
    csv_rows,
    first_of,
    json_items,
    posix_path,
    seconds_of,
    video_names,
)
from vidgen_ray.datasets.metadata import reading
from vidgen_ray.datasets.videos import VIDEO_SUFFIXES
from vidgen_ray.errors import DatasetError

_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.json", "videos2caption.json")
_PROMPTS = ("prompts.txt", "prompt.txt")
_VIDEO_KEYS = ("video", "file_name", "video_path", "file_path", "path")
_CAPTION_KEYS = ("caption", "prompt", "text", "cap")
_IMAGE_KEYS = ("image", "image_path", "input_image", "first_frame")
_START_KEYS = ("start_s", "start", "start_time")
_END_KEYS = ("end_s", "end", "end_time")
_LICENCE_KEYS = ("licence", "license")


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of a folder, or of a table in one. Raises DatasetError for any other layout.

    A table (`metadata.csv`, `.json`, `.jsonl`, `videos2caption.json`) as of finetrainers,
    FastVideo, VideoX-Fun and DiffSynth; aligned lists (`prompts.txt`, `videos.txt`, `images.txt`)
    as of CogVideo and finetrainers; or a text file beside each clip (`a.mp4`, `a.txt`).
    """
    try:
        filesystem, root = fsspec.url_to_fs(address)
        is_file = filesystem.isfile(root)
        paths = [] if is_file else filesystem.ls(root, detail=False)
    except FileNotFoundError:
        raise DatasetError(f"source: {missing_file(address)}") from None
    except (OSError, ImportError, ValueError) as error:
        raise DatasetError(f"source: cannot be read: {address!r}: {one_line(error)}") from error
    names = {PurePosixPath(path).name for path in paths}
    folder = address.rstrip("/")
    if is_file:
        yield from _table(address)
    elif table := next((name for name in _TABLES if name in names), None):
        yield from _table(f"{folder}/{table}")
    elif prompts := next((name for name in _PROMPTS if name in names), None):
        yield from _lists(folder, prompts, names)
    else:
        yield from _pairs(filesystem, root)


def folder_of_source(address: str) -> str:
    """The folder that holds the videos of `address`, a folder or a table in one."""
    filesystem, root = fsspec.url_to_fs(address)
    return folder_of(address) if filesystem.isfile(root) else address


def _table(address: str) -> Iterator[Entry | Rejected]:
    suffix = PurePosixPath(address).suffix.lower()
    rows: Iterator[tuple[str, Any]]
    if suffix in {".csv", ".tsv"}:
        rows = csv_rows(address, set())
    elif suffix == ".json":
        rows = json_items(address, "item")
    elif suffix in {".jsonl", ".ndjson"}:
        rows = _json_lines(address)
    else:
        raise DatasetError(
            f"source: {address} must be a folder, or a table that ends in .csv, .json or .jsonl"
        )
    for number, (where, row) in enumerate(rows):
        yield _row(where, number, row)


def _json_lines(address: str) -> Iterator[tuple[str, Any]]:
    with reading(address, "source") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line)
            except ValueError:
                yield f"line {number}", None


def _row(where: str, number: int, row: Any) -> Entry | Rejected:
    """A clip from a row with column names in any case."""
    if not isinstance(row, dict):
        return Rejected(where, "is no object with a video and a caption")
    row = {str(name).strip().lower(): value for name, value in row.items()}
    video = first_of(row, _VIDEO_KEYS)
    if not isinstance(video, str) or not video.strip():
        return Rejected(where, f"names no video (one of {', '.join(_VIDEO_KEYS)})")
    path = PurePosixPath(posix_path(video))
    if row.get("type", "video") != "video" or path.suffix.lower() not in VIDEO_SUFFIXES:
        return Rejected(where, "is no video", video)
    captions = first_of(row, _CAPTION_KEYS)
    listed = captions if isinstance(captions, list) else [captions]
    if fault := next(filter(None, map(caption_fault, listed or [None])), None):
        return Rejected(where, fault, video)
    many = len(listed) > 1
    texts = [
        (f"{number}.{index}" if many else str(number), caption.strip())
        for index, caption in enumerate(listed)
    ]
    return _with_details(where, video, texts, row)


def _with_details(
    where: str, video: str, captions: list[tuple[str, str]], row: dict[str, Any]
) -> Entry | Rejected:
    """The clip with the span, image and source facts that its row may have."""
    start, end = first_of(row, _START_KEYS), first_of(row, _END_KEYS)
    start_s, end_s = (None if value is None else seconds_of(value) for value in (start, end))
    unreadable = (start is not None and start_s is None) or (end is not None and end_s is None)
    if unreadable or (end_s is not None and end_s <= (start_s or 0.0)):
        return Rejected(where, "has no valid time span", f"{video}: {start} to {end}")
    image = first_of(row, _IMAGE_KEYS)
    if isinstance(image, str) and PureWindowsPath(image).drive:
        return Rejected(where, "names an image by a Windows drive; use a relative path", image)
    return Entry(
        where,
        str(PurePosixPath(posix_path(video)).with_suffix("")),
        captions,
        [VideoFile(name, start_s, end_s) for name in video_names(video)],
        url=_text(row, "url"),
        split=_text(row, "split"),
        category=_text(row, "category"),
        licence=_text(row, *_LICENCE_KEYS),
        image=posix_path(image) if isinstance(image, str) else None,
        source_span=_source_span(row),
    )


def _source_span(row: dict[str, Any]) -> tuple[float, float] | None:
    """MSR-VTT's columns: the span of an already cut clip in the video it was cut from."""
    start_s, end_s = seconds_of(row.get("start time")), seconds_of(row.get("end time"))
    return None if start_s is None or end_s is None else (start_s, end_s)


def _text(row: dict[str, Any], *keys: str) -> str | None:
    value = first_of(row, keys)
    return str(value).strip() if isinstance(value, str | int | float) else None


def _lists(folder: str, prompts: str, names: set[str]) -> Iterator[Entry | Rejected]:
    if "videos.txt" not in names:
        raise DatasetError(f"source: {folder} has {prompts} but no videos.txt beside it; add it")
    columns = [prompts, "videos.txt"] + (["images.txt"] if "images.txt" in names else [])
    lines = [_lines_of(f"{folder}/{name}") for name in columns]
    lengths = {name: len(column) for name, column in zip(columns, lines, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DatasetError(
            f"source: the lists in {folder} must have one line a clip each, got {lengths}"
        )
    for number, (prompt, video, *image) in enumerate(zip_longest(*lines)):
        row = {"video": video, "caption": prompt, "image": image[0] if image else None}
        yield _row(f"line {number + 1}", number, row)


def _lines_of(address: str) -> list[str]:
    """Lines that end at a line feed alone: captions may contain U+2028 and its like."""
    with reading(address, "source") as file:
        return [line.strip() for line in file.read().rstrip().split("\n")]


def _pairs(filesystem: Any, root: str) -> Iterator[Entry | Rejected]:
    paths = sorted(filesystem.find(root))
    captions = {path for path in paths if path.lower().endswith(".txt")}
    found = False
    for path in paths:
        name = PurePosixPath(path)
        if name.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        found = True
        inside = str(name.relative_to(root.rstrip("/")))
        text = str(name.with_suffix(".txt"))
        if text not in captions:
            yield Rejected(inside, "has no caption file beside it", name.with_suffix(".txt").name)
            continue
        caption = filesystem.cat_file(text).decode("utf-8-sig", errors="replace")
        yield _row(inside, 0, {"video": inside, "caption": caption})
    if not found:
        raise DatasetError(
            f"source: {root} must hold one of {', '.join(_TABLES)}, prompts.txt with videos.txt, "
            "or videos with a .txt beside each; it holds none of them"
        )
