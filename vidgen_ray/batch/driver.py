"""The driver of a batch: a jobs file in; clips, records and a report out.

All state is in the output store. A rerun reads it and makes what is left.
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

from vidgen_ray.addresses import one_line
from vidgen_ray.batch.job_validation import ValidatedJobs, validate_jobs
from vidgen_ray.batch.plan import failed_rows, plan_attempts, refuse_changed
from vidgen_ray.batch.progress import RunProgress, lock_output
from vidgen_ray.batch.stages import (
    FatalError,
    Generate,
    Run,
    commit,
    from_row,
    read,
    score,
    to_row,
)
from vidgen_ray.cluster.board import start_board
from vidgen_ray.cluster.connect import connected, pool_size
from vidgen_ray.cluster.rows import iter_rows_as_ready
from vidgen_ray.cluster.signals import signals_raise
from vidgen_ray.config import Config
from vidgen_ray.errors import EngineError, Interrupted, RequestError, VidgenError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.attempt import Attempt
from vidgen_ray.generation.commit import AttemptResult
from vidgen_ray.generation.jobs_file import JobsFile, RowProblem, read_jobs
from vidgen_ray.schema import BatchSummary, GenerationRecord

EXIT_ACCEPTED = 0
EXIT_INFRASTRUCTURE = 1
EXIT_NEEDS_REVIEW = 3

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
    could not go on, Interrupted for a signal. The same call afterwards resumes.
    """
    return make_clips(read_jobs(arguments.jobs, arguments.config), arguments, console)


def make_clips(file: JobsFile, arguments: BatchArguments, console: Console) -> int:
    """Like `run_batch`, of a jobs file that is read already."""
    store = ArtifactStore(arguments.output)
    store.check_writable()
    suspects = lock_output(store)
    store.clear_staging()
    on_cluster = arguments.ray_address not in {None, "local"}
    # Rows are checked on the cluster, or here before Ray starts where the clips are made here.
    jobs = None if on_cluster else _valid_jobs(file, arguments, console, on_cluster=False)
    console.print("connecting to Ray" if on_cluster else "starting Ray", style="dim")
    with connected(arguments.ray_address), signals_raise():
        jobs = jobs or _valid_jobs(file, arguments, console, on_cluster=True)
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        records = store.read_records()
        refuse_changed(jobs.jobs, records)
        invalid = failed_rows(jobs.problems, jobs.jobs, records, run_id)
        for record in invalid:
            store.commit(record)
            records[record.id] = record
        store.write("config.yaml", yaml.safe_dump(arguments.config.model_dump()).encode())
        progress = RunProgress(
            store,
            console,
            run_id=run_id,
            config_name=arguments.config_name,
            ids=[job.request.id for job in jobs.jobs] + [record.id for record in invalid],
            records=records,
            min_temporal_score=arguments.config.quality.min_temporal_score,
        )
        retry_failed = arguments.retry_failed
        todo = plan_attempts(jobs.jobs, records, store, retry_failed, suspects, run_id)
        _print_plan(todo, progress.counts, arguments, console)
        return _run(todo, arguments, progress, run_id, console)


def _valid_jobs(
    file: JobsFile, arguments: BatchArguments, console: Console, *, on_cluster: bool
) -> ValidatedJobs:
    """The jobs of the file. Raises RequestError for problems, unless they are to be skipped."""
    console.print("checking every row, its image and its adapter", style="dim")
    jobs = validate_jobs(file, arguments.config, on_cluster=on_cluster)
    _report_problems(jobs.problems, console)
    if jobs.problems and arguments.on_invalid == "stop":
        count = len(jobs.problems)
        raise RequestError(
            f"jobs: {count} problem{'s' if count > 1 else ''} in {arguments.jobs}; fix them, or "
            "use --on-invalid skip to record these rows as failed and make the others"
        )
    return jobs


def _run(
    todo: list[Attempt],
    arguments: BatchArguments,
    progress: RunProgress,
    run_id: str,
    console: Console,
) -> int:
    """Make every attempt and those that rejected clips ask for; the exit code."""
    try:
        with progress:
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
            f"Ray ended the run: {one_line(error)}; run the same command again: finished clips "
            "are kept"
        ) from error
    summary = progress.write_results()
    exit_code = EXIT_ACCEPTED if summary.accepted == summary.total else EXIT_NEEDS_REVIEW
    progress.write_status("finished", exit_code=exit_code)
    _print_result(summary, arguments, console)
    return exit_code


