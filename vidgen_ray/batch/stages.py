"""The stages of a batch on Ray Data: read, generate, score, commit.

A row is one attempt, pickled, in the state that the last stage left it in. A stage works on the
state it is for and passes any other on: what is wrong with a clip makes a `FailedAttempt`, which
the last stage commits; what is wrong with the run (no model, no store) makes a `FatalError`, which
stops the driver. This module is light: only the workers of `Generate` load torch and diffusers.
"""

import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vidgen_ray.cluster.board import activity, begin
from vidgen_ray.config import Config
from vidgen_ray.errors import ArtifactError, ConfigError, VidgenError
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.attempt import (
    Attempt,
    FailedAttempt,
    GeneratedAttempt,
    PreparedAttempt,
    ScoredAttempt,
)
from vidgen_ray.generation.commit import AttemptResult, commit_or_retry
from vidgen_ray.schema import ErrorRecord

logger = logging.getLogger(__name__)

_MAX_OTHER_NODES = 3


@dataclass(frozen=True)
class Run:
    """What every stage of a run needs to know. `board` is the handle of the run's board."""

    id: str
    config: Config
    output: str
    board: Any


@dataclass(frozen=True)
class FatalError:
    """An error that would fail every clip of the run."""

    attempt: Attempt
    error: VidgenError


EndedAttempt = ScoredAttempt | FailedAttempt
State = Attempt | PreparedAttempt | GeneratedAttempt | EndedAttempt | AttemptResult | FatalError
Row = dict[str, bytes]
T = TypeVar("T")


def to_row(state: State) -> Row:
    """A row of a Ray Dataset."""
    return {"state": pickle.dumps(state, protocol=pickle.HIGHEST_PROTOCOL)}


def from_row(row: Row) -> State:
    """The state that `to_row` packed."""
    state: State = pickle.loads(row["state"])
    return state


def read(row: Row, run: Run) -> Row:
    """Read the conditioning image."""
    return _run_stage("read", Attempt, attempts.prepare, row, run)


class Generate:
    """The stage that holds the model. Weights load with the first row."""

    def __init__(self, run: Run) -> None:
        from vidgen_ray.cluster.clip_worker import ClipWorker  # imports torch, which takes seconds

        self._run = run
        self._open: Callable[[], ClipWorker] = lambda: ClipWorker(run.config, "batch")
        self._worker: ClipWorker | None = None

    def __call__(self, row: Row) -> Row:
        """Make the clip of an attempt."""
        return _run_stage("generate", PreparedAttempt, self._generate, row, self._run)

    def _generate(self, prepared: PreparedAttempt) -> GeneratedAttempt:
        worker = self._worker = self._worker or self._open()
        entry = activity(prepared.attempt.id, "generate")

        def on_step(step: int, num_steps: int) -> None:
            reserved_gb = worker.vram_reserved_gb()
            self._run.board.step.remote(
                replace(entry, step=step, num_steps=num_steps, vram_reserved_gb=reserved_gb)
            )

        timeout_s = self._run.config.batch.clip_timeout_s
        return worker.generate(prepared, on_step, timeout_s=timeout_s)


def score(row: Row, run: Run) -> Row:
    """Score the clip and judge it."""
    num_threads = max(1, int(run.config.batch.num_cpus_per_score))

    def work(generated: GeneratedAttempt) -> ScoredAttempt:
        return attempts.score(generated, run.config.quality, num_threads)

    return _run_stage("score", GeneratedAttempt, work, row, run)


def commit(row: Row, run: Run) -> Row:
    """Commit the clip and its record, or keep it aside and ask for another attempt."""

    def work(ended: EndedAttempt) -> AttemptResult:
        try:
            return _commit(ended, run)
        except ArtifactError as error:
            return _commit_elsewhere(ended, run, error)
        except Exception as error:  # the clip cannot be encoded
            logger.exception("%s: cannot be committed", ended.attempt.id)
            return _commit(attempts.fail(ended.attempt, error, "commit"), run)

    return _run_stage("commit", EndedAttempt, work, row, run)  # type: ignore[arg-type]


def _run_stage(name: str, expected: type[T], work: Callable[[T], State], row: Row, run: Run) -> Row:
    """Do `work` on a row whose state is the expected one; an error becomes the row's new state.

    An attempt that killed its process too often is not tried again: it is quarantined.
    """
    state = from_row(row)
    if not isinstance(state, expected) or isinstance(state, AttemptResult):
        return row
    attempt = state if isinstance(state, Attempt) else state.attempt
    image = state.image if isinstance(state, PreparedAttempt) else None
    try:
        num_deaths = begin(run.board, activity(attempt.id, name))
        if num_deaths >= run.config.batch.max_worker_deaths:
            state = _quarantined(attempt, num_deaths, name)
        if isinstance(state, expected):
            state = work(state)
    except (ArtifactError, ConfigError) as error:
        state = FatalError(attempt, error)
    except VidgenError as error:
        state = attempts.fail(attempt, error, name, image)
    except Exception as error:
        logger.exception("%s: %s failed", attempt.id, name)
        message = f"{type(error).__name__}: {error}"
        record = ErrorRecord(kind=type(error).__name__, message=message, stage=name)
        state = FailedAttempt(attempt, record, image)
    finally:
        run.board.end.remote(attempt.id, name)
    return to_row(state)


def _quarantined(attempt: Attempt, num_deaths: int, stage: str) -> FailedAttempt:
    message = f"killed its worker {num_deaths} times in stage {stage}"
    error = ErrorRecord(kind="WorkerDied", message=message, stage=stage)
    return FailedAttempt(attempt, error, status="quarantined")


def _commit(ended: EndedAttempt, run: Run) -> AttemptResult:
    store = ArtifactStore(run.output)
    return commit_or_retry(store, ended, run.config.quality.max_attempts)


def _commit_elsewhere(ended: EndedAttempt, run: Run, error: ArtifactError) -> AttemptResult:
    """Commit on another node: one that lost its storage must not end a run.

    Raises `error` where no other of a few nodes can write.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")
    ]
    for node_id in others[:_MAX_OTHER_NODES]:
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(_commit)
        try:
            result: AttemptResult = ray.get(task.remote(ended, run))
        except (ArtifactError, ray.exceptions.RayError):
            continue
        logger.error("%s: node %s cannot write, another did: %s", ended.attempt.id, here[:6], error)
        return result
    raise ArtifactError(f"{error} (node {here[:6]}, and {len(others)} others)") from error
