"""The picture of a request, decoded once: what the Generator reads, and facts of the original."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, IptcImagePlugin

from vidgen_ray.errors import RequestError
from vidgen_ray.image_io import decode_image, decoded_bytes
from vidgen_ray.request import GenerationRequest

SOURCE_IMAGE = "source_image"  # in the metadata of a request
_LARGE_BYTES = 80_000_000
_MAX_CHARACTERS = 500
_EXIF = {"artist": ExifTags.Base.Artist, "copyright": ExifTags.Base.Copyright}
_IPTC = {"byline": (2, 80), "credit": (2, 110), "copyright": (2, 116)}


@dataclass(frozen=True)
class FittedImage:
    """`png` has the size that the request asks for, and no EXIF; `source` is JSON."""

    png: bytes
    source: dict[str, Any]


class PictureFitter:
    """Fits pictures in threads of its own, so that nothing else waits for them.

    Large ones take turns, and those that need too much memory are refused before they are decoded.
    """

    def __init__(self, max_decoded_bytes: int) -> None:
        self._max_decoded_bytes = max_decoded_bytes
        self._small = ThreadPoolExecutor(2, thread_name_prefix="picture")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large-picture")

    async def fit(self, image: bytes, request: GenerationRequest, field: str) -> FittedImage:
        """The picture of `request`. Raises RequestError."""
        loop = asyncio.get_running_loop()
        need = await loop.run_in_executor(self._small, _decoded_bytes, image, request, field)
        if need > self._max_decoded_bytes:
            raise RequestError(
                f"{field}: must need at most {self._max_decoded_bytes // 1_000_000} MB of memory "
                f"to decode, got {need // 1_000_000} MB; scale it down, or save it as a JPEG that "
                "is not progressive"
            )
        pool = self._large if need > _LARGE_BYTES else self._small
        return await loop.run_in_executor(pool, _fit, image, request, field)


def _decoded_bytes(image: bytes, request: GenerationRequest, field: str) -> int:
    return decoded_bytes(image, height=request.height, width=request.width, field=field)


def _fit(image: bytes, request: GenerationRequest, field: str) -> FittedImage:
    fitted = decode_image(
        image, height=request.height, width=request.width, fit=request.image_fit, field=field
    )
    buffer = io.BytesIO()
    Image.fromarray(fitted.pixels).save(buffer, "PNG", compress_level=1)
    source = {"sha256": fitted.sha256, "width": fitted.width, "height": fitted.height}
    return FittedImage(buffer.getvalue(), {**source, **_rights(image)})


def _rights(image: bytes) -> dict[str, str]:
    """Who made the picture and who owns it, as EXIF and IPTC say; nothing where they are broken."""
    found: dict[str, str] = {}
    try:
        with Image.open(io.BytesIO(image)) as picture:
            exif = picture.getexif()
            found |= {name: _text(exif.get(tag)) for name, tag in _EXIF.items()}
            iptc = IptcImagePlugin.getiptcinfo(picture) or {}
        found |= {name: _text(iptc[key]) for name, key in _IPTC.items() if key in iptc}
    except Exception:  # PIL's parsers raise a dozen types for bad bytes
        return {name: text for name, text in found.items() if text}
    return {name: text for name, text in found.items() if text}


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = b", ".join(part for part in value if isinstance(part, bytes))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else ""
    return "".join(c for c in text[:_MAX_CHARACTERS] if c.isprintable()).strip()
