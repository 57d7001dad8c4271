"""VATEX: a JSON list of `videoID` and ten English captions `enCap`.

A `videoID` is a YouTube id and the seconds of the clip: `5-xGskbsBgI_000055_000065`.
"""

import re
from collections.abc import Iterator

from vidgen_ray.datasets.entries import Entry, Rejected, VideoFile, caption_fault, json_items

_VIDEO_ID = re.compile(r"(.+)_(\d{6})_(\d{6})")  # greedy: YouTube's ids may hold "_", too


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of an annotation file; Chinese captions are left out."""
    for where, item in json_items(address, "item"):
        match item:
            case {"videoID": str(video_id), "enCap": list(captions)}:
                yield from _entry(where, video_id, captions)
            case {"videoID": str(video_id)}:
                yield Rejected(where, "has no English captions", video_id)
            case _:
                yield Rejected(where, "is no item with videoID and enCap")


def _entry(where: str, video_id: str, captions: list[object]) -> Iterator[Entry | Rejected]:
    parts = _VIDEO_ID.fullmatch(video_id)
    if parts is None or int(parts[2]) >= int(parts[3]):
        yield Rejected(where, "has no time span in its videoID", video_id)
        return
    sound = []
    for number, caption in enumerate(captions):
        if fault := caption_fault(caption):
            yield Rejected(where, fault, f"{video_id}, enCap {number}")
        else:
            sound.append((str(number), str(caption).strip()))
    if sound:
        files = [VideoFile(video_id), VideoFile(parts[1], float(parts[2]), float(parts[3]))]
        url = f"https://www.youtube.com/watch?v={parts[1]}"
        yield Entry(where, video_id, sound, files, url=url)
