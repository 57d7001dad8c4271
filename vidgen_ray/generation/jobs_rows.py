"""The rows of a jobs file as fields, each with its line and the faults of its syntax."""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

from fsspec.utils import infer_compression

Kind = Literal["text", "integer", "number", "boolean", "lora", "object"]

KINDS: dict[str, Kind] = {
    "id": "text",
    "image": "text",
    "prompt": "text",
    "template": "text",
    "fields": "object",
    "negative_prompt": "text",
    "seed": "integer",
    "num_inference_steps": "integer",
    "guidance_scale": "number",
    "num_frames": "integer",
    "height": "integer",
    "width": "integer",
    "fps": "integer",
    "mode": "text",
    "profile": "text",
    "lora": "lora",
    "metadata": "object",
    "image_fit": "text",
    "allow_untrained_shape": "boolean",
}
REQUIRED = ("id", "image", "prompt")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a field, or with the whole row when `field` is None."""

    field: str | None
    message: str


@dataclass(frozen=True)
class Row:
    """A row as it was written, the line it starts on, and what is wrong with its syntax."""

    line: int
    fields: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def parse_rows(data: bytes, name: str) -> Iterator[Row]:
    """The rows of a file called `name`, with a row of faults only for what cannot be read.

    The suffix of `name` tells the format: .jsonl or .ndjson, .json, .csv; without one the content
    does. Values have JSON's types; a CSV cell that is not of its field's type stays text. Blank
    lines and empty cells are left out. Ends after a CSV header that is wrong.
    """
    text = _decode(data)
    if isinstance(text, Row):
        yield text
    elif not text.strip():
        return
    elif (kind := _format(name, text)) == "csv":
        yield from _csv(text)
    else:
        yield from _json_list(text) if kind == "json" else _json_lines(text)


def unknown(name: str) -> Fault:
    """That there is no field called `name`, and what it should perhaps be."""
    guess = nearest(name)
    advice = f"did you mean {guess!r}?" if guess else f"the fields are {', '.join(KINDS)}"
    return Fault(name if name.isidentifier() else shown(name), f"no such field; {advice}")


@lru_cache(maxsize=1000)  # a wrong name is wrong on every line
def nearest(name: str) -> str | None:
    """The field that a misspelt name probably means; None for a field's own name."""
    if name in KINDS:
        return None
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])|[ -]+", "_", name[:80].strip()).lower()
    return next(iter(difflib.get_close_matches(plain, KINDS, n=1, cutoff=0.7)), None)


def shown(value: Any) -> str:
    """`value` in one line of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ------------------------------------------------------------------------------------------ text


def _decode(data: bytes) -> str | Row:
    """The text, or a row that says why there is none."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _not_utf8(data, 0, "UTF-16")
    if b"\0" in data:
        got = "UTF-16" if data.count(b"\0") > len(data) // 3 else "a NUL byte"
        return _not_utf8(data, data.index(b"\0"), got)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x}, as in Latin-1 or Windows-1252"
        return _not_utf8(data, error.start, byte)


def _not_utf8(data: bytes, offset: int, got: str) -> Row:
    line = data.count(b"\n", 0, offset) + 1
    message = f"must be UTF-8 text, got {got}; save the jobs file as UTF-8"
    return Row(line, faults=[Fault(None, message)])


def _format(name: str, text: str) -> Literal["jsonl", "json", "csv"]:
    path = PurePosixPath(name)
    suffix = (path.with_suffix("") if infer_compression(name) else path).suffix.lower()
    first = text.lstrip()[:1]
    if suffix in {".jsonl", ".ndjson"}:
        return "json" if first == "[" else "jsonl"  # no row starts with a bracket
    if suffix == ".json" or (suffix != ".csv" and first == "["):
        return "json"
    return "jsonl" if suffix != ".csv" and first == "{" else "csv"


# ------------------------------------------------------------------------------------------ JSON


