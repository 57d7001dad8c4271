"""The board: one small actor where workers say what they are at, and the driver reads it.

It also counts how often an id was begun and never ended, which is how a request that kills its
worker is found out.
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
    """An id in work: its stage, the process that has it, and how far the denoising is."""

    id: str
    stage: str
    node: str
    pid: int
    since: float
    step: int = 0
    num_steps: int = 0
    vram_reserved_gb: float | None = None


class BoardState:
    """The actor's state. An entry is left by its stage, or stays when the process dies."""

    def __init__(self) -> None:
        self._activities: dict[str, Activity] = {}
        self._begun: Counter[tuple[str, str]] = Counter()
        self._retries = RetryMetrics("batch")

    def begin(self, activity: Activity) -> int:
        """Note that an id enters a stage; how often it entered before without leaving."""
        key = (activity.id, activity.stage)
        before = self._begun[key]
        if before:
            self._retries.again("worker_lost")
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
        """What is in work now, the longest first."""
        return sorted(self._activities.values(), key=lambda activity: activity.since)


def start_board() -> Any:
    """A board for this run, on the driver's node: it outlives every worker whose deaths it counts.

    It takes no CPU and comes back, empty, should it die.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
    return ray.remote(**options, scheduling_strategy=here)(BoardState).remote()


def begin(board: Any, entry: Activity) -> int:
    """Note on a board that an id enters a stage; how often it entered before without leaving.

    0 where the board is away: what it knew is lost, and work goes on without it.
    """
    try:
        return int(ray.get(board.begin.remote(entry)))
    except ray.exceptions.RayActorError as error:
        logger.warning("%s: the board is away: %s", entry.id, error)
        return 0


def activity(clip_id: str, stage: str) -> Activity:
    """An entry for this process, from now on."""
    return Activity(clip_id, stage, socket.gethostname(), os.getpid(), time.time())
