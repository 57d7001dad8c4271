"""The board: one small actor where workers report their progress and the driver reads it.

It counts how often a stage of an id began and did not end: so a request that kills its worker is
identified.
"""

import logging
import os
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vidgen_ray.cluster.metrics import RetryMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activity:
    """An id being worked on: its stage, the process, and the denoising step."""

    id: str
    stage: str
    node: str
    pid: int
    since: float
    step: int = 0
    num_steps: int = 0
    vram_reserved_gb: float | None = None


class BoardState:
    """The actor's state. A stage removes its entry; that of a process which died stays."""

    def __init__(self) -> None:
        self._activities: dict[str, Activity] = {}
        self._begun: Counter[tuple[str, str]] = Counter()
        self._retries = RetryMetrics("batch")

    def begin(self, activity: Activity) -> int:
        """Note that an id enters a stage; how often it entered before without leaving."""
        key = (activity.id, activity.stage)
        before = self._begun[key]
        if before:
            self._retries.retried("worker_lost")
        self._begun[key] += 1
        self._activities[activity.id] = activity
        return before

    def step(self, activity: Activity) -> None:
        """Note a denoising step."""
        if activity.id in self._activities:
            self._activities[activity.id] = activity

    def end(self, clip_id: str, stage: str) -> None:
        """Note that an id left a stage alive."""
        self._begun.pop((clip_id, stage), None)
        self._activities.pop(clip_id, None)

    def activities(self) -> list[Activity]:
        """What is being worked on now, the longest first."""
        return sorted(self._activities.values(), key=lambda activity: activity.since)


def start_board() -> Any:
    """A board for this run, on the driver's node, where it outlives the workers it counts.

    It takes no CPU, and Ray restarts it, empty, when it dies.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
    return ray.remote(**options, scheduling_strategy=here)(BoardState).remote()


def begin(board: Any, entry: Activity) -> int:
    """Note on a board that an id enters a stage; how often it entered before without leaving.

    0 while the board is unreachable: its counts are lost, and the work continues.
    """
    try:
        return int(ray.get(board.begin.remote(entry)))
    except ray.exceptions.RayActorError as error:
        logger.warning("%s: the board is unreachable: %s", entry.id, error)
        return 0


def activity(clip_id: str, stage: str) -> Activity:
    """An entry for this process, from now on."""
    return Activity(clip_id, stage, socket.gethostname(), os.getpid(), time.time())
