"""Memory of a cluster's processes over time: whether those that live long grow."""

import contextlib
import re
import statistics
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import psutil

from tests.support.local_cluster import LocalCluster

_EVERY_S = 5.0
_WARM_UP_S = 60.0  # weights, caches and pools come first
_LEAST_S = 60.0  # of samples after that, for a growth to mean anything
_ROLE = re.compile(r"ServeReplica:\w+:(\w+)|Map\((\w+)\)|(gcs_server|raylet|dashboard\.py)")

Sample = tuple[float, int]


@dataclass
class MemoryWatch:
    """Samples private memory (resident less shared, so that the object store does not count)."""

    cluster: LocalCluster
    totals: list[Sample] = field(default_factory=list)
    processes: dict[tuple[str, int, float], list[Sample]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Sample from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Sample no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def most_gb(self, begun: float, ended: float) -> float:
        """The most that all processes together held between two times of `time.monotonic`."""
        return max((size for now, size in self.totals if begun <= now <= ended), default=0) / 1e9

    def table(self) -> str:
        """By kind of process: how many lived long, and how they grew after warming up."""
        growths: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
        for (role, _, _), samples in self.processes.items():
            warm = [each for each in samples if each[0] > samples[0][0] + _WARM_UP_S]
            if warm and (minutes := (warm[-1][0] - warm[0][0]) / 60) * 60 > _LEAST_S:
                growth_mb = (warm[-1][1] - warm[0][1]) / 1e6
                growths[role].append((growth_mb / minutes, minutes, warm[-1][1]))
        lines = [
            "| process | lived on after a minute | MB at the end, most "
            "| MB a minute: median, worst |",
            "|---|---|---|---|",
        ]
        for role, found in sorted(growths.items()):
            rates = [rate for rate, _, _ in found]
            lines.append(
                f"| {role} | {len(found)}, for {sum(minutes for _, minutes, _ in found):.0f} min "
                f"| {max(size for _, _, size in found) / 1e6:.0f} "
                f"| {statistics.median(rates):+.1f}, {max(rates):+.1f} |"
            )
        return "\n".join(lines)

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            now, total = time.monotonic(), 0
            nodes = [self.cluster.head, *list(self.cluster.workers.values())]
            for process in (each for node in nodes if node for each in node.processes()):
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info()
                    private = memory.rss - memory.shared
                    total += private
                    if found := _ROLE.search(" ".join(process.cmdline())):
                        role = next(name for name in found.groups() if name)
                        self.processes[role, process.pid, process.create_time()].append(
                            (now, private)
                        )
            self.totals.append((now, total))
