"""Folders of clips with captions, in the layouts that trainers use and people therefore have.

A table (`metadata.csv`, `.json`, `.jsonl`, `videos2caption.json`) as of finetrainers, FastVideo,
VideoX-Fun and DiffSynth; aligned lists (`prompts.txt`, `videos.txt`, `images.txt`) as of CogVideo
and finetrainers; or a text file beside each clip (`a.mp4`, `a.txt`).
"""

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any

import fsspec

from vidgen_ray.addresses import folder_of, one_line
from vidgen_ray.datasets.entries import (
    Entry,
    Rejected,
    VideoFile,
    caption_fault,
    csv_rows,
    json_items,
)
from vidgen_ray.datasets.metadata import reading
from vidgen_ray.datasets.videos import VIDEO_SUFFIXES
from vidgen_ray.errors import DatasetError

_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.json", "videos2caption.json")
_PROMPTS = ("prompts.txt", "prompt.txt")
_VIDEO_KEYS = ("video", "file_name", "video_path", "file_path", "path")
_CAPTION_KEYS = ("caption", "prompt", "text", "cap")
_IMAGE_KEYS = ("image", "image_path", "input_image", "first_frame")


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of a folder, or of a table in one. Raises DatasetError for any other layout."""
    try:
        filesystem, root = fsspec.url_to_fs(address)
        is_file = filesystem.isfile(root)
        names = (
            set()
            if is_file
            else {PurePosixPath(path).name for path in filesystem.ls(root, detail=False)}
        )
    except FileNotFoundError:
        raise DatasetError(f"source: no such file or folder: {address!r}; mend the path") from None
    except (OSError, ImportError, ValueError) as error:
        raise DatasetError(f"source: cannot be read: {address!r}: {one_line(error)}") from error
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
    """The folder in which the videos of `address`, a folder or a table in one, are looked for."""
    filesystem, root = fsspec.url_to_fs(address)
    return folder_of(address) if filesystem.isfile(root) else address


def _table(address: str) -> Iterator[Entry | Rejected]:
    suffix = PurePosixPath(address).suffix.lower()
    rows: Iterator[tuple[str, Any]]
    if suffix == ".csv":
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
    if not isinstance(row, dict):
        return Rejected(where, "is no object with a video and a caption")
    video = _first(row, _VIDEO_KEYS)
    if not isinstance(video, str) or not video.strip():
        return Rejected(where, f"names no video (one of {', '.join(_VIDEO_KEYS)})")
    video = video.strip()
    if (
        row.get("type", "video") != "video"
        or PurePosixPath(video).suffix.lower() not in VIDEO_SUFFIXES
    ):
        return Rejected(where, "is no video", video)
    captions = _first(row, _CAPTION_KEYS)
    listed = captions if isinstance(captions, list) else [captions]
    if fault := next(filter(None, map(caption_fault, listed)), None) or (
        not listed and "has no caption"
    ):
        return Rejected(where, fault, video)
    image = _first(row, _IMAGE_KEYS)
    many = len(listed) > 1
    return Entry(
        where,
        str(PurePosixPath(video).with_suffix("")),
        [
            (f"{number}.{index}" if many else str(number), caption.strip())
            for index, caption in enumerate(listed)
        ],
        [VideoFile(video)],
        image=image if isinstance(image, str) and image else None,
    )


def _lists(folder: str, prompts: str, names: set[str]) -> Iterator[Entry | Rejected]:
    if "videos.txt" not in names:
        raise DatasetError(f"source: {folder} has {prompts} but no videos.txt beside it; add it")
    columns = [prompts, "videos.txt"] + (["images.txt"] if "images.txt" in names else [])
    lines = []
    for name in columns:
        with reading(f"{folder}/{name}", "source") as file:
            lines.append([line.strip() for line in file.read().rstrip().splitlines()])
    lengths = {name: len(column) for name, column in zip(columns, lines, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DatasetError(
            f"source: the lists in {folder} must have one line a clip each, got {lengths}"
        )
    for number, (prompt, video, *image) in enumerate(zip_longest(*lines)):
        row = {"video": video, "caption": prompt, "image": image[0] if image else None}
        yield _row(f"line {number + 1}", number, row)


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


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)
