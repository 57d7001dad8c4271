"""Where ranks and driver meet: steps and words one way, a wish to stop the other."""

import threading
from typing import Any

import ray
from ray.actor import ActorHandle

from vidgen_ray.errors import VidgenError
from vidgen_ray.training.state import StepMetrics


class Board:
    """The state: an actor for many workers, an object for a run in process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # in process, the ranks are a thread
        self._steps: list[StepMetrics] = []
        self._words: list[str] = []
        self._restored: list[StepMetrics] | None = None
        self._stop = False
        self._error: VidgenError | None = None

    def step(self, metrics: StepMetrics) -> bool:
        """Note a step; whether to go on."""
        with self._lock:
            self._steps.append(metrics)
            return not self._stop

    def restore(self, history: list[StepMetrics]) -> None:
        """Note the steps that the ranks go on after; later ones were lost."""
        with self._lock:
            self._restored, self._steps = list(history), []

    def say(self, words: str) -> None:
        """Note a line for the user."""
        with self._lock:
            self._words.append(words)

    def take(self) -> tuple[list[StepMetrics] | None, list[StepMetrics], list[str]]:
        """What came since the last call: a history that was restored, steps after it, words."""
        with self._lock:
            taken = self._restored, self._steps, self._words
            self._restored, self._steps, self._words = None, [], []
            return taken

    def stop(self) -> None:
        """Ask the ranks to commit their state and leave after the step they are in."""
        self._stop = True

    def fail(self, error: VidgenError) -> None:
        """Note an error that another attempt will meet again. The first one counts."""
        self._error = self._error or error

    def error(self) -> VidgenError | None:
        """The error that was noted."""
        return self._error


def make_board(num_workers: int) -> Any:
    """A board for so many workers, 0 of them meaning this process."""
    return ray.remote(num_cpus=0)(Board).remote() if num_workers else Board()


def ask(board: Any, method: str, *arguments: Any) -> Any:
    """Call a method of a board, wherever it is, and wait for the answer."""
    called = getattr(board, method)
    if isinstance(board, ActorHandle):
        return ray.get(called.remote(*arguments))
    return called(*arguments)
