"""A jobs file as checked requests, with all its problems at once."""

import json
import math
import os
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Any

from fsspec.utils import infer_compression
from pydantic import ValidationError

from vidgen_ray.addresses import folder_of, join, read_address, without_query
from vidgen_ray.config import Config, describe, shipped_loras
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.job_fields import KINDS, NULLABLE, REQUIRED, Kind
from vidgen_ray.generation.jobs_rows import Fault, RawRow, nearest, parse_rows, shown, unknown
from vidgen_ray.generation.json_reader import MAX_LEVELS, is_too_deep
from vidgen_ray.generation.templates import expand
from vidgen_ray.request import ID_PATTERN, GenerationRequest, resolve_request

MAX_JOBS_BYTES = 500_000_000  # after decompression


@dataclass(frozen=True)
class JobRow:
    """A request and the line it starts on, counted from 1 as editors do."""

    line: int
    request: GenerationRequest


@dataclass(frozen=True)
class RowProblem:
    """One thing wrong with the row that starts on `line`.

    `id` is None when the row has no usable one, `field` when the problem is no single field's.
    """

    line: int
    id: str | None
    field: str | None
    message: str

    def __str__(self) -> str:
        row = f"line {self.line}" if self.id is None else f"line {self.line} (id {self.id})"
        return ": ".join(filter(None, [row, self.field, self.message]))


@dataclass(frozen=True)
class JobsFile:
    """The valid rows in their order, and the problems of the others, by line."""

    requests: list[JobRow]
    problems: list[RowProblem]


def read_jobs(address: str, config: Config) -> JobsFile:
    """Read the jobs file at a path or fsspec address, plain or compressed.

    The suffix tells the format: .jsonl or .ndjson, .json, .csv; without one, the content does.
    Relative `image` and `lora` paths count from the file's folder. A row with a problem makes no
    request; neither does any row of a CSV file whose header is wrong. Raises RequestError for a
    file that is missing or cannot be read.
    """
    name = without_query(address)
    data = read_address(
        address, field="jobs", max_bytes=MAX_JOBS_BYTES, compression=infer_compression(name)
    )
    jobs = check_rows(parse_rows(data, name), folder_of(address), config)
    if not jobs.requests and not jobs.problems:
        advice = "write one job a line, with id, image and prompt"
        return JobsFile([], [RowProblem(1, None, None, f"the file holds no jobs; {advice}")])
    return jobs


def check_rows(rows: Iterable[RawRow], folder: str, config: Config) -> JobsFile:
    """Rows as requests, with everything that is wrong with the others.

    Relative paths count from `folder`.
    """
    jobs: list[JobRow] = []
    problems: list[RowProblem] = []
    ids: dict[str, tuple[str, int]] = {}
    for row in rows:
        checked = _check_row(row, folder, config, ids)
        if isinstance(checked, JobRow):
            jobs.append(checked)
        else:
            problems += checked
    return JobsFile(jobs, problems)


# ------------------------------------------------------------------------------------------ rows

_RULES: dict[Kind, str] = {
    "text": "must be text",
    "integer": "must be an integer such as 42",
    "number": "must be a number such as 6.5",
    "boolean": "must be true or false",
    "lora": 'must be a path or {"path": "...", "scale": 1.0}',
    "object": 'must be an object such as {"desk": "sports"}',
}
_TYPES: dict[Kind, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "lora": (str, dict),
    "object": (dict,),
}
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/](?!/)|\\\\")  # a drive or a share
_TEMPLATED = {"template", "fields", "prompt"}
_STAND_IN = dict.fromkeys(REQUIRED, "a")  # lets the rest be checked where one is missing


def _check_row(
    row: RawRow, folder: str, config: Config, ids: dict[str, tuple[str, int]]
) -> JobRow | list[RowProblem]:
    faults = list(row.faults)
    request = None
    if row.fields or not faults:
        request, found = _request(row.fields, folder, config)
        faults += found
    name = row.fields.get("id")
    if not (isinstance(name, str) and ID_PATTERN.fullmatch(name)):
        name = None
    elif (clash := _clash(name, row.line, ids)) is not None:
        faults.append(clash)
    if request is None or faults:
        return [RowProblem(row.line, name, fault.field, fault.message) for fault in faults]
    return JobRow(row.line, request)


def _clash(name: str, line: int, ids: dict[str, tuple[str, int]]) -> Fault | None:
    # Two ids equal but for case are one file on macOS and Windows.
    first, first_line = ids.setdefault(name.lower(), (name, line))
    if first_line == line:
        return None
    same = "has it" if first == name else f"has {first!r}, the same file where case is ignored"
    return Fault("id", f"must be unique, but line {first_line} {same}; choose another")


