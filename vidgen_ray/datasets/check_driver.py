"""Every clip of a metadata file looked at, on Ray Data; what was found goes beside its row."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray.data
from ray.data import DataContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidgen_ray.cluster.connect import connected
from vidgen_ray.config import CheckConfig, Config
from vidgen_ray.datasets.check_report import render_check
from vidgen_ray.datasets.duplicates import find_duplicates
from vidgen_ray.datasets.metadata import read_metadata, write_metadata, writing
from vidgen_ray.datasets.probing import probe
from vidgen_ray.schema import Clip, ClipCheck

logger = logging.getLogger(__name__)

Span = tuple[str, float | None, float | None]  # address, start and end in seconds

_MAX_BLOCKS = 2000


@dataclass(frozen=True)
class CheckArguments:
    """What the user asked for. `output` may be `metadata` itself."""

    metadata: str
    output: str
    config: Config
    ray_address: str | None = None


@dataclass(frozen=True)
class CheckSummary:
    """Counts of a check: rows, those without a video file, clips, and clips by mark."""

    num_rows: int
    num_missing_rows: int
    num_clips: int
    marks: Counter[str]
    page: str


def run_check(arguments: CheckArguments, console: Console) -> CheckSummary:
    """Probe each clip once, whatever its number of captions, and write the rows with `check`.

    No row is removed. A page of plots lies beside the output. Raises DatasetError.
    """
    first_ids: dict[Span, str] = {}
    num_rows = num_missing = 0
    for clip in read_metadata(arguments.metadata):
        num_rows += 1
        if clip.missing is None:
            first_ids.setdefault(_span(clip), clip.id)
        else:
            num_missing += 1
    spans = list(first_ids)
    with connected(arguments.ray_address):
        checks = _probe_all(spans, arguments.config.check, console)
    hashes = [check.perceptual_hash for check in checks]
    names = list(first_ids.values())
    max_distance = arguments.config.check.max_hash_distance
    for index, original in find_duplicates(hashes, max_distance).items():
        marks = [*checks[index].marks, "duplicate"]
        checks[index] = checks[index].model_copy(
            update={"marks": marks, "duplicate_of": names[original]}
        )
    by_span = dict(zip(spans, checks, strict=True))
    write_metadata(arguments.output, _checked(arguments.metadata, by_span))
    summary = CheckSummary(
        num_rows=num_rows,
        num_missing_rows=num_missing,
        num_clips=len(spans),
        marks=Counter(mark for check in checks for mark in check.marks),
        page=f"{arguments.output.removesuffix('.jsonl')}.check.html",
    )
    found = list(zip(names, (span[0] for span in spans), checks, strict=True))
    with writing(summary.page) as file:
        file.write(render_check(found, num_rows, num_missing))
    return summary


def _span(clip: Clip) -> Span:
    return clip.video, clip.start_s, clip.end_s


def _checked(metadata: str, checks: dict[Span, ClipCheck]) -> Iterator[Clip]:
    for clip in read_metadata(metadata):
        check = None if clip.missing is not None else checks.get(_span(clip))
        yield clip.model_copy(update={"check": check})


def _probe_all(spans: list[Span], settings: CheckConfig, console: Console) -> list[ClipCheck]:
    """What is in each span, in their order."""
    found: dict[int, ClipCheck] = {}
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("clips", total=len(spans))
        # A file that kills its process takes the clips of its block with it: these are probed
        # again one a block, and what is lost then is the culprit.
        for num_blocks in (min(len(spans), _MAX_BLOCKS), len(spans)):
            left = [index for index in range(len(spans)) if index not in found]
            for index, check in _probe(left, spans, settings, min(num_blocks, len(left))):
                found[index] = check
                progress.advance(task)
    lost = ClipCheck(marks=["undecodable"], reason="the process that decoded it died")
    return [found.get(index, lost) for index in range(len(spans))]


def _probe(
    indices: list[int], spans: list[Span], settings: CheckConfig, num_blocks: int
) -> Iterator[tuple[int, ClipCheck]]:
    if not indices:
        return
    context = DataContext.get_current()
    before, context.max_errored_blocks = context.max_errored_blocks, -1
    names = ("address", "start_s", "end_s")
    rows = [{"index": index, **dict(zip(names, spans[index], strict=True))} for index in indices]
    try:
        dataset = ray.data.from_items(rows, override_num_blocks=num_blocks).map(
            _probe_row,
            fn_args=(settings,),
            num_cpus=settings.num_cpus_per_task,
            ray_remote_args_fn=_tried_twice,
        )
        tables: Iterable[Any] = dataset.iter_batches(
            batch_size=None, prefetch_batches=0, batch_format="pyarrow"
        )
        for table in tables:
            for row in table.to_pylist():
                yield row["index"], ClipCheck.model_validate_json(row["check"])
    finally:
        context.max_errored_blocks = before


def _tried_twice() -> dict[str, int]:
    return {"max_retries": 1}  # Ray Data's own default is to try forever


def _probe_row(row: dict[str, Any], settings: CheckConfig) -> dict[str, Any]:
    check = probe(row["address"], row["start_s"], row["end_s"], settings)
    return {"index": row["index"], "check": check.model_dump_json()}
