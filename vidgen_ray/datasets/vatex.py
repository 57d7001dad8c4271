"""Read VATEX annotations, a JSON list of `videoID` and ten English captions `enCap`."""

import re
from collections.abc import Iterator

from vidgen_ray.datasets.entries import Entry, Rejected, VideoFile, caption_fault, json_items

# A YouTube id, which may contain "_", and the clip's seconds: `5-xGskbsBgI_000055_000065`.
_VIDEO_ID = re.compile(r"(.+)_(\d{6})_(\d{6})")


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of an annotation file without the Chinese captions. Raises DatasetError."""
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
    usable = []
    for number, caption in enumerate(captions):
        if fault := caption_fault(caption):
            yield Rejected(where, fault, f"{video_id}, enCap {number}")
        else:
            usable.append((str(number), str(caption).strip()))
    if usable:
        start_s, end_s = float(parts[2]), float(parts[3])
        files = [VideoFile(video_id), VideoFile(parts[1], start_s, end_s)]
        url = f"https://www.youtube.com/watch?v={parts[1]}"
        yield Entry(where, video_id, usable, files, url=url, source_span=(start_s, end_s))
