"""Read Panda-70M annotations, a CSV whose cells list the clips of one source video a row."""

import ast
from collections.abc import Iterator
from typing import Any

from vidgen_ray.datasets.entries import (
    Entry,
    Rejected,
    VideoFile,
    caption_fault,
    csv_rows,
    seconds_of,
)


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of an annotation file, read row by row. Raises DatasetError.

    `category` is the dataset's `desirable_filtering`: `desirable`, or why the clip is not. The
    published samples, a CSV with one clip a row and no time spans, are read as well.
    """
    for where, row in csv_rows(address, {"videoID", "url", "caption"}):
        if not row["videoID"]:
            yield Rejected(where, "has no videoID")
        elif "timestamp" in row:
            yield from _video(where, row)
        else:
            yield _sample(where, row)


def _video(where: str, row: dict[str, str]) -> Iterator[Entry | Rejected]:
    video_id = row["videoID"]
    try:
        spans, captions = _list(row["timestamp"]), _list(row["caption"])
        filters = _list(row.get("desirable_filtering") or "[]") or [None] * len(spans)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        # literal_eval parses literals and executes nothing
        yield Rejected(where, "has a cell that is no list", f"{video_id}: {type(error).__name__}")
        return
    if not len(spans) == len(captions) == len(filters):
        yield Rejected(where, "has lists of different lengths", video_id)
        return
    for number, (span, caption, category) in enumerate(zip(spans, captions, filters, strict=True)):
        start_s, end_s = _seconds(span)
        if start_s is None or end_s is None or start_s >= end_s:
            yield Rejected(where, "has no time span", f"{video_id}, clip {number}: {span!r:.80}")
        elif fault := caption_fault(caption):
            yield Rejected(where, fault, f"{video_id}, clip {number}")
        else:
            yield Entry(
                where,
                video_id,
                [(str(number), caption.strip())],
                [VideoFile(f"{video_id}_{number}"), VideoFile(video_id, start_s, end_s)],
                url=row["url"] or None,
                category=category if isinstance(category, str) else None,
                source_span=(start_s, end_s),
            )


def _sample(where: str, row: dict[str, str]) -> Entry | Rejected:
    video_id, number = row["videoID"], row.get("clip_index") or "0"
    if fault := caption_fault(row["caption"]):
        return Rejected(where, fault, video_id)
    return Entry(
        where,
        video_id,
        [(number, row["caption"].strip())],
        [VideoFile(f"{video_id}_{number}"), VideoFile(f"{video_id}.{number}")],
        url=row["url"] or None,
        category=row.get("category") or None,
    )


def _list(cell: str) -> list[Any]:
    value = ast.literal_eval(cell.strip())
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _seconds(span: object) -> tuple[float | None, float | None]:
    if not isinstance(span, list | tuple) or len(span) != 2:
        return None, None
    return seconds_of(span[0]), seconds_of(span[1])