def _request(
    fields: dict[str, Any], folder: str, config: Config
) -> tuple[GenerationRequest | None, list[Fault]]:
    """The request, or None and everything wrong with the fields."""
    faults = [fault for name in fields if (fault := _field_fault(name, fields[name])) is not None]
    named = fields.keys() | {nearest(name) for name in fields}
    named |= {"prompt"} if "template" in named else set()
    faults += [Fault(name, "required, but missing") for name in REQUIRED if name not in named]
    wrong = {fault.field for fault in faults}
    valid = {name: fields[name] for name in fields if name in KINDS and name not in wrong}
    valid, found = _with_prompt(valid, named, config)
    faults += found
    valid = {**_STAND_IN, **_with_addresses(valid, folder)}
    request, found = _resolve(valid, config)
    if request is None and not {"mode", "profile"} & {_top(fault) for fault in found}:
        # The rules between fields come last: try them on the fields that are right.
        for name in map(_top, found):
            valid.pop(name, None)
        request, across = _resolve({**_STAND_IN, **valid}, config)
        found += across
    faults += found
    if request is not None and "mode" not in wrong and "profile" not in wrong:
        faults += _profile_faults(request, config)
    return (None if faults else request), faults


def _with_prompt(
    fields: dict[str, Any], named: Set[str | None], config: Config
) -> tuple[dict[str, Any], list[Fault]]:
    """`fields` with the template expanded to a prompt; `named` are those the row tried to set."""
    found = []
    if not (named & {"template", "fields"}) - fields.keys():  # else their fault is reported already
        try:
            return expand(fields, config.prompt_templates), []
        except RequestError as error:
            name, _, message = str(error).partition(": ")
            found = [Fault(name, message)]
    return {name: value for name, value in fields.items() if name not in _TEMPLATED}, found


def _field_fault(name: str, value: Any) -> Fault | None:
    """Why `value` is not valid for `name`; pydantic would read true as 1 and "5" as 5."""
    if name not in KINDS:
        return unknown(name)
    if value is None and name in NULLABLE:
        return None
    kind = KINDS[name]
    if not _is_kind(kind, value):
        return Fault(name, f"{_RULES[kind]}, got {shown(value)}")
    try:
        if kind in {"lora", "object"}:
            if is_too_deep(value):
                return Fault(name, f"must have at most {MAX_LEVELS} levels, got more; flatten it")
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        elif isinstance(value, str):
            value.encode()
        elif not math.isfinite(value):
            raise ValueError
    except UnicodeEncodeError:
        return Fault(name, f"must be whole characters, got a lone surrogate in {shown(value)}")
    except (ValueError, OverflowError):
        return Fault(name, f"must have finite numbers, got {shown(value)}; leave it out instead")
    if name in {"image", "lora"}:
        return _path_fault(name, value["path"] if isinstance(value, dict) else value)
    return None


def _path_fault(name: str, path: str) -> Fault | None:
    if any(character < " " for character in path):
        got = f"got {shown(path)}; in JSON write each backslash twice, or use /"
        return Fault(name, f"must be a path without control characters, {got}")
    if os.name != "nt" and _WINDOWS_ROOT.match(path):
        got = f"got the Windows path {shown(path)}; use one relative to the jobs file"
        return Fault(name, f"must be a path of this machine or a URL, {got}")
    return None


def _is_kind(kind: Kind, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    if kind == "lora" and isinstance(value, dict):
        rest = value.keys() - {"path", "scale"}
        return (
            not rest
            and isinstance(value.get("path"), str)
            and _is_kind("number", value.get("scale", 1.0))
        )
    return isinstance(value, _TYPES[kind])


def _resolve(
    fields: dict[str, Any], config: Config
) -> tuple[GenerationRequest | None, list[Fault]]:
    try:
        return resolve_request(fields, config), []
    except ValidationError as error:
        parts = (line.partition(": ") for line in describe(error))
        return None, [Fault(name, message) for name, _, message in parts]


def _profile_faults(request: GenerationRequest, config: Config) -> list[Fault]:
    if request.mode != "optimized" or request.profile in config.profiles:
        return []
    got = shown(request.profile)
    if not config.profiles:
        return [Fault("profile", f"the configuration has none, got {got}; use mode: baseline")]
    return [Fault("profile", f"must be one of {sorted(config.profiles)}, got {got}")]


def _top(fault: Fault) -> str:
    return (fault.field or "").partition(".")[0]


def _with_addresses(fields: dict[str, Any], folder: str) -> dict[str, Any]:
    """`fields` with `image` and `lora` resolved against `folder`."""
    fields = dict(fields)
    if "image" in fields:
        fields["image"] = join(folder, _slashes(fields["image"]))
    lora = fields.get("lora")
    if lora is not None:
        given = {"path": lora} if isinstance(lora, str) else lora
        shipped = given["path"] in shipped_loras()
        path = join(folder, _slashes(given["path"]))
        fields["lora"] = given if shipped else {**given, "path": path}
    return fields


def _slashes(path: str) -> str:
    """A relative path as Windows writes it, as this machine does."""
    return path if os.name == "nt" or "://" in path else path.replace("\\", "/")
