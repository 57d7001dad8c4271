"""Read WebVid annotations, a CSV of `videoid`, `name` (the caption) and `contentUrl`."""

from collections.abc import Iterator

from vidgen_ray.datasets.entries import Entry, Rejected, VideoFile, caption_fault, csv_rows


def read_entries(address: str) -> Iterator[Entry | Rejected]:
    """The clips of an annotation file, read row by row. Raises DatasetError."""
    for where, row in csv_rows(address, {"videoid", "name"}):
        video_id = row["videoid"].strip()
        if not video_id:
            yield Rejected(where, "has no videoid")
        elif fault := caption_fault(row["name"]):
            yield Rejected(where, fault, video_id)
        else:
            paged = f"{row['page_dir']}/{video_id}" if row.get("page_dir") else video_id
            yield Entry(
                where,
                video_id,
                [("0", row["name"].strip())],
                [VideoFile(video_id), VideoFile(paged)],
                url=row.get("contentUrl") or None,
            )
