"""Convert a dataset's annotations to `metadata.jsonl` and report everything that was left out."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import fsspec
from pydantic import ValidationError

from vidgen_ray.addresses import folder_of, join
from vidgen_ray.config import describe
from vidgen_ray.datasets import folders, msr_vtt, panda70m, vatex, webvid
from vidgen_ray.datasets.entries import Entry, Rejected
from vidgen_ray.datasets.metadata import write_metadata, writing
from vidgen_ray.datasets.sources import DATASETS, DatasetName
from vidgen_ray.datasets.videos import VideoIndex, file_name
from vidgen_ray.errors import DatasetError
from vidgen_ray.schema import Clip, ClipSource

READERS: dict[DatasetName, Callable[[str], Iterator[Entry | Rejected]]] = {
    "msr-vtt": msr_vtt.read_entries,
    "vatex": vatex.read_entries,
    "panda70m": panda70m.read_entries,
    "webvid": webvid.read_entries,
    "folder": folders.read_entries,
}

_ROWS_PER_CALL = 1000


@dataclass(frozen=True)
class ImportArguments:
    """What to import. `videos` is the folder of video files, None where there are none yet.

    `limit` counts rows. `category` and `split` select the clips to keep; a category matches by its
    name or one of its parts (`news` of `news/events/politics`).
    """

    dataset: DatasetName
    source: str
    output: str
    videos: str | None = None
    limit: int | None = None
    category: str | None = None
    split: str | None = None
    licence: str | None = None


@dataclass
class ImportReport:
    """Counts of an import: rows written, their distinct clips, and rows left out by reason."""

    num_rows: int = 0
    num_clips: int = 0
    num_missing_rows: int = 0
    num_missing_clips: int = 0
    num_other_clips: int = 0  # of another category or split
    rejected: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)


def import_dataset(
    arguments: ImportArguments, on_rows: Callable[[int], None] | None = None
) -> ImportReport:
    """Write `metadata.jsonl`, and beside it the rejected rows, the files to fetch and the report.

    Rows are streamed, so memory does not grow with the dataset. A clip whose video is not in
    `videos` is written with the reason in `missing`. `on_rows` is called with the number of rows
    every thousand rows. Raises DatasetError and then leaves the output as it was.
    """
    work = _Import(arguments, on_rows or (lambda num_rows: None))
    stem = arguments.output.removesuffix(".jsonl")
    with (
        _OptionalFile(f"{stem}.rejected.jsonl") as rejected,
        _OptionalFile(f"{stem}.to_fetch.csv") as fetch,
    ):
        write_metadata(arguments.output, work.clips(rejected, fetch))
    with writing(f"{stem}.report.json") as file:
        facts = {"arguments": asdict(arguments), **vars(work.report)}
        json.dump(facts, file, indent=2, ensure_ascii=False)
    return work.report


class _OptionalFile:
    """A file that is created by its first line; an old one is removed if there is no line."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self) -> "_OptionalFile":
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)
        if self._file is None and failure[0] is None:
            filesystem, path = fsspec.url_to_fs(self._address)
            with suppress(FileNotFoundError):
                filesystem.rm_file(path)

    @property
    def file(self) -> IO[str]:
        """The open file."""
        if self._file is None:
            self._file = self._stack.enter_context(writing(self._address))
        return self._file


