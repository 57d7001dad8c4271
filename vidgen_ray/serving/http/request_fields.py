"""What a client may ask for: the fields of a create request, and reading them from a body."""

import base64
import binascii
import json
import re
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.datastructures import UploadFile
from starlette.types import Message

from vidgen_ray.serving.http.problems import ApiError, invalid, invalid_fields

MAX_PROMPT_CHARACTERS = 10_000
_FORM_OVERHEAD_BYTES = 200_000
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_IMAGE_FIELDS = ("input_reference", "image")


class LoraField(BaseModel):
    """An adapter of the server, by name, and the weight given to it."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=120)
    scale: float = Field(1.0, ge=-4, le=4)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:  # forms have no objects
                return json.loads(value)
            except ValueError:
                raise ValueError(f"must be a name or a JSON object, got {value[:80]!r}") from None
        return {"name": value} if isinstance(value, str) else value


class VideoFields(BaseModel):
    """The fields of a clip. What is left out comes from the server's configuration."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        description="What happens in the clip; up to 226 tokens. Needed without a `template`.",
    )
    template: str | None = Field(
        None, min_length=1, max_length=120, description="A standard prompt of the server, by name."
    )
    fields: dict[str, str] | None = Field(None, description="What fills the template's fields.")
    model: str | None = Field(None, max_length=120, description="A name of `/v1/models`.")
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS)
    size: str | None = Field(
        None, pattern=r"^\d{1,5}x\d{1,5}$", description='Width and height, "720x480".'
    )
    seconds: str | int | None = Field(
        None, description="Duration; sets `fps`, for the number of frames is the model's."
    )
    width: int | None = Field(None, ge=16, le=4096)
    height: int | None = Field(None, ge=16, le=4096)
    num_frames: int | None = Field(None, ge=1, le=1000)
    fps: int | None = Field(None, ge=1, le=60)
    seed: int | None = Field(None, ge=0, lt=2**63, description="Left out: a new one each time.")
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=1, le=30)
    mode: Literal["baseline", "optimized"] | None = None
    profile: str | None = Field(None, min_length=1, max_length=120)
    image_fit: Literal["crop", "pad"] | None = None
    lora: LoraField | None = None
    webhook_url: str | None = Field(None, max_length=2000)

    @field_validator("fields", mode="before")
    @classmethod
    def _json_of_a_form(cls, value: Any) -> Any:
        if isinstance(value, str):  # forms have no objects
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError(f"must be a JSON object, got {value[:80]!r}") from None
        return value

    @model_validator(mode="after")
    def _text_is_text(self) -> "VideoFields":
        texts = {**dict(self), **(self.fields or {})}
        for name, value in texts.items():
            if isinstance(value, str):
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise ValueError(
                        f"{name}: must be Unicode text, got a lone surrogate"
                    ) from None
                if "\0" in value:
                    raise ValueError(f"{name}: must not hold NUL characters")
        return self


class Body:
    """A create request as it was read: its fields, and the image by bytes or by address."""

    def __init__(self, fields: VideoFields, image: bytes | None, image_url: str | None) -> None:
        self.fields = fields
        self.image = image
        self.image_url = image_url


async def read_body(request: Request, max_image_bytes: int) -> Body:
    """Read a multipart or JSON body, up to what an image may take. Raises ApiError."""
    # A data URI is a third longer than its bytes.
    request = _bounded(request, max_image_bytes * 4 // 3 + _FORM_OVERHEAD_BYTES)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        values, image = await _form(request, max_image_bytes)
    elif kind == "application/json":
        values, image = await _json(request), None
    else:
        message = f"the body must be multipart/form-data or application/json, got {kind[:80]!r}"
        raise ApiError(415, "unsupported_media", message)
    reference = _reference(values)
    if isinstance(reference, str) and _DATA_URI.match(reference):
        image, reference = _decode_data_uri(reference, max_image_bytes), None
    try:
        fields = VideoFields.model_validate(values)
    except ValidationError as error:
        raise invalid_fields(error) from None
    if fields.prompt is None and fields.template is None:
        raise invalid("prompt: required, but missing; say what happens, or name a template")
    if image is None and reference is None:
        raise invalid(
            "input_reference: required, but missing; upload a PNG, JPEG or WebP file as "
            "input_reference or image, or give a data URI as its image_url"
        )
    return Body(fields, image, reference)


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
    # A data URI is a text part, a third longer than its bytes.
    limits = {"max_files": 1, "max_fields": 40, "max_part_size": 2 * max_image_bytes}
    async with request.form(**limits) as form:
        values: dict[str, Any] = {}
        image = None
        for name, value in form.multi_items():
            if name in values:
                raise invalid(f"{name}: given twice; send it once", name[:80])
            if isinstance(value, UploadFile):
                if name not in _IMAGE_FIELDS:
                    raise invalid(f"{name[:80]}: must not be a file; upload as input_reference")
                image = await value.read(max_image_bytes + 1)
                if len(image) > max_image_bytes:
                    raise _too_large(max_image_bytes)
            else:
                values[name] = value
    return values, image


async def _json(request: Request) -> dict[str, Any]:
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ApiError(
            400, "bad_json", "the body must be JSON, and cannot be read as such"
        ) from None
    if not isinstance(values, dict):
        raise invalid("the body must be a JSON object with a prompt and an input_reference")
    return values


def _reference(values: dict[str, Any]) -> str | None:
    """Take the image's address out of `values`, in any of the forms that clients send."""
    found = None
    for name in _IMAGE_FIELDS:
        for key in (name, f"{name}[image_url]", f"{name}[file_id]"):
            if key not in values:
                continue
            value = values.pop(key)
            if isinstance(value, dict):
                unknown = set(value) - {"image_url"}
                value = None if unknown else value.get("image_url")
            if key.endswith("[file_id]") or not isinstance(value, str) or not value:
                raise invalid(
                    f"{name}: must be an uploaded file, a data URI, or an object with image_url; "
                    "stored files (file_id) are not known here"
                )
            if found is not None:
                raise invalid(f"{name}: given twice; send one image")
            found = value
    return found


def _decode_data_uri(uri: str, max_image_bytes: int) -> bytes:
    payload = uri.partition(",")[2]
    if len(payload) * 3 // 4 > max_image_bytes + 2:
        raise _too_large(max_image_bytes)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("input_reference: the data URI must hold base64; encode it again") from None


def _too_large(max_image_bytes: int) -> ApiError:
    message = f"input_reference: must be at most {max_image_bytes} bytes; use a smaller file"
    return ApiError(413, "too_large", message, param="input_reference")
