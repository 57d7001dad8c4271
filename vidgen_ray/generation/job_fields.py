"""What each field of a request may hold, and its row in the documents, read from its annotation."""

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vidgen_ray.config import GenerationDefaults
from vidgen_ray.generation.templates import TemplateFields
from vidgen_ray.request import GenerationRequest

Kind = Literal["text", "integer", "number", "boolean", "lora", "object"]

_KINDS: dict[Any, Kind] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
}


def extra(field: FieldInfo, name: str) -> Any:
    """What `json_schema_extra` of a field says under `name`; None where it says nothing."""
    known = field.json_schema_extra
    return known.get(name) if isinstance(known, dict) else None


def kind_of(field: FieldInfo) -> Kind:
    """The kind of values that a field takes."""
    annotation = _without_none(field.annotation)
    if get_origin(annotation) is Literal:
        return "text"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "lora"
    return _KINDS[get_origin(annotation) or annotation]


def accepts_none(field: FieldInfo) -> bool:
    """Whether null is a value of a field."""
    return type(None) in get_args(field.annotation)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in {Union, types.UnionType, Annotated}:
        return _without_none(next(part for part in get_args(annotation) if part is not type(None)))
    return annotation


_REQUEST = GenerationRequest.model_fields
# First those without a default. A template and its fields become the prompt of the request.
JOB_FIELDS: dict[str, FieldInfo] = {
    **{name: _REQUEST[name] for name in _REQUEST if name not in GenerationDefaults.model_fields},
    **TemplateFields.model_fields,
    **_REQUEST,
}
KINDS: dict[str, Kind] = {name: kind_of(field) for name, field in JOB_FIELDS.items()}
REQUIRED = ("id", "image", "prompt")
NULLABLE = {name for name, field in JOB_FIELDS.items() if accepts_none(field)} | {"seed"}


def server_fields() -> dict[str, FieldInfo]:
    """The fields that a client of the server may set too."""
    fields = GenerationRequest.model_fields
    return {name: field for name, field in fields.items() if not extra(field, "jobs_only")}


def table(fields: Mapping[str, FieldInfo], defaults: bool = True) -> str:
    """The fields as a Markdown table: meaning, allowed values and, if wanted, defaults."""
    lines = ["| field | | values | default |", "|---|---|---|---|"]
    if not defaults:
        lines = ["| field | | values |", "|---|---|---|"]
    for name, field in fields.items():
        cells = [f"`{name}`", field.description or "", values_of(field)]
        lines.append("| " + " | ".join(cells + [_default(field)] * defaults) + " |")
    return "\n".join(lines)


def values_of(field: FieldInfo) -> str:
    """The values that a field takes, in words."""
    annotation = _without_none(field.annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    limits = _limits(field)
    kind = kind_of(field)
    if kind == "lora":
        name = next(iter(annotation.model_fields))
        return f'{name}, or `{{"{name}": ..., "scale": 0.8}}`'
    if kind == "text" and "max_length" in limits:
        return f"text of at most {limits['max_length']:,} characters"
    if "ge" in limits and "le" in limits:
        return f"{kind}, {limits['ge']:g} to {limits['le']:g}"
    if "ge" in limits and "lt" in limits:
        return f"{kind}, {limits['ge']:g} to {_power(limits['lt'])} - 1"
    return "`true`, `false`" if kind == "boolean" else kind


def _limits(field: FieldInfo) -> dict[str, float]:
    """The constraints of a field, such as `ge`, by name."""
    inner = [part for part in get_args(field.annotation) if get_origin(part) is Annotated]
    rules = [*field.metadata, *(rule for part in inner for rule in get_args(part)[1:])]
    found: dict[str, float] = {}
    for rule in rules:
        names = ("ge", "le", "lt", "max_length")
        found |= {name: getattr(rule, name) for name in names if hasattr(rule, name)}
    return found


def _power(value: float) -> str:
    return "2^63" if value == 2**63 else f"{value:g}"


def _default(field: FieldInfo) -> str:
    if (text := extra(field, "default")) is not None:
        return str(text)
    if field.is_required():
        return "required"
    return {"None": "none", "''": "empty", "{}": "empty", "False": "`false`"}.get(
        repr(field.default), f"`{field.default}`"
    )
