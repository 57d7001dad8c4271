"""Signals that ask a run to end."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vidgen_ray.errors import Interrupted


@contextmanager
def signals_call(ended_by: Callable[[int], None]) -> Iterator[None]:
    """Within the context SIGTERM and SIGINT call `ended_by` with their number, in the main thread.

    In another thread nothing changes: there signals are somebody else's.
    """
    before: dict[int, Any] = {}
    try:
        for name in (signal.SIGTERM, signal.SIGINT):
            before[name] = signal.signal(name, lambda number, _frame: ended_by(number))
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within the context SIGTERM and SIGINT raise Interrupted, once, in the main thread."""

    def interrupt(number: int) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_IGN)
        raise Interrupted(number)

    with signals_call(interrupt):
        yield
