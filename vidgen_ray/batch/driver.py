"""A jobs file in; clips, records and a report out: the batch run from its driver's side.

Everything that must survive lies in the output store. A rerun reads it and does what is left.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import ray
import ray.data
import yaml
from ray.data import ActorPoolStrategy, DataContext
from rich.console import Console

from vidgen_ray.batch.job_validation import Intake, take_in
from vidgen_ray.batch.plan import Attempt, failed_rows, plan_attempts, refuse_changed
from vidgen_ray.batch.progress import RunProgress, claim
from vidgen_ray.batch.stages import Generate, Row, Run, first_row, read, save, score
from vidgen_ray.cluster.board import start_board
from vidgen_ray.cluster.connect import connected, pool_size
from vidgen_ray.cluster.signals import signals_raise
from vidgen_ray.config import Config
from vidgen_ray.errors import EngineError, Interrupted, RequestError, VidgenError, first_line
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.jobs_file import JobsFile, RowProblem, read_jobs
from vidgen_ray.schema import BatchSummary, GenerationRecord

EXIT_ACCEPTED = 0
EXIT_INFRASTRUCTURE = 1
EXIT_NEEDS_EYES = 3

_MAX_PROBLEMS_SHOWN = 200


@dataclass(frozen=True)
class BatchArguments:
    """What the user asked for. Addresses are local paths or anything fsspec opens."""

    jobs: str
    output: str
    config: Config
    config_name: str
    on_invalid: Literal["stop", "skip"] = "stop"
    retry_failed: bool = False
    ray_address: str | None = None


def run_batch(arguments: BatchArguments, console: Console) -> int:
    """Make the clips that are missing; the exit code of the run.

    Raises RequestError and ConfigError for bad input, ArtifactError and EngineError for a run that
    could not go on, Interrupted for a signal. The same call afterwards goes on where it stopped.
    """
    return make_clips(read_jobs(arguments.jobs, arguments.config), arguments, console)


def make_clips(file: JobsFile, arguments: BatchArguments, console: Console) -> int:
    """Like `run_batch`, of a jobs file that is read already."""
    store = ArtifactStore(arguments.output)
    store.check_writable()
    suspects = claim(store)
    store.clear_staging()
    on_cluster = arguments.ray_address not in {None, "local"}
    intake = None if on_cluster else _take_in(file, arguments, console, on_cluster=False)
    console.print("connecting to Ray" if on_cluster else "starting Ray", style="dim")
    with connected(arguments.ray_address), signals_raise():
        intake = intake or _take_in(file, arguments, console, on_cluster=True)
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        records = store.read_records()
        refuse_changed(intake.jobs, records)
        invalid = failed_rows(intake.problems, intake.jobs, records, run_id)
        for record in invalid:
            store.commit(record)
            records[record.id] = record
        store.write("config.yaml", yaml.safe_dump(arguments.config.model_dump()).encode())
        progress = RunProgress(
            store,
            console,
            run_id=run_id,
            config_name=arguments.config_name,
            ids=[job.request.id for job in intake.jobs] + [record.id for record in invalid],
            records=records,
            min_temporal_score=arguments.config.quality.min_temporal_score,
        )
        todo = plan_attempts(intake.jobs, records, store, arguments.retry_failed, suspects)
        _announce(todo, progress.counts, arguments, console)
        return _make(todo, arguments, store, progress, run_id, console)


def _take_in(
    file: JobsFile, arguments: BatchArguments, console: Console, *, on_cluster: bool
) -> Intake:
    """Check the rows: on the cluster, or where the clips are made here, before Ray starts."""
    console.print("checking every row, its image and its adapter", style="dim")
    intake = take_in(file, arguments.config, on_cluster=on_cluster)
    _report_problems(intake.problems, console)
    if intake.problems and arguments.on_invalid == "stop":
        raise RequestError(
            f"jobs: {len(intake.problems)} problems in {arguments.jobs}; mend them, or use "
            "--on-invalid skip to record these rows as failed and make the others"
        )
    return intake


def _make(
    todo: list[Attempt],
    arguments: BatchArguments,
    store: ArtifactStore,
    progress: RunProgress,
    run_id: str,
    console: Console,
) -> int:
    try:
        with progress:
            # A rejected clip asks for another attempt: each pass makes those that are wanted.
            while todo:
                todo = _run_pass(todo, arguments, progress, run_id)
    except Interrupted:
        progress.write_status("interrupted")
        raise
    except VidgenError as error:
        progress.write_status("failed", str(error), EXIT_INFRASTRUCTURE)
        progress.write_results()
        raise
    except ray.exceptions.RayError as error:
        progress.write_status("failed", str(error), EXIT_INFRASTRUCTURE)
        raise EngineError(
            f"Ray ended the run: {first_line(error)}; run the same command again: finished clips "
            "are kept"
        ) from error
    summary = progress.write_results()
    exit_code = EXIT_ACCEPTED if summary.accepted == summary.total else EXIT_NEEDS_EYES
    progress.write_status("finished", exit_code=exit_code)
    _say_result(summary, arguments, console)
    return exit_code


def _run_pass(
    todo: list[Attempt], arguments: BatchArguments, progress: RunProgress, run_id: str
) -> list[Attempt]:
    """Make every attempt of `todo` once; the attempts that are wanted after it."""
    run = Run(run_id, arguments.config, arguments.output, start_board())
    progress.follow(run.board)
    waiting = {attempt.job.request.id: attempt for attempt in todo}
    wanted = []
    num_failures = 0
    for row in _rows_at_once(_dataset(todo, run)):
        if row["fatal"]:
            raise EngineError(row["fatal"])
        record = GenerationRecord.model_validate_json(row["record"])
        attempt = waiting.pop(record.id)
        if row["again"]:
            wanted.append(Attempt(attempt.job, attempt.number + 1))
        progress.add(record, final=not row["again"])
        num_failures = _count_failures(num_failures, record, arguments.config)
    if waiting:
        raise EngineError(f"Ray lost {len(waiting)} rows, among them {min(waiting)}; run again")
    return wanted


def _dataset(todo: list[Attempt], run: Run) -> ray.data.Dataset:
    """The four stages. One row a block, so that a clip goes on as soon as it is made."""
    batch = run.config.batch
    num_ranks = run.config.model.gpus_per_clip
    pool = pool_size(
        batch, len(todo), reserved_cpus=batch.num_cpus_per_score, gpus_per_clip=num_ranks
    )
    # Ranks reserve what they need by themselves, beside the worker that leads them.
    leads = num_ranks > 1
    context = DataContext.get_current()
    context.wait_for_min_actors_s = int(batch.worker_start_timeout_s)
    context.execution_no_progress_timeout_s = 2 * max(batch.clip_timeout_s or 86_400, 900)
    rows = [
        first_row(attempt.job.request, attempt.number, attempt.job.content_hash, run.id)
        for attempt in todo
    ]
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(read, fn_args=(run,), num_cpus=0.5)
        .map(
            Generate,
            fn_constructor_args=(run,),
            compute=ActorPoolStrategy(
                min_size=pool.least, initial_size=pool.initial, max_size=pool.most
            ),
            num_cpus=0 if leads else batch.num_cpus_per_worker,
            num_gpus=None if leads else batch.num_gpus_per_worker or None,
        )
        .map(score, fn_args=(run,), num_cpus=batch.num_cpus_per_score)
        .map(save, fn_args=(run,), num_cpus=batch.num_cpus_per_score)
    )


def _rows_at_once(dataset: ray.data.Dataset) -> Iterator[Row]:
    """Rows as they are done: `iter_rows` would hold each back until the next is there."""
    for table in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        yield from table.to_pylist()


def _count_failures(num_failures: int, record: GenerationRecord, config: Config) -> int:
    """Failures of the machine, not of the request, in a row from the start; raises at the limit.

    -1 once a clip was made: from then on failures belong to their clips.
    """
    if num_failures < 0 or (record.error is None):
        return -1
    if record.error.kind == "RequestError":
        return num_failures
    num_failures += 1
    if num_failures >= config.batch.max_failures_before_first_success:
        raise EngineError(
            f"the first {num_failures} clips all failed, so the run stopped; the last one: "
            f"{record.error.message}; mend this, then run again with --retry-failed"
        )
    return num_failures


def _report_problems(problems: Sequence[RowProblem], console: Console) -> None:
    for problem in problems[:_MAX_PROBLEMS_SHOWN]:
        console.print(str(problem), highlight=False, markup=False, soft_wrap=True)
    if len(problems) > _MAX_PROBLEMS_SHOWN:
        console.print(f"... and {len(problems) - _MAX_PROBLEMS_SHOWN} more problems")


def _announce(
    todo: Sequence[Attempt], counts: Counter[str], arguments: BatchArguments, console: Console
) -> None:
    text = f"{len(todo)} of {sum(counts.values())} clips to make with {arguments.config_name}"
    there = [f"{counts[name]} {name.replace('_', ' ')}" for name in counts if name != "pending"]
    if there:
        text += f"; already there: {', '.join(there)}"
    if counts["failed"] + counts["quarantined"] and not arguments.retry_failed:
        text += " (--retry-failed tries the failed ones again)"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _say_result(summary: BatchSummary, arguments: BatchArguments, console: Console) -> None:
    names = ("accepted", "needs_review", "failed", "quarantined")
    counts = ", ".join(f"{getattr(summary, name)} {name.replace('_', ' ')}" for name in names)
    lines = [f"{summary.total} clips: {counts}; {summary.wall_s:.0f} s"]
    if summary.model and not summary.model.trained:
        lines.append("The weights are untrained: the pictures show the path, not the quality.")
    lines.append(f"Clips:  {arguments.output}")
    lines.append(f"Report: {arguments.output.rstrip('/')}/index.html")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
