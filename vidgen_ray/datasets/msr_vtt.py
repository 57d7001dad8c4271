"""MSR-VTT: `videodatainfo` JSON, the mirrors' `MSR_VTT.json`, or the CSV of the 1k-A test split.

The first holds `videos` (`video_id`, `url`, `start time`, `end time`, `category`, `split`) and
`sentences` (`video_id`, `sen_id`, `caption`), 20 of them a video. The second is in COCO's form,
`annotations` of `image_id` and `caption`; it and the CSV (`video_id,sentence`) tell no more.
"""

from collections.abc import Iterator
from typing import Any

from vidgen_ray.datasets.entries import (
    Entry,
    Rejected,
    VideoFile,
    caption_fault,
    csv_rows,
    json_items,
)

# fmt: off
CATEGORIES = [
    "music", "people", "gaming", "sports/actions", "news/events/politics", "education", "tv shows",
    "movie/comedy", "animation", "vehicles/autos", "howto", "travel", "science/technology",
    "animals/pets", "kids/family", "documentary", "food/drink", "cooking", "beauty/fashion",
    "advertisement",
]
# fmt: on


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of an annotation file. Its captions are held in memory, some 30 MB of them."""
    if address.lower().removesuffix(".gz").endswith(".csv"):
        yield from _csv_entries(address)
        return
    captions: dict[str, list[tuple[str, str]]] = {}
    for where, sentence in json_items(address, "sentences.item"):
        match sentence:
            case {"video_id": str(video_id), "sen_id": int(sen_id), "caption": caption}:
                if fault := caption_fault(caption):
                    yield Rejected(where, fault, video_id)
                else:
                    captions.setdefault(video_id, []).append((str(sen_id), caption.strip()))
            case _:
                yield Rejected(where, "is no sentence with video_id, sen_id and caption")
    if not captions:
        yield from _coco_entries(address)
        return
    for where, video in json_items(address, "videos.item"):
        yield _entry(where, video, captions)
    for video_id, orphans in captions.items():
        for name, _ in orphans:
            yield Rejected(f"sentence {name}", "is of a video that is not listed", video_id)


def _entry(where: str, video: Any, captions: dict[str, list[tuple[str, str]]]) -> Entry | Rejected:
    """The clip of a video; its captions are taken out of `captions`."""
    if not isinstance(video, dict) or not isinstance(video.get("video_id"), str):
        return Rejected(where, "is no video with a video_id")
    video_id = video["video_id"]
    mine = captions.pop(video_id, [])
    if not mine:
        return Rejected(where, "is a video without captions", video_id)
    match video:
        case {"start time": int() | float() as start_s, "end time": int() | float() as end_s}:
            pass
        case _:
            return Rejected(where, "has no time span", video_id)
    if not 0 <= start_s < end_s:
        return Rejected(where, "has no time span", f"{video_id}: {start_s} to {end_s}")
    files = [VideoFile(video_id)]
    url = video.get("url")
    if isinstance(url, str) and "v=" in url:
        files.append(VideoFile(url.partition("v=")[2].partition("&")[0], start_s, end_s))
    return Entry(
        where,
        video_id,
        mine,
        files,
        url=url if isinstance(url, str) else None,
        split=video.get("split"),
        category=_category(video.get("category")),
    )


def _category(number: object) -> str | None:
    if isinstance(number, int) and 0 <= number < len(CATEGORIES):
        return CATEGORIES[number]
    return None


def _coco_entries(address: str) -> Iterator[Entry | Rejected]:
    captions: dict[str, list[tuple[str, str]]] = {}
    for where, item in json_items(address, "annotations.item"):
        match item:
            case {"image_id": str(video_id), "caption": caption}:
                if fault := caption_fault(caption):
                    yield Rejected(where, fault, video_id)
                else:
                    mine = captions.setdefault(video_id, [])
                    mine.append((str(item.get("id", len(mine))), caption.strip()))
            case _:
                yield Rejected(where, "is no annotation with image_id and caption")
    for video_id, mine in captions.items():
        yield Entry(f"video {video_id}", video_id, mine, [VideoFile(video_id)])


def _csv_entries(address: str) -> Iterator[Entry | Rejected]:
    for where, row in csv_rows(address, {"video_id", "sentence"}):
        if fault := caption_fault(row["sentence"]):
            yield Rejected(where, fault, row["video_id"])
        else:
            caption = (row.get("key") or "0", row["sentence"].strip())
            yield Entry(where, row["video_id"], [caption], [VideoFile(row["video_id"])])
