"""The channel between the ranks and the driver of a training run."""

import threading
from typing import Any

import ray
from ray.actor import ActorHandle

from vidgen_ray.errors import VidgenError
from vidgen_ray.training.state import StepMetrics


class TrainingChannel:
    """Carries steps, messages and errors to the driver and the request to stop to the ranks.

    It is a Ray actor for workers, and a plain object for a run in this process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # in process the rank is another thread
        self._steps: list[StepMetrics] = []
        self._messages: list[str] = []
        self._restored: list[StepMetrics] | None = None
        self._stop = False
        self._error: VidgenError | None = None

    def add_step(self, metrics: StepMetrics) -> bool:
        """Add a step; returns whether to continue."""
        with self._lock:
            self._steps.append(metrics)
            return not self._stop

    def restore(self, history: list[StepMetrics]) -> None:
        """Replace all steps by those of the state that the ranks resume from."""
        with self._lock:
            self._restored, self._steps = list(history), []

    def add_message(self, text: str) -> None:
        """Add a line for the user."""
        with self._lock:
            self._messages.append(text)

    def drain(self) -> tuple[list[StepMetrics] | None, list[StepMetrics], list[str]]:
        """What arrived since the last call: a restored history, the steps after it, messages."""
        with self._lock:
            drained = self._restored, self._steps, self._messages
            self._restored, self._steps, self._messages = None, [], []
            return drained

    def stop(self) -> None:
        """Ask the ranks to commit their state and exit after the current step."""
        self._stop = True

    def fail(self, error: VidgenError) -> None:
        """Record an error that a retry would meet again; the first one is kept."""
        self._error = self._error or error

    def error(self) -> VidgenError | None:
        """The recorded error."""
        return self._error


def open_channel(num_workers: int) -> Any:
    """A channel for `num_workers` Ray workers; 0 means a run in this process."""
    return ray.remote(num_cpus=0)(TrainingChannel).remote() if num_workers else TrainingChannel()


def call(channel: Any, method: str, *arguments: Any) -> Any:
    """Call a method of a channel, an object or an actor, and wait for the result."""
    called = getattr(channel, method)
    if isinstance(channel, ActorHandle):
        return ray.get(called.remote(*arguments))
    return called(*arguments)
