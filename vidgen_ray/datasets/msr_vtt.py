"""Read MSR-VTT annotations in each of the forms that are in circulation."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from vidgen_ray.datasets.entries import (
    Entry,
    Rejected,
    VideoFile,
    caption_fault,
    csv_rows,
    is_json_list,
    json_items,
    json_keys,
    posix_path,
    seconds_of,
    video_names,
)
from vidgen_ray.errors import DatasetError

# fmt: off
CATEGORIES = [
    "music", "people", "gaming", "sports/actions", "news/events/politics", "education", "tv shows",
    "movie/comedy", "animation", "vehicles/autos", "howto", "travel", "science/technology",
    "animals/pets", "kids/family", "documentary", "food/drink", "cooking", "beauty/fashion",
    "advertisement",
]
# fmt: on

Captions = dict[str, list[tuple[str, str]]]


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of an annotation file, whose captions are held in memory (about 30 MB).

    The publisher's `videodatainfo` JSON holds `videos` (`video_id`, `url`, `start time`,
    `end time`, `category`, `split`) and `sentences` (`video_id`, `sen_id`, `caption`). Copies hold
    a list of videos with their captions (`msrvtt_train_9k.json`), COCO's `annotations` of
    `image_id` and `caption` (`MSR_VTT.json`), or the 1k-A test split as CSV (`video_id,sentence`);
    the last two have no category, URL or span. Raises DatasetError.
    """
    if address.lower().removesuffix(".gz").endswith(".csv"):
        yield from _csv_entries(address)
    elif is_json_list(address):
        for where, item in json_items(address, "item"):
            yield from _listed_entry(where, item)
    else:
        yield from _publisher_entries(address)


def _publisher_entries(address: str) -> Iterator[Entry | Rejected]:
    captions: Captions = {}
    has_rejected = False
    for rejected in _sentences(address, captions):
        has_rejected = True
        yield rejected
    if not captions and not has_rejected:
        yield from _coco_entries(address)
        return
    for where, video in json_items(address, "videos.item"):
        yield _entry(where, video, captions)
    for video_id, orphans in captions.items():
        for name, _ in orphans:
            yield Rejected(f"sentence {name}", "is of a video that is not listed", video_id)


def _sentences(address: str, captions: Captions) -> Iterator[Rejected]:
    """Fill `captions` by video; yield the sentences that cannot be used."""
    for where, sentence in json_items(address, "sentences.item"):
        match sentence:
            case {"video_id": str(video_id), "sen_id": int(sen_id), "caption": caption}:
                if fault := caption_fault(caption):
                    yield Rejected(where, fault, video_id)
                else:
                    captions.setdefault(video_id, []).append((str(sen_id), caption.strip()))
            case _:
                yield Rejected(where, "is no sentence with video_id, sen_id and caption")


def _listed_entry(where: str, video: Any) -> Iterator[Entry | Rejected]:
    """The clip of a video that holds its captions: a list of them, or a single one.

    Some copies leave out `video_id`, or the span.
    """
    file = video.get("video") if isinstance(video, dict) else None
    stem = PurePosixPath(posix_path(file)).stem if isinstance(file, str) else None
    video_id = (video.get("video_id") if isinstance(video, dict) else None) or stem
    if not isinstance(video_id, str):
        yield Rejected(where, "is no video with a video_id")
        return
    texts = video.get("caption")
    captions: Captions = {}
    for number, text in enumerate(texts if isinstance(texts, list) else [texts]):
        if fault := caption_fault(text):
            yield Rejected(where, fault, f"{video_id}, caption {number}")
        else:
            captions.setdefault(video_id, []).append((str(number), text.strip()))
    if captions:
        has_span = video.get("start time") is not None or video.get("end time") is not None
        yield _entry(where, {**video, "video_id": video_id}, captions, needs_span=has_span)


def _entry(
    where: str, video: Any, captions: Captions, *, needs_span: bool = True
) -> Entry | Rejected:
    """The clip of a video; its captions are removed from `captions`."""
    if not isinstance(video, dict) or not isinstance(video.get("video_id"), str):
        return Rejected(where, "is no video with a video_id")
    video_id = video["video_id"]
    own = captions.pop(video_id, [])
    if not own:
        return Rejected(where, "is a video without captions", video_id)
    span = _span(video)
    if span is None and needs_span:
        got = f"{video.get('start time')} to {video.get('end time')}"
        return Rejected(where, "has no time span", f"{video_id}: {got}")
    names = video_names(video["video"]) if isinstance(video.get("video"), str) else []
    files = [VideoFile(name) for name in dict.fromkeys([video_id, *names])]
    url = video.get("url") if isinstance(video.get("url"), str) else None
    if url is not None and "v=" in url and span is not None:
        files.append(VideoFile(url.partition("v=")[2].partition("&")[0], *span))
    return Entry(
        where,
        video_id,
        own,
        files,
        url=url,
        split=video.get("split"),
        category=_category(video.get("category")),
        source_span=span,
    )


def _span(video: dict[str, Any]) -> tuple[float, float] | None:
    """The span of a clip in its YouTube video, seconds; None if it is missing or invalid."""
    start_s, end_s = seconds_of(video.get("start time")), seconds_of(video.get("end time"))
    return None if start_s is None or end_s is None or start_s >= end_s else (start_s, end_s)


def _category(number: object) -> str | None:
    if isinstance(number, int) and 0 <= number < len(CATEGORIES):
        return CATEGORIES[number]
    return None


def _coco_entries(address: str) -> Iterator[Entry | Rejected]:
    captions: Captions = {}
    num_items = 0
    for where, item in json_items(address, "annotations.item"):
        num_items += 1
        match item:
            case {"image_id": str(video_id), "caption": caption}:
                if fault := caption_fault(caption):
                    yield Rejected(where, fault, video_id)
                else:
                    own = captions.setdefault(video_id, [])
                    own.append((str(item.get("id", len(own))), caption.strip()))
            case _:
                yield Rejected(where, "is no annotation with image_id and caption")
    if not num_items:
        raise DatasetError(
            f"source: {address} must have `videos` and `sentences`, or `annotations`, or be a list "
            f"of videos, got an object with the keys {json_keys(address)[:20]}; is this MSR-VTT?"
        )
    for video_id, own in captions.items():
        yield Entry(f"video {video_id}", video_id, own, [VideoFile(video_id)])


def _csv_entries(address: str) -> Iterator[Entry | Rejected]:
    for where, row in csv_rows(address, {"video_id", "sentence"}):
        if fault := caption_fault(row["sentence"]):
            yield Rejected(where, fault, row["video_id"])
        else:
            caption = (row.get("key") or "0", row["sentence"].strip())
            yield Entry(where, row["video_id"], [caption], [VideoFile(row["video_id"])])
