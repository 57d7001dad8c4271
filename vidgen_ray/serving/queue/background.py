"""Background tasks of a process: one that fails is logged, reported and started again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

logger = logging.getLogger("ray.serve")

_RESTART_AFTER_S = 1.0
_REPORTED_FOR_S = 60.0


class BackgroundTasks:
    """Coroutines that are meant to run until `stop`."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, tuple[float, str]] = {}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run `run()` in the current event loop, again and again should it fail or return."""
        self._tasks[name] = asyncio.create_task(self._supervise(name, run), name=name)

    def report(self) -> dict[str, str]:
        """By task: `running`, or how it failed within the last minute."""
        now = time.monotonic()
        states = dict.fromkeys(self._tasks, "running")
        for name, (failed_at, problem) in list(self._failures.items()):
            if now - failed_at < _REPORTED_FOR_S:
                states[name] = problem
        return states

    @property
    def are_running(self) -> bool:
        """Whether every supervisor is alive."""
        return not any(task.done() for task in self._tasks.values())

    def stop(self) -> None:
        """Cancel all of them."""
        for task in self._tasks.values():
            task.cancel()

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await run()
                problem = "ended unexpectedly; it was started again"
            except Exception as error:
                logger.exception("background task failed", extra={"task": name})
                problem = f"failed ({type(error).__name__}); it was started again"
            self._failures[name] = (time.monotonic(), problem)
            await asyncio.sleep(_RESTART_AFTER_S)
