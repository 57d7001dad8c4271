"""The progress of a run: a live display or plain lines, `status.json`, manifest and report."""

import os
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import psutil
import ray
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from vidgen_ray.cluster.board import Activity
from vidgen_ray.cluster.connect import is_listening
from vidgen_ray.cluster.metrics import ClipMetrics, QueueMetrics
from vidgen_ray.errors import ArtifactError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.report import render_report
from vidgen_ray.provenance import versions
from vidgen_ray.schema import BatchSummary, GenerationRecord, RunningClip, RunStatus, StageTimes

_POLL_S = 0.5
_WRITE_S = 1.0
_LINE_S = 30.0
_STALE_S = 120.0
_HEAD_LOST_S = 30.0  # without an answer, when nothing listens at the head's address either
_NO_ANSWER_S = 300.0  # without an answer of a head that is busy, or restarts the board


class RunProgress:
    """The records of a run so far, and what its workers are doing.

    As a context manager it runs a thread that polls the board, draws, and keeps the files of the
    output folder current. Times are by the driver's clock.
    """

    def __init__(
        self,
        store: ArtifactStore,
        console: Console,
        *,
        run_id: str,
        config_name: str,
        ids: Sequence[str],
        records: dict[str, GenerationRecord],
        min_temporal_score: float,
    ) -> None:
        self._store = store
        self._console = console
        self._run_id = run_id
        self._config_name = config_name
        self._ids = list(ids)
        self._records = dict(records)
        self._min_temporal_score = min_temporal_score
        self._started_at = datetime.now(UTC)
        self._start = time.monotonic()
        self._made: list[GenerationRecord] = []
        self._num_made = 0
        self._activities: list[Activity] = []
        self._peak_vram_gb: float | None = None
        self._board: Any = None
        self._head = ""
        self._heard = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._changed = True
        self._failure: ArtifactError | None = None
        self._earlier = _earlier_runs(store)
        self._metrics = ClipMetrics("batch")
        self._queue = QueueMetrics("batch")

    def __enter__(self) -> "RunProgress":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def follow(self, board: Any) -> None:
        """Poll this board from now on."""
        self._board = board
        self._head = ray.get_runtime_context().gcs_address
        self._heard = time.monotonic()

    def add(self, record: GenerationRecord, *, final: bool) -> None:
        """Count an attempt; a final one is the id's record. Raises ArtifactError when the
        store has failed in the meantime."""
        with self._lock:
            self._num_made += 1
            if final:
                self._records[record.id] = record
                self._made.append(record)
                self._changed = True
        self._metrics.attempt_ended(record, final=final)
        if not self._console.is_terminal:
            self._console.print(_line(record, final), highlight=False, markup=False)
        if self._failure:
            raise self._failure

    @property
    def records(self) -> list[GenerationRecord]:
        """The records of the jobs file's ids, in its order, then any others of the folder."""
        with self._lock:
            listed = [self._records[clip_id] for clip_id in self._ids if clip_id in self._records]
            known = set(self._ids)
            return listed + [
                record for clip_id, record in sorted(self._records.items()) if clip_id not in known
            ]

    @property
    def counts(self) -> Counter[str]:
        """How many ids of the jobs file have which status; `pending` for those without one."""
        with self._lock:
            return Counter(
                self._records[clip_id].status if clip_id in self._records else "pending"
                for clip_id in self._ids
            )

    def write_status(
        self,
        state: Literal["running", "finished", "interrupted", "failed"],
        error: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        """Write `status.json`."""
        counts, rate = self.counts, self._clips_per_hour()
        status = RunStatus(
            run_id=self._run_id,
            state=state,
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_started_at=psutil.Process().create_time(),
            started_at=self._started_at,
            updated_at=datetime.now(UTC),
            total=len(self._ids),
            **{name: counts[name] for name in _STATUSES},
            made=self._num_made,
            clips_per_hour=rate,
            eta_s=counts["pending"] / rate * 3600 if rate else None,
            vram_reserved_gb=self._vram_reserved_gb(),
            running=[] if state == "finished" else [_running(entry) for entry in self._activities],
            error=error,
            exit_code=exit_code,
        )
        self._store.write("status.json", _json(status))

    def write_results(self) -> BatchSummary:
        """Write `manifest.jsonl`, `summary.json` and `index.html`."""
        records, summary = self.records, self.summary()
        lines = "".join(record.model_dump_json() + "\n" for record in records)
        self._store.write("manifest.jsonl", lines.encode())
        self._store.write("summary.json", _json(summary))
        page = render_report(records, summary, self._min_temporal_score)
        self._store.write("index.html", page.encode())
        return summary

    def summary(self) -> BatchSummary:
        """All runs on this output in figures, so far."""
        counts = self.counts
        with self._lock:
            records = [self._records[name] for name in self._ids if name in self._records]
        clips = [record for record in records if record.artifact]
        models = [record.model for record in clips if record.model]
        scores = [record.score.score for record in clips if record.score]
        peaks = [record.peak_vram_gb for record in clips if record.peak_vram_gb is not None]
        earlier = self._earlier
        wall_s = earlier.wall_s if earlier else 0.0
        if self._num_made or not earlier:  # a rerun that makes nothing changes no figure
            wall_s += time.monotonic() - self._start
        return BatchSummary(
            run_id=self._run_id,
            config=self._config_name,
            started_at=earlier.started_at if earlier else self._started_at,
            finished_at=datetime.now(UTC) if self._num_made or not earlier else earlier.finished_at,
            wall_s=wall_s,
            total=len(self._ids),
            **{name: counts[name] for name in _STATUSES},
            made=self._num_made + (earlier.made if earlier else 0),
            clips_per_hour=len(clips) / wall_s * 3600 if clips and wall_s else None,
            median_stages=_median_stages(clips),
            median_temporal_score=statistics.median(scores) if scores else None,
            peak_vram_gb=max(peaks, default=None),
            devices=sorted({record.device for record in clips if record.device}),
            model=models[-1] if models else None,
            versions=versions(),
        )

    def _watch(self) -> None:
        if not self._console.is_terminal:
            return self._poll(lambda: None)
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            self._poll(lambda: live.update(self._view()))

    def _poll(self, draw: Any) -> None:
        next_write = next_line = time.monotonic()
        while not self._stop.wait(_POLL_S):
            self._read_board()
            self._note_queue()
            draw()
            now = time.monotonic()
            if now >= next_line + _LINE_S and not self._console.is_terminal:
                next_line = now
                self._console.print(self._headline(), highlight=False, markup=False)
            if now >= next_write:
                self._write_files()
                # A large manifest must not keep the driver busy.
                spent = time.monotonic() - now
                next_write = time.monotonic() + max(_WRITE_S, 10 * spent)

    def _note_queue(self) -> None:
        running, pending = len(self._activities), self.counts["pending"]
        age_s = time.monotonic() - self._start if pending else 0.0
        self._queue.queue(max(0, pending - running), running, age_s)

    def _write_files(self) -> None:
        try:
            self.write_status("running")
            if self._changed:
                self._changed = False
                self.write_results()
        except ArtifactError as error:
            self._failure = error

    def _read_board(self) -> None:
        if self._board is None:
            return
        try:
            self._activities = ray.get(self._board.activities.remote(), timeout=5)
        except ray.exceptions.RayError:
            # Ray restarts a board whose node died; when it does not, Ray is gone.
            silent_s = time.monotonic() - self._heard
            if silent_s > _NO_ANSWER_S or (
                silent_s > _HEAD_LOST_S and not is_listening(self._head)
            ):
                self._give_up(silent_s)
            return
        self._heard = time.monotonic()
        vram_reserved_gb = self._vram_reserved_gb()
        if vram_reserved_gb is not None:
            self._peak_vram_gb = max(vram_reserved_gb, self._peak_vram_gb or 0.0)

    def _give_up(self, silent_s: float) -> None:
        """End the process: the main thread waits for Ray for ever."""
        error = (
            f"Ray has not answered for {silent_s:.0f} s; it was killed, or its head is lost. "
            "Run the same command again: finished clips are kept"
        )
        self.write_status("failed", error, exit_code=1)
        self._console.print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        self._console.file.flush()
        os._exit(1)

    def _vram_reserved_gb(self) -> float | None:
        used = [
            entry.vram_reserved_gb
            for entry in self._activities
            if entry.vram_reserved_gb is not None
        ]
        return max(used, default=None)

    def _clips_per_hour(self) -> float | None:
        elapsed = time.monotonic() - self._start
        done = sum(1 for record in self._made if record.artifact)
        return done / elapsed * 3600 if done else None

    def _headline(self) -> str:
        counts = self.counts
        parts = [f"{len(self._ids) - counts['pending']}/{len(self._ids)} clips"]
        parts += [f"{counts[name]} {name.replace('_', ' ')}" for name in _STATUSES if counts[name]]
        rate = self._clips_per_hour()
        if rate:
            parts.append(f"{rate:.1f} clips/h, {_clock(counts['pending'] / rate * 3600)} left")
        if self._peak_vram_gb is not None:
            parts.append(f"VRAM {self._vram_reserved_gb() or 0:.1f} GB")
        return ", ".join(parts)

    def _view(self) -> Group:
        counts = self.counts
        bar = Progress(TextColumn("clips"), BarColumn(), MofNCompleteColumn(), auto_refresh=False)
        bar.add_task("clips", total=len(self._ids), completed=len(self._ids) - counts["pending"])
        table = Table.grid(padding=(0, 2))
        for entry in self._activities[:12]:
            steps = f"step {entry.step}/{entry.num_steps}" if entry.num_steps else ""
            table.add_row(entry.id, entry.stage, steps, entry.node, f"{_age(entry):.0f} s")
        return Group(bar, self._headline(), table)


_STATUSES = ("accepted", "needs_review", "failed", "quarantined", "pending")


def lock_output(store: ArtifactStore) -> list[str]:
    """Make sure that no other live run writes to `store`. Raises ArtifactError.

    Returns the ids that a run which died was working on: one of them may have killed it.
    """
    data = store.read("status.json")
    if data is None:
        return []
    try:
        status = RunStatus.model_validate_json(data)
    except ValueError:
        return []
    if status.state == "running" and _is_alive(status):
        raise ArtifactError(
            f"output: {store.address} is in use by run {status.run_id} (process {status.pid} on "
            f"{status.host}); wait for it, stop it, or choose another --output"
        )
    return [clip.id for clip in status.running]


def _earlier_runs(store: ArtifactStore) -> BatchSummary | None:
    """The figures of the runs before this one; None where there are none that can be read."""
    data = store.read("summary.json")
    try:
        return BatchSummary.model_validate_json(data) if data else None
    except ValueError:  # of an older version
        return None


def _is_alive(status: RunStatus) -> bool:
    if status.host == socket.gethostname():
        try:
            started_at = psutil.Process(status.pid).create_time()
        except psutil.NoSuchProcess:
            return False
        return abs(started_at - status.pid_started_at) < 2 and status.pid != os.getpid()
    return (datetime.now(UTC) - status.updated_at).total_seconds() < _STALE_S


def _running(entry: Activity) -> RunningClip:
    return RunningClip(
        id=entry.id,
        stage=entry.stage,
        node=entry.node,
        pid=entry.pid,
        step=entry.step,
        num_steps=entry.num_steps,
        vram_reserved_gb=entry.vram_reserved_gb,
    )


def _line(record: GenerationRecord, final: bool) -> str:
    outcome = record.status.replace("_", " ") if final else "rejected, will be retried"
    if record.error:
        return f"{record.id}: {outcome}: {record.error.message}"
    measured = f"score {record.score.score:.2f}" if record.score else "no score"
    reasons = f" ({'; '.join(record.reasons)})" if record.reasons else ""
    return f"{record.id}: {outcome}, {measured}{reasons}"


def _median_stages(records: Sequence[GenerationRecord]) -> StageTimes:
    seconds = {
        name: [value for record in records if (value := getattr(record.stages, name)) is not None]
        for name in StageTimes.model_fields
    }
    return StageTimes(
        **{name: statistics.median(values) for name, values in seconds.items() if values}
    )


def _json(model: RunStatus | BatchSummary) -> bytes:
    return (model.model_dump_json(indent=2) + "\n").encode()


def _age(entry: Activity) -> float:
    return max(0.0, time.time() - entry.since)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
