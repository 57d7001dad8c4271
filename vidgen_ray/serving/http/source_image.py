"""The picture of a request, decoded once: what the Generator reads, and facts of the original."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, IptcImagePlugin

from vidgen_ray.image_io import decode_image, image_size
from vidgen_ray.request import GenerationRequest

SOURCE_IMAGE = "source_image"  # in the metadata of a request
_LARGE_PIXELS = 16_000_000
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

    Large ones, which take up to half a GB while they are decoded, take turns.
    """

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(2, thread_name_prefix="picture")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large-picture")

    async def fit(self, image: bytes, request: GenerationRequest, field: str) -> FittedImage:
        """The picture of `request`. Raises RequestError."""
        loop = asyncio.get_running_loop()
        width, height = await loop.run_in_executor(self._small, image_size, image, field)
        pool = self._large if width * height > _LARGE_PIXELS else self._small
        return await loop.run_in_executor(pool, _fit, image, request, field)


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
