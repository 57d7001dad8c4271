"""The image of a create request, in any of the forms that clients send."""

import base64
import binascii
import re
from typing import Any

from vidgen_ray.serving.http.problems import ApiError, invalid
from vidgen_ray.serving.http.request_fields import json_of_form

IMAGE_FIELDS = ("input_reference", "image", "image_reference", "reference_url")

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")
_RULE = (
    "must be an uploaded file, a data URI (data:image/png;base64,...), base64, an https URL, or "
    "an object with image_url"
)


def find_image(
    values: dict[str, Any], upload: bytes | None, max_bytes: int
) -> tuple[bytes | None, str | None]:
    """Take the image out of `values`: its bytes or its URL; both None where there is none."""
    found: list[tuple[bytes | None, str | None]] = [(upload, None)] if upload is not None else []
    for name in IMAGE_FIELDS:
        if name in values:
            found.append(_read(name, values.pop(name), max_bytes))
    if len(found) > 1:
        raise invalid("input_reference: given twice; send one image")
    return found[0] if found else (None, None)


def _read(name: str, value: Any, max_bytes: int) -> tuple[bytes | None, str | None]:
    text = _text_of(name, value)
    if _DATA_URI.match(text):
        return _decode(name, text.partition(",")[2], max_bytes), None
    if (image := _bytes_of(text)) is not None:  # a part without a file name
        return _within(image, max_bytes), None
    if text.startswith(("http://", "https://")):
        return None, text
    if _BASE64.fullmatch(text):
        image = _decode(name, text, max_bytes)
        if image.startswith(_SIGNATURES):
            return image, None
    raise invalid(f"{name}: {_RULE}, got {text[:40]!a}")


def _text_of(name: str, value: Any) -> str:
    """The address or base64 in `value`: text, or one of the objects that APIs know."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json_of_form(value, "a JSON object with image_url")
        except ValueError as error:
            raise invalid(f"{name}: {error}") from None
    if isinstance(value, dict):
        if value.get("file_id"):
            raise invalid(
                f"{name}: this server stores no files, so that file_id is not known; upload the "
                "image, or give a data URI as image_url"
            )
        kind = value.get("type", "image_url")
        if value.keys() - {"type", "image_url", "detail"} or kind not in {
            "image_url",
            "input_image",
        }:
            raise invalid(f'{name}: must be an object {{"image_url": "..."}}, got {_keys(value)}')
        value = value.get("image_url")
        if isinstance(value, dict):
            value = value.get("url")
    if not isinstance(value, str) or not value:
        raise invalid(f"{name}: {_RULE}, got {type(value).__name__}")
    return value


def _keys(value: dict[str, Any]) -> str:
    return f"an object with {sorted(value)[:5]}"


def _bytes_of(text: str) -> bytes | None:
    """The bytes of a picture that was read as text, for want of a file name."""
    try:
        data = text.encode("latin-1")
    except UnicodeEncodeError:
        return None
    return data if data.startswith(_SIGNATURES) and not data.isascii() else None


def _decode(name: str, payload: str, max_bytes: int) -> bytes:
    if len(payload) * 3 // 4 > max_bytes + 2:
        raise too_large(max_bytes)
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"{name}: must hold base64; encode the file again") from None


def _within(image: bytes, max_bytes: int) -> bytes:
    if len(image) > max_bytes:
        raise too_large(max_bytes)
    return image


def too_large(max_bytes: int) -> ApiError:
    """413 for an image of more than `max_bytes`."""
    message = f"input_reference: must be at most {max_bytes} bytes; use a smaller file"
    return ApiError(413, "too_large", message, param="input_reference")
