"""The rows of a jobs file as fields, each with its line and its syntax errors."""

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

from vidgen_ray.generation.job_fields import KINDS, REQUIRED
from vidgen_ray.generation.json_reader import JsonReader, skip_space


@dataclass(frozen=True)
class Fault:
    """What is wrong with a field, or with the whole row when `field` is None."""

    field: str | None
    message: str


@dataclass(frozen=True)
class RawRow:
    """A row as it was written, the line it starts on, and what is wrong with its syntax."""

    line: int
    fields: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def parse_rows(data: bytes, name: str) -> Iterator[RawRow]:
    """The rows of a file called `name`, with a row of faults only for what cannot be read.

    The suffix of `name` tells the format: .jsonl or .ndjson, .json, .csv; without one the content
    does. Values have JSON's types; a CSV cell that is not of its field's type stays text. Blank
    lines and empty cells are left out. Ends after a CSV header that is wrong.
    """
    text = _decode(data)
    if isinstance(text, RawRow):
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


def _decode(data: bytes) -> str | RawRow:
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


def _not_utf8(data: bytes, offset: int, got: str) -> RawRow:
    line = data.count(b"\n", 0, offset) + 1
    message = f"must be UTF-8 text, got {got}; save the jobs file as UTF-8"
    return RawRow(line, faults=[Fault(None, message)])


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


def _json_lines(text: str) -> Iterator[RawRow]:
    reader = JsonReader()
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            yield _json_row(line, *reader.read_all(row))
        except json.JSONDecodeError as error:
            yield RawRow(line, faults=[_not_json(error)])


def _json_list(text: str) -> Iterator[RawRow]:
    position = skip_space(text)
    if text[position] != "[":
        rule = "a .json jobs file must be a list [...]; for one object a line, name it .jsonl"
        yield RawRow(1 + text.count("\n", 0, position), faults=[Fault(None, rule)])
        return
    try:
        yield from _json_items(text, skip_space(text, position + 1))
    except json.JSONDecodeError as error:
        yield RawRow(error.lineno, faults=[_not_json(error)])


def _json_items(text: str, position: int) -> Iterator[RawRow]:
    reader = JsonReader()
    line, counted = 1, 0
    closed = text[position : position + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        value, end, repeated = reader.read(text, position)
        yield _json_row(line, value, repeated)
        if text[end : end + 1] not in {",", "]"}:
            raise json.JSONDecodeError("Expecting ',' or ']' after an object", text, end)
        closed = text[end] == "]"
        position = end if closed else skip_space(text, end + 1)
    end = skip_space(text, position + 1)
    if end < len(text):
        raise json.JSONDecodeError("Extra data after the list", text, end)


def _json_row(line: int, value: Any, repeated: list[str]) -> RawRow:
    if isinstance(value, dict):
        return RawRow(line, value, _repeated_faults(None, repeated))
    rule = 'must be an object {"id": "a", "image": "a.png", "prompt": "..."}'
    return RawRow(line, faults=[Fault(None, f"{rule}, got {shown(value)}")])


def _repeated_faults(field: str | None, names: list[str]) -> list[Fault]:
    if not names:
        return []
    got = f"got {shown(names)} more often; remove one"
    return [Fault(field, f"must set a field once, {got}")]


def _not_json(error: json.JSONDecodeError) -> Fault:
    advice = "; in JSON a backslash is written \\\\" if "escape" in error.msg else ""
    problem = f"must be valid JSON, got a fault at column {error.colno}: {error.msg}"
    return Fault(None, problem + advice)


# ------------------------------------------------------------------------------------------- CSV

_INTEGER = re.compile(r"([+-]?[0-9]{1,40})(\.0*)?")  # spreadsheets write 5.0 for 5
_SEPARATOR_LINE = re.compile(r"sep=.?$", re.IGNORECASE)  # Excel's first line
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def _csv(text: str) -> Iterator[RawRow]:
    records = _records(text, _delimiter(text))
    line, header = next(records, (1, [""]))
    if isinstance(header, list) and _SEPARATOR_LINE.match(header[0]):
        line, header = next(records, (line, [""]))
    names = [] if isinstance(header, Fault) else [name.strip() for name in header]
    faults = [header] if isinstance(header, Fault) else _header_faults(names)
    if faults:
        yield RawRow(line, faults=faults)
        return
    reader = JsonReader()
    for line, cells in records:
        if isinstance(cells, Fault):
            yield RawRow(line, faults=[cells])
        else:
            yield _csv_row(line, names, cells, reader)


def _delimiter(text: str) -> str:
    """Of comma, semicolon and tab, the one that finds most fields in the header."""
    lines = (line for line in io.StringIO(text) if line.strip(" ,;\t\r\n"))
    header = next(lines, "")
    if _SEPARATOR_LINE.match(header.strip()):
        header = next(lines, "")
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
            yield line, Fault(None, f"must be valid CSV, got: {error}; fix the quotes")
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


def _csv_row(line: int, names: list[str], cells: list[str], reader: JsonReader) -> RawRow:
    row = RawRow(line)
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


def _cell_value(name: str, cell: str, faults: list[Fault], reader: JsonReader) -> Any:
    kind, text = KINDS[name], cell.strip()
    if kind == "integer" and (match := _INTEGER.fullmatch(text)):
        return int(match[1])
    if kind == "number" and _NUMBER.fullmatch(text):
        return float(text)
    if kind == "boolean" and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if kind == "object" or (kind == "lora" and text.startswith("{")):
        try:
            value, repeated = reader.read_all(text)
        except json.JSONDecodeError as error:
            faults.append(Fault(name, _not_json(error).message))
            return {} if kind == "object" else None
        faults += _repeated_faults(name, repeated)
        return value
    return cell
