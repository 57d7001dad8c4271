"""Panda-70M: a CSV with one source video a row, and a list in each cell with one item a clip.

The published samples are a CSV with one clip a row and no time spans; both are read.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

from vidgen_ray.datasets.entries import Entry, Rejected, VideoFile, caption_fault, csv_rows

_TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of an annotation file, of which no more than one row is held in memory.

    `category` is what the dataset says of a clip's worth: `desirable`, or why it is not.
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
        worths = _list(row.get("desirable_filtering") or "[]") or [None] * len(spans)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        # literal_eval reads data and runs nothing
        yield Rejected(where, "has a cell that is no list", f"{video_id}: {type(error).__name__}")
        return
    if not len(spans) == len(captions) == len(worths):
        yield Rejected(where, "has lists of different lengths", video_id)
        return
    for number, (span, caption, worth) in enumerate(zip(spans, captions, worths, strict=True)):
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
                category=worth if isinstance(worth, str) else None,
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
    times = [_TIME.fullmatch(str(time).strip()) for time in span]
    start_s, end_s = (
        int(time[1]) * 3600 + int(time[2]) * 60 + float(time[3]) if time else None for time in times
    )
    return start_s, end_s
