"""Decode conditioning images to arrays of the size that the model takes."""

import hashlib
import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from vidgen_ray.addresses import one_line, read_address, too_large
from vidgen_ray.errors import RequestError
from vidgen_ray.request import GenerationRequest

Fit = Literal["crop", "pad"]

MAX_IMAGE_BYTES = 100_000_000
MAX_IMAGE_PIXELS = 120_000_000  # enough for 100-megapixel cameras and 108-megapixel phones
MIN_IMAGE_SIDE = 16
_ENOUGH = 3  # times the size that the model takes: resampling from there shows no difference


@dataclass(frozen=True)
class ConditioningImage:
    """The image that conditions a clip.

    `pixels` is uint8 [height, width, 3] RGB at the size the model takes; `sha256` is of the file's
    bytes; `width` and `height` are the source's in pixels, after EXIF orientation.
    """

    pixels: np.ndarray
    sha256: str
    width: int
    height: int


def read_image(
    address: str, *, height: int, width: int, fit: Fit = "crop", field: str = "image"
) -> ConditioningImage:
    """Read a PNG, JPEG or WebP file from a path or fsspec address; see `decode_image`.

    Raises RequestError.
    """
    data = read_address(address, field=field, max_bytes=MAX_IMAGE_BYTES)
    return decode_image(data, height=height, width=width, fit=fit, field=field, name=address)


def read_request_image(request: GenerationRequest) -> ConditioningImage:
    """Read the conditioning image of a request at its size and fit. Raises RequestError."""
    return read_image(
        request.image, height=request.height, width=request.width, fit=request.image_fit
    )


def decode_image(
    data: bytes,
    *,
    height: int,
    width: int,
    fit: Fit = "crop",
    field: str = "image",
    name: str = "the upload",
) -> ConditioningImage:
    """Decode the bytes of a still PNG, JPEG or WebP file to `height` x `width` RGB pixels.

    EXIF orientation is applied, transparency is composited on white, 16-bit gray keeps its high
    byte, and colours with an ICC profile are converted to sRGB; a broken profile is ignored, as
    browsers do. `crop` keeps the centre, `pad` adds black bars. An image that already has the size
    is not resampled; one of more than six times the size is first box-averaged to about three
    times, so that the steps after it cost little. Raises RequestError.
    """
    picture = _open_image(data, field, name)
    turn = _turn(picture)
    is_sideways = turn in _SIDEWAYS
    size = (picture.height, picture.width) if is_sideways else picture.size
    enough = (
        (_ENOUGH * height, _ENOUGH * width) if is_sideways else (_ENOUGH * width, _ENOUGH * height)
    )
    try:
        picture.draft(picture.mode, enough)  # JPEG: decodes at 1/2, 1/4 or 1/8
        picture.load()
        small = _shrunk(picture, enough)
        rgb = _to_srgb(small if turn is None else small.transpose(turn))
    except Exception as error:  # PIL's decoders raise a dozen types for bad bytes
        raise _broken_image(field, name, error) from error
    return ConditioningImage(
        pixels=_fitted(rgb, height, width, fit),
        sha256=hashlib.sha256(data).hexdigest(),
        width=size[0],
        height=size[1],
    )


def decoded_bytes(data: bytes, *, height: int, width: int, field: str = "image") -> int:
    """About the memory in bytes that `decode_image` will need, from the header alone.

    Raises RequestError.
    """
    picture = _open_image(data, field, "the upload")
    kind, num_pixels = picture.format or "", picture.width * picture.height
    coefficients = 0.0
    if isinstance(picture, JpegImagePlugin.JpegImageFile):
        if picture.info.get("progressive"):  # keeps every coefficient until the last scan
            samples = [h * v for _, h, v, _ in picture.layer]
            coefficients = 2 * num_pixels * sum(samples) / max(samples)
        side = max(_ENOUGH * height, _ENOUGH * width)  # not yet turned upright
        picture.draft(picture.mode, (side, side))
        num_pixels = picture.width * picture.height
    per_pixel = _BYTES_PER_PIXEL.get((kind, picture.mode), _BYTES_PER_PIXEL[kind, ""])
    return int(per_pixel * num_pixels + coefficients)


def fit_pixels(pixels: np.ndarray, *, height: int, width: int, fit: Fit) -> np.ndarray:
    """uint8 RGB of any size -> [height, width, 3], cropped or padded as `decode_image` does."""
    return _fitted(Image.fromarray(pixels), height, width, fit)


# Measured peaks of decoding, shrinking and fitting, by format and mode; `` stands for the others.
_BYTES_PER_PIXEL = {
    ("JPEG", ""): 5,
    ("PNG", ""): 5,
    ("PNG", "RGBA"): 8.5,
    ("PNG", "LA"): 8.5,
    ("PNG", "I;16"): 7,
    ("WebP", ""): 16,
    ("WEBP", ""): 16,
}

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_SIDEWAYS = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}