class _Json:
    """JSON in which setting a key twice is a fault."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def read(self, text: str, start: int = 0) -> tuple[Any, int, list[Fault]]:
        """The value at `start`, the offset after it, and its faults.

        Raises json.JSONDecodeError where the syntax is wrong.
        """
        self._faults.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", text, start) from None
        except ValueError:  # Python's limit on the digits of an integer
            raise json.JSONDecodeError("a number with too many digits", text, start) from None
        return value, _skip_space(text, end), list(self._faults)

    def read_all(self, text: str) -> tuple[Any, list[Fault]]:
        """Like `read`, of a text that holds one value and nothing else."""
        value, end, faults = self.read(text, _skip_space(text))
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value, faults

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = [name for name in fields if names.count(name) > 1]
            message = f"must set a field once, got {shown(twice)} more often; remove one"
            self._faults.append(Fault(None, message))
        return fields


def _json_lines(text: str) -> Iterator[Row]:
    reader = _Json()
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            yield _json_row(line, *reader.read_all(row))
        except json.JSONDecodeError as error:
            yield Row(line, faults=[_not_json(error)])


def _json_list(text: str) -> Iterator[Row]:
    position = _skip_space(text)
    if text[position] != "[":
        rule = "a .json jobs file must be a list [...]; for one object a line, name it .jsonl"
        yield Row(1 + text.count("\n", 0, position), faults=[Fault(None, rule)])
        return
    try:
        yield from _json_items(text, _skip_space(text, position + 1))
    except json.JSONDecodeError as error:
        yield Row(error.lineno, faults=[_not_json(error)])


def _json_items(text: str, position: int) -> Iterator[Row]:
    reader = _Json()
    line, counted = 1, 0
    closed = text[position : position + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        value, end, faults = reader.read(text, position)
        yield _json_row(line, value, faults)
        if text[end : end + 1] not in {",", "]"}:
            raise json.JSONDecodeError("Expecting ',' or ']' after an object", text, end)
        closed = text[end] == "]"
        position = end if closed else _skip_space(text, end + 1)
    end = _skip_space(text, position + 1)
    if end < len(text):
        raise json.JSONDecodeError("Extra data after the list", text, end)


def _json_row(line: int, value: Any, faults: list[Fault]) -> Row:
    if isinstance(value, dict):
        return Row(line, value, faults)
    rule = 'must be an object {"id": "a", "image": "a.png", "prompt": "..."}'
    return Row(line, faults=[Fault(None, f"{rule}, got {shown(value)}")])


def _not_json(error: json.JSONDecodeError) -> Fault:
    return Fault(None, f"must be valid JSON, got a fault at column {error.colno}: {error.msg}")


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip_space(text: str, start: int = 0) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


# ------------------------------------------------------------------------------------------- CSV

_INTEGER = re.compile(r"([+-]?[0-9]{1,40})(\.0*)?")  # spreadsheets write 5.0 for 5
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def _csv(text: str) -> Iterator[Row]:
    records = _records(text, _delimiter(text))
    line, header = next(records, (1, [""]))
    names = [] if isinstance(header, Fault) else [name.strip() for name in header]
    faults = [header] if isinstance(header, Fault) else _header_faults(names)
    if faults:
        yield Row(line, faults=faults)
        return
    reader = _Json()
    for line, cells in records:
        if isinstance(cells, Fault):
            yield Row(line, faults=[cells])
        else:
            yield _csv_row(line, names, cells, reader)


def _delimiter(text: str) -> str:
    """Of comma, semicolon and tab, the one that finds most fields in the header."""
    header = next((line for line in io.StringIO(text) if line.strip(" ,;\t\r\n")), "")
    words = {
        mark: {cell.strip(' "\r\n') for cell in header.split(mark)} & KINDS.keys()
        for mark in ",;\t"
    }
    return max(words, key=lambda mark: len(words[mark]))


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | Fault]]:
    """The records that are not blank, each with the line it starts on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, Fault(None, f"must be valid CSV, got: {error}; mend the quotes")
            continue
        if any(cell.strip() for cell in cells):
            yield line, cells


def _header_faults(names: list[str]) -> list[Fault]:
    if not KINDS.keys() & set(names):
        got = shown(",".join(names))
        return [Fault(None, f"a CSV file must start with a header id,image,prompt, got {got}")]
    faults = [unknown(name) for name in names if name and name not in KINDS]
    faults += [
        Fault(name, "must be one column, got it more often; remove one")
        for name in dict.fromkeys(names)
        if name and names.count(name) > 1
    ]
    guessed = {nearest(name) for name in names}
    faults += [
        Fault(name, "required, but there is no such column")
        for name in REQUIRED
        if name not in names and name not in guessed
        if not (name == "prompt" and "template" in names)
    ]
    return faults


def _csv_row(line: int, names: list[str], cells: list[str], reader: _Json) -> Row:
    row = Row(line)
    unnamed = [cell for name, cell in zip(names, cells, strict=False) if not name]
    unnamed += cells[len(names) :]
    if len(cells) < len(names) or any(cell.strip() for cell in unnamed):
        rule = f"must have a cell for each of the {len(names)} columns, got {len(cells)}"
        row.faults.append(Fault(None, f"{rule}; put a cell that holds the separator in quotes"))
        return row
    for name, cell in zip(names, cells, strict=False):
        if name and cell.strip():
            row.fields[name] = _cell_value(name, cell, row.faults, reader)
    return row


def _cell_value(name: str, cell: str, faults: list[Fault], reader: _Json) -> Any:
    kind, text = KINDS[name], cell.strip()
    if kind == "integer" and (match := _INTEGER.fullmatch(text)):
        return int(match[1])
    if kind == "number" and _NUMBER.fullmatch(text):
        return float(text)
    if kind == "boolean" and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if kind == "object" or (kind == "lora" and text.startswith("{")):
        try:
            value, found = reader.read_all(text)
        except json.JSONDecodeError as error:
            value, found = None, [_not_json(error)]
        faults.extend(Fault(name, fault.message) for fault in found)
        return {} if value is None and kind == "object" else value
    return cell