class _Import:
    """The state of one import: its report."""

    def __init__(self, arguments: ImportArguments, on_rows: Callable[[int], None]) -> None:
        self.report = ImportReport()
        self._arguments = arguments
        self._dataset = DATASETS[arguments.dataset]
        self._on_rows = on_rows
        # A folder contains its own videos; those of a dataset are where the user says.
        videos = arguments.videos
        if videos is None and arguments.dataset == "folder":
            videos = folders.folder_of_source(arguments.source)
        self._index = None if videos is None else VideoIndex(videos)
        self._folder = videos or join(folder_of(arguments.output), "videos")

    def clips(self, rejected: _OptionalFile, fetch: _OptionalFile) -> Iterator[Clip]:
        """The clips to write, in the dataset's order, up to the limit."""
        limit = self._arguments.limit
        for item in READERS[self._arguments.dataset](self._arguments.source):
            if isinstance(item, Rejected):
                self._reject(item, rejected)
                continue
            if not self._is_wanted(item):
                self.report.num_other_clips += 1
                continue
            for clip in self._clips_of(item, rejected, fetch):
                yield clip
                self.report.num_rows += 1
                if self.report.num_rows % _ROWS_PER_CALL == 0:
                    self._on_rows(self.report.num_rows)
                if self.report.num_rows == limit:
                    return
        self._refuse_nothing()

    def _clips_of(
        self, entry: Entry, rejected: _OptionalFile, fetch: _OptionalFile
    ) -> Iterator[Clip]:
        found = self._index.find(entry.files) if self._index else None
        missing = None if found else self._why_missing(entry)
        address, file = found or (
            join(self._folder, file_name(entry.files[0].name)),
            entry.files[0],
        )
        is_counted = False
        for sen_id, caption in entry.captions:
            try:
                clip = Clip(
                    id=f"{entry.video_id}#{sen_id}",
                    video=address,
                    image=self._image(entry),
                    prompt=caption,
                    start_s=file.start_s,
                    end_s=file.end_s,
                    source=self._source(entry),
                    missing=missing,
                )
            except ValidationError as error:
                problem = Rejected(entry.where, "is no valid row", "; ".join(describe(error)))
                self._reject(problem, rejected)
                continue
            if not is_counted:
                is_counted = True
                self.report.num_clips += 1
                self.report.num_missing_clips += missing is not None
                if missing is not None:
                    self._list_to_fetch(entry, fetch)
            self.report.num_missing_rows += missing is not None
            yield clip

    def _source(self, entry: Entry) -> ClipSource:
        start_s, end_s = entry.source_span or (None, None)
        return ClipSource(
            dataset=self._arguments.dataset,
            url=entry.url,
            licence=self._licence(entry),
            terms=self._dataset.terms,
            split=entry.split,
            category=entry.category,
            start_s=start_s,
            end_s=end_s,
        )

    def _licence(self, entry: Entry) -> str:
        return self._arguments.licence or entry.licence or self._dataset.licence

    def _image(self, entry: Entry) -> str | None:
        if entry.image is None:
            return None
        return join(self._folder, entry.image)

    def _why_missing(self, entry: Entry) -> str:
        names = " or ".join(file.name for file in entry.files)
        if self._index is None:
            return f"no --videos was given to look for a file named {names}"
        return f"no single file named {names} in {self._index.address}"

    def _list_to_fetch(self, entry: Entry, fetch: _OptionalFile) -> None:
        is_first = self.report.num_missing_clips == 1
        writer = csv.writer(fetch.file, lineterminator="\n")
        if is_first:
            writer.writerow(["file", "url", "start_s", "end_s", "dataset", "licence"])
        first = entry.files[0]
        start_s, end_s = entry.source_span or (first.start_s, first.end_s)
        dataset, licence = self._arguments.dataset, self._licence(entry)
        writer.writerow([file_name(first.name), entry.url, start_s, end_s, dataset, licence])

    def _reject(self, item: Rejected, rejected: _OptionalFile) -> None:
        self.report.rejected[item.rule] += 1
        rejected.file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")

    def _is_wanted(self, entry: Entry) -> bool:
        if entry.category is not None and len(self.report.categories) < 100:
            self.report.categories[entry.category] += 1
        category, split = self._arguments.category, self._arguments.split
        if split is not None and entry.split != split:
            return False
        if category is None:
            return True
        names = (entry.category or "").lower()
        return category.lower() in {names, *names.split("/")}

    def _refuse_nothing(self) -> None:
        """Raise DatasetError if the source led to no row."""
        report, arguments = self.report, self._arguments
        if report.num_rows:
            return
        if report.num_other_clips:
            known = sorted(report.categories) or "none"
            raise DatasetError(
                f"category, split: none of {report.num_other_clips} clips is of category "
                f"{arguments.category!r} and split {arguments.split!r}; the source has the "
                f"categories {known}"
            )
        rules = [f"{count} x {rule}" for rule, count in report.rejected.most_common(5)]
        raise DatasetError(
            f"source: {arguments.source} holds no usable row of {arguments.dataset}: "
            f"{', '.join(rules) or 'it has no rows'}; is it the right file?"
        )