def _open_image(data: bytes, field: str, name: str) -> ImageFile.ImageFile:
    """Read and validate the header before any pixel is decoded."""
    if not data:
        raise RequestError(f"{field}: must be an image, got an empty file ({name!r}); replace it")
    if len(data) > MAX_IMAGE_BYTES:
        raise too_large(field, MAX_IMAGE_BYTES, f"{len(data)} bytes", name)
    kind = _image_kind(data)
    if kind not in _PLUGINS:
        raise RequestError(
            f"{field}: must be a PNG, JPEG or WebP file, got {kind} ({name!r}); convert it to "
            "JPEG or PNG"
        )
    try:
        # Image.open applies Pillow's own global limit, and only warns.
        picture = _PLUGINS[kind](io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(field, name, "more") from error
    except Exception as error:  # PIL's plugins raise a dozen types for bad bytes
        raise _broken_image(field, name, error) from error
    if picture.width * picture.height > MAX_IMAGE_PIXELS:
        raise _too_many_pixels(field, name, f"{picture.width}x{picture.height}")
    if min(picture.size) < MIN_IMAGE_SIDE:
        raise RequestError(
            f"{field}: must be at least {MIN_IMAGE_SIDE} pixels a side, got "
            f"{picture.width}x{picture.height} ({name!r}); use a larger image"
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise RequestError(
            f"{field}: must be one still image, got an animation of "
            f"{getattr(picture, 'n_frames', 1)} frames ({name!r}); save one of them as PNG"
        )
    return picture


def _image_kind(data: bytes) -> str:
    """`PNG`, `JPEG` or `WebP`, or a description of what the bytes are instead."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        return _iso_media_kind(data)
    for magic, kind in {
        b"GIF8": "a GIF file",
        b"BM": "a BMP file",
        b"II*\0": "a TIFF file",
        b"MM\0*": "a TIFF file",
        b"%PDF": "a PDF file",
        b"8BPS": "a Photoshop file",
        b"\xff\x0a": "a JPEG XL file",
        b"\0\0\0\x0cJXL ": "a JPEG XL file",
        b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    }.items():
        if data.startswith(magic):
            return kind
    if b"<svg" in data[:1000]:
        return "an SVG file"
    return f"a file that starts with {data[:12]!r}"


def _iso_media_kind(data: bytes) -> str:
    """What an ISO media file is by its major and compatible brands (ISO/IEC 14496-12)."""
    size = int.from_bytes(data[:4], "big")
    compatible = data[16 : min(size, 256)]
    brands = {data[8:12], *(compatible[i : i + 4] for i in range(0, len(compatible), 4))}
    if brands & {b"avif", b"avis"}:
        return "an AVIF file"
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "a HEIC file"
    return "a raw photo (CR3)" if data[8:12] == b"crx " else "a video file"


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What EXIF says must be done to see the picture upright."""
    # Not ImageOps.exif_transpose: it also writes the EXIF back, which fails for odd tags.
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF says nothing about orientation
        return None
    return _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None


def _shrunk(picture: Image.Image, enough: tuple[int, int]) -> Image.Image:
    """`picture` averaged by a whole factor to no less than `enough`, so that a large one is small
    before it is turned and its colours are converted."""
    factor = min(picture.width // enough[0], picture.height // enough[1])
    if factor < 2 or picture.mode.startswith("I"):
        return picture
    if picture.has_transparency_data:
        picture = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    elif picture.mode in {"P", "1"}:
        picture = picture.convert("RGB")
    return picture.reduce(factor)


def _to_srgb(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I"):  # 16-bit gray: convert() would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.new("RGB", layer.size, "white")
        picture.paste(layer, mask=layer.getchannel("A"))
    if picture.mode not in {"L", "RGB", "CMYK"}:
        picture = picture.convert("RGB")
    managed = _colour_managed(picture, profile) if profile else None
    if managed is None and picture.mode != "RGB":  # convert() copies even what needs no change
        managed = picture.convert("RGB")
    return managed or picture


def _colour_managed(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """`picture` converted to sRGB; None if it is sRGB already or its profile is invalid."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _fitted(picture: Image.Image, height: int, width: int, fit: Fit) -> np.ndarray:
    fitted = _cropped if fit == "crop" else _padded
    return np.array(fitted(picture, height, width))


def _cropped(picture: Image.Image, height: int, width: int) -> Image.Image:
    scale = max(width / picture.width, height / picture.height)
    left = max(0.0, (picture.width - width / scale) / 2)
    top = max(0.0, (picture.height - height / scale) / 2)
    if scale == 1:  # a crop by half a pixel would blur the image
        return picture.crop((int(left), int(top), int(left) + width, int(top) + height))
    box = (left, top, picture.width - left, picture.height - top)
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _padded(picture: Image.Image, height: int, width: int) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    canvas = Image.new("RGB", (width, height))
    shrunk = picture.resize(size, Image.Resampling.LANCZOS)
    canvas.paste(shrunk, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def _too_many_pixels(field: str, name: str, got: str) -> RequestError:
    return RequestError(
        f"{field}: must have at most {MAX_IMAGE_PIXELS} pixels, got {got} ({name!r}); scale it down"
    )


def _broken_image(field: str, name: str, error: Exception) -> RequestError:
    return RequestError(
        f"{field}: must be a complete image, got {name!r}, which does not decode "
        f"({one_line(error)}); save or copy it again"
    )
