"""JSON as people write it by hand: duplicate keys, deep nesting and huge numbers are faults."""

import json
import re
from typing import Any

MAX_LEVELS = 50  # pydantic cannot save a record of more than some 250

_SPACE = re.compile(r"[ \t\r\n]*")


class JsonReader:
    """A parser that collects the keys an object sets twice; one text at a time."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def read(self, text: str, start: int = 0) -> tuple[Any, int, list[str]]:
        """The value at `start`, the offset after it, and the keys that were set more than once.

        Raises json.JSONDecodeError where the syntax is wrong.
        """
        self._repeated.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text, start) from None
        except ValueError:  # Python's limit on the digits of an integer
            raise json.JSONDecodeError("a number with too many digits", text, start) from None
        return value, skip_space(text, end), list(self._repeated)

    def read_all(self, text: str) -> tuple[Any, list[str]]:
        """Like `read`, of a text that holds one value and nothing else."""
        value, end, repeated = self.read(text, skip_space(text))
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value, repeated

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            self._repeated += [name for name in fields if names.count(name) > 1]
        return fields


def is_too_deep(value: Any, max_levels: int = MAX_LEVELS) -> bool:
    """Whether lists and objects nest more than `max_levels` deep; safe at any depth."""
    level = [value]
    for _ in range(max_levels + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def skip_space(text: str, start: int = 0) -> int:
    """The offset of the first character from `start` on that is not JSON's white space."""
    match = _SPACE.match(text, start)
    return match.end() if match else start
