"""Reading a create request: a multipart or JSON body, in the forms that clients send."""

from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.types import Message

from vidgen_ray.generation.json_reader import JsonReader, is_too_deep
from vidgen_ray.serving.http.image_reference import IMAGE_FIELDS, find_image, too_large
from vidgen_ray.serving.http.problems import ApiError, invalid, invalid_fields
from vidgen_ray.serving.http.request_fields import VIDEO_FIELDS, ApiFields, json_of_form

_FORM_OVERHEAD_BYTES = 200_000

# Objects in which other servers' clients put further fields.
_NESTED = ("extra_body", "extra_json", "extra_params", "video_params")
# Features of other servers, which clients may switch off.
_SWITCHES = ("enable_teacache", "enable_frame_interpolation", "generate_sound", "rollout")


@dataclass(frozen=True)
class Body:
    """A create request as it was read: its fields, and the image by bytes or by address."""

    fields: ApiFields
    image: bytes | None
    image_url: str | None


async def read_body(request: Request, max_image_bytes: int, *, needs_image: bool = True) -> Body:
    """Read a multipart or JSON body, up to what an image may take. Raises ApiError."""
    # A data URI is a third longer than its bytes.
    request = _bounded(request, max_image_bytes * 4 // 3 + _FORM_OVERHEAD_BYTES)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    upload = None
    if kind == "multipart/form-data":
        values, upload = await _form(request, max_image_bytes)
    elif kind == "application/json":
        values = await _json(request)
    else:
        message = f"the body must be multipart/form-data or application/json, got {kind[:80]!r}"
        raise ApiError(415, "unsupported_media", message)
    values = _without_switches(_flat(values))
    image, url = find_image(values, upload, max_image_bytes)
    try:
        fields = VIDEO_FIELDS.model_validate(values)
    except ValidationError as error:
        raise invalid_fields(error) from None
    if {"prompt", "template"}.isdisjoint(fields.given()):
        raise invalid("prompt: required, but missing; say what happens, or name a template")
    if needs_image and image is None and url is None:
        raise invalid(
            "input_reference: required, but missing; upload a PNG, JPEG or WebP file as "
            "input_reference or image, or give a data URI as its image_url"
        )
    return Body(fields, image, url)


def _bounded(request: Request, max_bytes: int) -> Request:
    """The request, which raises ApiError 413 as soon as its body is known to be too large."""
    error = ApiError(413, "too_large", f"the body must be at most {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:18]) > max_bytes:
        raise error
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        message = await request.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise error
        return message

    return Request(request.scope, receive)


async def _form(request: Request, max_image_bytes: int) -> tuple[dict[str, Any], bytes | None]:
    """The values of a form that are not empty, and the uploaded image."""
    # A data URI is a text part, a third longer than its bytes.
    limits = {"max_files": 1, "max_fields": 60, "max_part_size": 2 * max_image_bytes}
    async with request.form(**limits) as form:
        values: dict[str, Any] = {}
        image = None
        for name, value in form.multi_items():
            _check_name(name)
            if name in values:
                raise invalid(f"{name}: given twice; send it once", name[:80])
            if isinstance(value, UploadFile):
                if name not in IMAGE_FIELDS:
                    raise invalid(f"{name[:80]}: must not be a file; upload as input_reference")
                if not value.filename and not value.size:
                    continue  # a form whose file was not chosen
                image = await value.read(max_image_bytes + 1)
                if len(image) > max_image_bytes:
                    raise too_large(max_image_bytes)
            elif value != "":
                _set_nested(values, name, value)
    return values, image


def _set_nested(values: dict[str, Any], name: str, value: str) -> None:
    """Set `a[b][c]`, as forms write objects."""
    first, *rest = name.replace("]", "").split("[")
    for key in rest:
        inner = values.setdefault(first, {})
        if not isinstance(inner, dict):
            raise invalid(f"{first}: must be a value or an object, got both", first)
        values, first = inner, key
    if first in values:
        raise invalid(f"{name}: given twice; send it once", name[:80])
    values[first] = value


async def _json(request: Request) -> dict[str, Any]:
    try:
        values, repeated = JsonReader().read_all((await request.body()).decode("utf-8-sig"))
    except ValueError:
        raise ApiError(
            400, "bad_json", "the body must be JSON, and cannot be read as such"
        ) from None
    if not isinstance(values, dict):
        raise invalid("the body must be a JSON object with a prompt and an input_reference")
    if repeated:
        raise invalid(f"{repeated[0][:80]!r}: given twice; send it once")
    if is_too_deep(values):
        raise invalid("the body must have at most 50 levels of objects and lists; flatten it")
    for name in values:
        _check_name(name)
    # An empty negative prompt is a value: it takes the place of the configuration's.
    return {
        name: value
        for name, value in values.items()
        if value is not None and (value != "" or name == "negative_prompt")
    }


def _check_name(name: str) -> None:
    if not name.isascii() or not name.isprintable():
        raise invalid(f"{name[:80]!a}: no such field; remove it or fix its name")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the fields of nested objects among them."""
    flat = {name: value for name, value in values.items() if name not in _NESTED}
    for name in _NESTED:
        inner = values.get(name, {})
        if isinstance(inner, str):
            try:
                inner = json_of_form(inner, "a JSON object of further fields")
            except ValueError as error:
                raise invalid(f"{name}: {error}") from None
        if not isinstance(inner, dict):
            raise invalid(f"{name}: must be an object of further fields, got {str(inner)[:80]!r}")
        for key, value in inner.items():
            _check_name(key)
            if flat.get(key, value) != value:
                raise invalid(f"{key}: given twice, also in {name}; send it once")
            if value is not None:
                flat[key] = value
    return flat


def _without_switches(values: dict[str, Any]) -> dict[str, Any]:
    for name in _SWITCHES:
        if name in values and str(values[name]).lower() not in {"false", "0"}:
            raise invalid(f"{name}: this server has no such feature; leave it out")
    return {name: value for name, value in values.items() if name not in _SWITCHES}
