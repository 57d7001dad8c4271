"""`vidgen dataset`: annotations and folders of clips to `metadata.jsonl`, and what is in it."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from vidgen_ray.cli.options import (
    AddressOption,
    ConfigOption,
    SetOption,
    absolute,
    ray_address,
)
from vidgen_ray.config import load_config, parse_overrides
from vidgen_ray.errors import RequestError

if TYPE_CHECKING:
    from vidgen_ray.datasets.importing import ImportReport

dataset_app = typer.Typer(no_args_is_help=True, help="Training clips: import, download, check.")

_console = Console(highlight=False)

OutputOption = Annotated[str, typer.Option(help="The metadata file to write, ending in .jsonl.")]


@dataset_app.command("import")
def import_(
    dataset: Annotated[
        Literal["msr-vtt", "vatex", "panda70m", "webvid", "folder"],
        typer.Argument(help="Whose format it is."),
    ],
    source: Annotated[str, typer.Argument(help="Annotation file, or the folder.")],
    output: OutputOption = "metadata.jsonl",
    videos: Annotated[
        str | None, typer.Option(help="Folder of the video files, where there are any yet.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many rows.")] = None,
    category: Annotated[str | None, typer.Option(help="Only this one, such as news.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this one, such as train.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of a folder's clips, for the rows.")
    ] = None,
) -> None:
    """Write metadata.jsonl from a dataset's annotations: one row a clip and caption.

    Clips whose video is not there are kept and marked; metadata.to_fetch.csv lists them.
    Exit codes: 0 written, 2 bad input.
    """
    if not output.endswith(".jsonl"):
        raise RequestError(f"output: must end in .jsonl, got {output!r}")
    from vidgen_ray.datasets.importing import ImportArguments, import_dataset
    from vidgen_ray.datasets.sources import DATASETS

    facts = DATASETS[dataset]
    _say(f"{facts.title}: licence: {licence or facts.licence}. {facts.terms or ''}".rstrip())
    arguments = ImportArguments(
        dataset=dataset,
        source=absolute(source),
        output=absolute(output),
        videos=None if videos is None else absolute(videos),
        limit=limit,
        category=category,
        split=split,
        licence=licence,
    )
    with _console.status("reading") as status:
        report = import_dataset(arguments, lambda rows: status.update(f"{rows:,} rows"))
    _say_import(report, output)
    if report.num_missing_clips:
        _say(f"  {facts.videos}")


@dataset_app.command()
def download(
    dataset: Annotated[
        Literal["msr-vtt", "vatex", "panda70m", "webvid"], typer.Argument(help="Which one.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the files.")],
    limit: Annotated[
        int | None, typer.Option(min=0, help="Fetch this many videos at most.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="URL, fsspec address or hub id; default: the usual place.")
    ] = None,
) -> None:
    """Fetch what a dataset's publisher, or the source you name, offers.

    The same command again resumes. SHA256SUMS in the folder holds what the files
    must be. Exit codes: 0 all there, 2 nothing offered or a file that is not what it was.
    """
    from vidgen_ray.datasets.download import fetch, list_files
    from vidgen_ray.datasets.sources import DATASETS

    facts = DATASETS[dataset]
    _say(f"{facts.title}: licence: {facts.licence}. {facts.terms or ''}".rstrip())
    if source is None and facts.address is None:
        _say(f"It cannot be fetched by a program. {facts.obtain}")
        raise typer.Exit(2)
    files = list_files(dataset, source, limit)
    num_bytes = sum(file.size_bytes or 0 for file in files)
    _say(f"{_counted(len(files), 'file')}, {num_bytes / 1e6:,.1f} MB")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=_console, transient=True) as progress:
        for file in files:
            task = progress.add_task(file.name, total=file.size_bytes)
            done = fetch(file, output, partial(progress.advance, task))
            progress.remove_task(task)
            _say(f"  {done.name}: {done.size_bytes:,} bytes{'' if done.is_new else ', was there'}")
    _say(f"{output}: next, `vidgen dataset import {dataset} ANNOTATIONS --videos {output}`")


@dataset_app.command()
def check(
    metadata: Annotated[str, typer.Argument(help="The metadata file.")],
    output: Annotated[
        str | None, typer.Option(help="Where to write it with marks; default: in its place.")
    ] = None,
    config: ConfigOption = "nano",
    address: AddressOption = None,
    settings: SetOption = None,
) -> None:
    """Probe every clip: decoding, duration, size, cuts, motion, duplicates. Nothing is deleted.

    The findings and marks are written into the rows, with a page of plots beside the file.
    Thresholds are in the configuration's `check`. Exit codes: 0 done, 1 infrastructure, 2 bad
    input.
    """
    tree = load_config(config, parse_overrides(settings or []))
    target = absolute(output or metadata)
    if not target.endswith(".jsonl"):
        raise RequestError(f"output: must end in .jsonl, got {target!r}")
    from vidgen_ray.cluster.connect import native_log
    from vidgen_ray.datasets.check_driver import CheckArguments, run_check

    arguments = CheckArguments(
        metadata=absolute(metadata),
        output=target,
        config=tree,
        ray_address=ray_address(address),
    )
    with native_log():
        summary = run_check(arguments, _console)
    clips, rows = _counted(summary.num_clips, "clip"), _counted(summary.num_rows, "row")
    _say(f"{clips} of {rows} checked")
    if summary.num_missing_rows:
        _say(f"  without a video file yet: {_counted(summary.num_missing_rows, 'row')}")
    for mark, count in summary.marks.most_common():
        _say(f"  {count:,} {mark}")
    _say(f"Report: {summary.page}")


def _say_import(report: "ImportReport", output: str) -> None:
    stem = Path(output).name.removesuffix(".jsonl")
    rows, clips = _counted(report.num_rows, "row"), _counted(report.num_clips, "clip")
    _say(f"{output}: {rows} of {clips}")
    if report.num_other_clips:
        left_out = _counted(report.num_other_clips, "clip")
        _say(f"  {left_out} of another category or split left out")
    if report.num_missing_clips:
        clips = _counted(report.num_missing_clips, "clip")
        rows = _counted(report.num_missing_rows, "row")
        _say(f"  without a video file yet: {clips} ({rows}); {stem}.to_fetch.csv lists them")
    for rule, count in report.rejected.most_common():
        _say(f"  {count:,} rejected: {rule} ({stem}.rejected.jsonl)")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _say(text: str) -> None:
    _console.print(text, markup=False, soft_wrap=True)
