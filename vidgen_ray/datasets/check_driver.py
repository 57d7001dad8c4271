"""Probe every clip of a metadata file on Ray Data and write the results into its rows."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray.data
from ray.data import DataContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidgen_ray.cluster.connect import connected
from vidgen_ray.cluster.rows import iter_rows_as_ready
from vidgen_ray.config import CheckConfig, Config
from vidgen_ray.datasets.check_report import render_check
from vidgen_ray.datasets.duplicates import find_duplicates
from vidgen_ray.datasets.metadata import read_metadata, write_metadata, writing
from vidgen_ray.datasets.probing import probe
from vidgen_ray.schema import Clip, ClipCheck

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
    """Counts of rows, rows without a video file, clips, and clips by mark."""

    num_rows: int
    num_missing_rows: int
    num_clips: int
    marks: Counter[str]
    page: str


def run_check(arguments: CheckArguments, console: Console) -> CheckSummary:
    """Probe each clip once, however many captions it has, and write its rows with `check`.

    No row is removed. A page of plots is written beside the output. Raises DatasetError.
    """
    first_ids: dict[Span, str] = {}
    num_rows = num_missing = 0
    for clip in read_metadata(arguments.metadata):
        num_rows += 1
        num_missing += clip.missing is not None
        if clip.missing is None:
            first_ids.setdefault(_span(clip), clip.id)
    spans, ids = list(first_ids), list(first_ids.values())
    with connected(arguments.ray_address):
        checks = _probe_all(spans, arguments.config.check, console)
    checks = _with_duplicates(checks, ids, arguments.config.check.max_hash_distance)
    by_span = dict(zip(spans, checks, strict=True))
    write_metadata(arguments.output, _checked(arguments.metadata, by_span))
    page = f"{arguments.output.removesuffix('.jsonl')}.check.html"
    found = list(zip(ids, (address for address, *_ in spans), checks, strict=True))
    with writing(page) as file:
        file.write(render_check(found, num_rows, num_missing))
    marks = Counter(mark for check in checks for mark in check.marks)
    return CheckSummary(num_rows, num_missing, len(spans), marks, page)


def _span(clip: Clip) -> Span:
    return clip.video, clip.start_s, clip.end_s


def _with_duplicates(checks: list[ClipCheck], ids: list[str], max_distance: int) -> list[ClipCheck]:
    """The checks, with a mark on each clip that looks like an earlier one."""
    checks = list(checks)
    hashes = [check.perceptual_hash for check in checks]
    for index, original in find_duplicates(hashes, max_distance).items():
        marks = [*checks[index].marks, "duplicate"]
        changes = {"marks": marks, "duplicate_of": ids[original]}
        checks[index] = checks[index].model_copy(update=changes)
    return checks


def _checked(metadata: str, checks: dict[Span, ClipCheck]) -> Iterator[Clip]:
    for clip in read_metadata(metadata):
        check = None if clip.missing is not None else checks.get(_span(clip))
        yield clip.model_copy(update={"check": check})


def _probe_all(spans: list[Span], settings: CheckConfig, console: Console) -> list[ClipCheck]:
    """The check of each span, in their order."""
    found: dict[int, ClipCheck] = {}
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("clips", total=len(spans))
        # A file that crashes its worker loses the whole block, so the clips of lost blocks are
        # probed again one a block, and those lost again are the ones that crash.
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
            ray_remote_args_fn=_retry_once,
        )
        for row in iter_rows_as_ready(dataset):
            yield row["index"], ClipCheck.model_validate_json(row["check"])
    finally:
        context.max_errored_blocks = before


def _retry_once() -> dict[str, int]:
    return {"max_retries": 1}  # Ray Data's default is to retry for ever


def _probe_row(row: dict[str, Any], settings: CheckConfig) -> dict[str, Any]:
    check = probe(row["address"], row["start_s"], row["end_s"], settings)
    return {"index": row["index"], "check": check.model_dump_json()}
