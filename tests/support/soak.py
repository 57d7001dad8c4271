"""A batch and a server on three nodes that are killed, added, drained and lose their storage."""

import contextlib
import itertools
import sqlite3
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.local_cluster import LocalCluster
from tests.support.mixed_load import BatchRun, Service, until
from tests.support.tiny_model import make_tiny_checkpoint, tiny_settings

_RECOVERY_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Outcome:
    """What a fault cost: seconds until batch and server each had finished another clip, clips of
    the batch that were in work, and finished clips that were made again."""

    fault: str
    batch_s: float
    server_s: float
    in_work: int
    made_again: int


@dataclass
class Soak:
    """The cluster, its load, and what happened. `num_clips` is of each batch."""

    folder: Path
    num_clips: int = 60
    num_steps: int = 40
    pause_s: float = 0.0  # before each fault
    outcomes: list[Outcome] = field(default_factory=list)
    batches: list[BatchRun] = field(default_factory=list)
    num_restarts: int = 0  # of a batch whose driver ended before its clips were made

    def __post_init__(self) -> None:
        self.storage = self.folder / "storage"
        self.storage.mkdir(parents=True)
        settings = tiny_settings(make_tiny_checkpoint(self.folder / "tiny"))
        self._settings = {
            **settings,
            "generation.num_inference_steps": self.num_steps,
            "batch.max_workers": 2,
            "batch.num_cpus_per_score": 0.5,
        }
        self.cluster = LocalCluster(self.folder / "cluster")
        self.service = Service(
            self.cluster, self.storage / "service", self._settings, num_generators=2
        )
        self._names = (f"worker-{number}" for number in itertools.count(3))
        self._stop = threading.Event()
        self._asking = threading.Thread(target=self._ask, daemon=True)

    def start(self) -> None:
        """The cluster, the server, its clients, and the first batch."""
        self.cluster.start(num_workers=2)
        self.service.deploy()
        self._asking.start()
        self.next_batch()
        self._recover(time.monotonic())

    def finish(self) -> None:
        """Let everything come to its end and check it: none lost, none doubled."""
        self._stop.set()
        self._asking.join()
        self._keep_batch_running(wait=True)
        until(lambda: self.service.num_open() == 0, 600, "the last jobs", every_s=1)
        self.service.check()
        for batch in self.batches:
            batch.check()

    def close(self) -> None:
        """End every process."""
        self._stop.set()
        for batch in self.batches:
            batch.kill()
        self.cluster.close()

    def next_batch(self) -> None:
        """Start the next batch, in a folder of its own."""
        folder = self.storage / f"batch-{len(self.batches)}"
        batch = BatchRun(self.cluster, folder, self.num_clips, self._settings)
        self.batches.append(batch.start())

    def kill_node(self) -> None:
        """SIGKILL to all processes of the worker that was there first."""
        self._suffer("a worker node killed", lambda: self.cluster.kill(self._oldest()))

    def add_node(self) -> None:
        """A worker joins while clips are made."""
        self._suffer("a node added", lambda: self.cluster.add(next(self._names)))

    def drain_node(self, notice_s: int = 30) -> None:
        """The notice of a spot instance, and its end after that or once it is idle."""

        def drain() -> None:
            name = self._oldest()
            self.cluster.drain(name, notice_s)
            with contextlib.suppress(TimeoutError):
                until(lambda: not self._is_there(name), notice_s, name)
            self.cluster.kill(name)

        self._suffer("a node drained", drain)

    def refuse_writes(self, seconds: float = 15) -> None:
        """Storage is read-only on one worker for a while."""

        def refuse() -> None:
            name = self._oldest()
            self.cluster.refuse_writes(name, self.storage)
            time.sleep(seconds)
            self.cluster.allow_writes(name, self.storage)

        self._suffer("storage read-only on a node", refuse)

    def kill_everything(self) -> None:
        """Every process of Ray is killed; then the cluster restarts on the same storage."""

        def power_failure() -> None:
            num_workers = len(self.cluster.workers)
            self.cluster.kill_everything()
            self.batches[-1].kill()
            self.cluster.start(num_workers)
            self.service.deploy()

        self._suffer("everything killed and started again", power_failure)

    def table(self) -> str:
        """Each fault: how often, what it cost."""
        lines = [
            "| fault | times | batch goes on: median, worst | server: median, worst "
            "| clips in work | finished clips made again |",
            "|---|---|---|---|---|---|",
        ]
        by_fault: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            by_fault[outcome.fault].append(outcome)
        for fault, found in by_fault.items():
            batch = [each.batch_s for each in found]
            server = [each.server_s for each in found]
            lines.append(
                f"| {fault} | {len(found)} "
                f"| {statistics.median(batch):.0f} s, {max(batch):.0f} s "
                f"| {statistics.median(server):.0f} s, {max(server):.0f} s "
                f"| {sum(each.in_work for each in found)} "
                f"| {sum(each.made_again for each in found)} |"
            )
        done = self._num_done()
        jobs = len(self.service.accepted)
        lines.append("")
        lines.append(
            f"{done} clips of {len(self.batches)} batches, {jobs} jobs of the server: none lost, "
            f"none doubled; {self.num_tries_again()} jobs were begun more than once, "
            f"{self.num_restarts} times a batch was run again."
        )
        return "\n".join(lines)

    def num_tries_again(self) -> int:
        """Jobs of the server whose worker was lost at least once."""
        with contextlib.closing(sqlite3.connect(self.service.output / "jobs.db")) as store:
            query = "select count(*) from vidgen_jobs where tries > 1"
            return int(store.execute(query).fetchone()[0])

    def _suffer(self, name: str, fault: Callable[[], object]) -> None:
        time.sleep(self.pause_s)
        self._keep_batch_running()
        hurt = self.batches[-1]
        before = hurt.written()
        in_work = len(hurt.status().get("running", []))
        begun = time.monotonic()
        fault()
        batch_s, server_s = self._recover(begun)
        after = hurt.written()
        again = sum(after.get(clip) != written for clip, written in before.items())
        print(f"{name}: batch {batch_s:.1f} s, server {server_s:.1f} s", flush=True)
        self.outcomes.append(Outcome(name, batch_s, server_s, in_work, again))

    def _recover(self, begun: float) -> tuple[float, float]:
        """Wait until batch and server have each finished another clip; seconds since `begun`."""
        num_done, num_ended = self._num_done(), self._num_ended()
        batch_s = server_s = None
        while batch_s is None or server_s is None:
            now = time.monotonic()
            if now > begun + _RECOVERY_TIMEOUT_S:
                raise TimeoutError(f"no recovery within {_RECOVERY_TIMEOUT_S:.0f} s")
            self._keep_batch_running()
            if batch_s is None and self._num_done() > num_done:
                batch_s = now - begun
            if server_s is None and self._num_ended() > num_ended:
                server_s = now - begun
            time.sleep(0.3)
        return batch_s, server_s

    def _keep_batch_running(self, wait: bool = False) -> None:
        """Run a batch that ended badly again, as its error says; begin another after the last."""
        batch = self.batches[-1]
        assert batch.process is not None
        while True:
            code = batch.wait() if wait else batch.process.poll()
            if code is None:
                return
            if code == 0:
                break
            self.num_restarts += 1
            batch.start()
        if not wait:
            self.next_batch()

    def _num_done(self) -> int:
        return sum(batch.num_done() for batch in self.batches)

    def _num_ended(self) -> int:
        done = self.service.output.glob("video_*.json")
        return len(list(done))

    def _is_there(self, name: str) -> bool:
        return any(name in resources for resources in self.cluster.nodes().values())

    def _oldest(self) -> str:
        return next(iter(self.cluster.workers))

    def _ask(self) -> None:
        """Keep three jobs open."""
        while not self._stop.wait(0.5):
            open_jobs = len(self.service.accepted) - self._num_ended()
            if open_jobs < 3:
                self.service.post(num_inference_steps=self.num_steps)


def cycle(soak: Soak) -> None:
    """Each fault once; there are two workers before and after."""
    soak.kill_node()
    soak.add_node()
    soak.refuse_writes()
    soak.add_node()
    soak.drain_node()
    soak.kill_everything()
