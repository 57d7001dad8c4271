"""Signals that ask a run to end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vidgen_ray.errors import Interrupted


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within the context SIGTERM and SIGINT raise Interrupted, once, in the main thread."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for name in before:
            signal.signal(name, signal.SIG_IGN)
        raise Interrupted(number)

    before: dict[int, Any] = {}
    try:
        for name in (signal.SIGTERM, signal.SIGINT):
            before[name] = signal.signal(name, interrupt)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