def _run_pass(
    todo: list[Attempt], arguments: BatchArguments, progress: RunProgress, run_id: str
) -> list[Attempt]:
    """Make every attempt of `todo` once; the retries that rejected clips ask for."""
    run = Run(run_id, arguments.config, arguments.output, start_board())
    progress.follow(run.board)
    waiting = {attempt.id for attempt in todo}
    retries = []
    num_failures = 0
    for result in _results(_dataset(todo, run)):
        record = result.record
        waiting.remove(record.id)
        if result.retry:
            retries.append(result.retry)
        progress.add(record, final=result.retry is None)
        num_failures = _count_failures(num_failures, record, arguments.config)
    if waiting:
        raise EngineError(f"Ray lost {len(waiting)} rows, among them {min(waiting)}; run again")
    return retries


def _dataset(todo: list[Attempt], run: Run) -> ray.data.Dataset:
    """The four stages. One row a block, so that a clip moves on as soon as it is made."""
    batch = run.config.batch
    num_ranks = run.config.model.gpus_per_clip
    pool = pool_size(
        batch, len(todo), reserved_cpus=batch.num_cpus_per_score, gpus_per_clip=num_ranks
    )
    # Ranks reserve their own resources, beside the worker that leads them.
    leads = num_ranks > 1
    context = DataContext.get_current()
    context.wait_for_min_actors_s = int(batch.worker_start_timeout_s)
    context.execution_no_progress_timeout_s = 2 * max(batch.clip_timeout_s or 86_400, 900)
    return (
        ray.data.from_items([to_row(attempt) for attempt in todo], override_num_blocks=len(todo))
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
        .map(commit, fn_args=(run,), num_cpus=batch.num_cpus_per_score)
    )


def _results(dataset: ray.data.Dataset) -> Iterator[AttemptResult]:
    """What became of each attempt, as soon as it is done. Raises a fatal error, as it is."""
    for row in iter_rows_as_ready(dataset):
        state = from_row(row)
        if isinstance(state, FatalError):
            raise state.error
        assert isinstance(state, AttemptResult), state  # the last stage makes nothing else
        yield state


def _count_failures(num_failures: int, record: GenerationRecord, config: Config) -> int:
    """Failures of the machine, not of the request, in a row from the start; raises at the limit.

    -1 once a clip was made: later failures do not stop the run.
    """
    if num_failures < 0 or (record.error is None):
        return -1
    if record.error.kind == "RequestError":
        return num_failures
    num_failures += 1
    if num_failures >= config.batch.max_failures_before_first_success:
        raise EngineError(
            f"the first {num_failures} clips all failed, so the run stopped; the last one: "
            f"{record.error.message}; fix this, then run again with --retry-failed"
        )
    return num_failures


def _report_problems(problems: Sequence[RowProblem], console: Console) -> None:
    for problem in problems[:_MAX_PROBLEMS_SHOWN]:
        console.print(str(problem), highlight=False, markup=False, soft_wrap=True)
    if len(problems) > _MAX_PROBLEMS_SHOWN:
        console.print(f"... and {len(problems) - _MAX_PROBLEMS_SHOWN} more problems")


def _print_plan(
    todo: Sequence[Attempt], counts: Counter[str], arguments: BatchArguments, console: Console
) -> None:
    text = f"{len(todo)} of {sum(counts.values())} clips to make with {arguments.config_name}"
    there = [f"{counts[name]} {name.replace('_', ' ')}" for name in counts if name != "pending"]
    if there:
        text += f"; already there: {', '.join(there)}"
    if counts["failed"] + counts["quarantined"] and not arguments.retry_failed:
        text += " (--retry-failed tries the failed ones again)"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_result(summary: BatchSummary, arguments: BatchArguments, console: Console) -> None:
    names = ("accepted", "needs_review", "failed", "quarantined")
    counts = ", ".join(f"{getattr(summary, name)} {name.replace('_', ' ')}" for name in names)
    lines = [f"{summary.total} clips: {counts}; {summary.wall_s:.0f} s"]
    if summary.model and not summary.model.trained:
        lines.append("The weights are untrained: the pictures show the path, not the quality.")
    lines.append(f"Clips:  {arguments.output}")
    lines.append(f"Report: {arguments.output.rstrip('/')}/index.html")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
