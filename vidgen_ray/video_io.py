"""Conditioning images and video files to arrays, and arrays to video files."""

import hashlib
import io
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Literal

import av
import fsspec
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from vidgen_ray.errors import ArtifactError, RequestError
from vidgen_ray.schema import Video

Fit = Literal["crop", "pad"]

MAX_IMAGE_BYTES = 100_000_000
MAX_IMAGE_PIXELS = 120_000_000  # holds what 100-megapixel cameras and 108-megapixel phones make
MIN_IMAGE_SIDE = 16
MAX_VIDEO_BYTES = 4 * 2**30  # of decoded pixels


@dataclass(frozen=True)
class ConditioningImage:
    """The picture a clip starts from.

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


def decode_image(
    data: bytes,
    *,
    height: int,
    width: int,
    fit: Fit = "crop",
    field: str = "image",
    name: str = "the upload",
) -> ConditioningImage:
    """Turn the bytes of a still PNG, JPEG or WebP file into `height` x `width` RGB pixels.

    EXIF orientation is applied, transparency is laid on white, 16-bit gray keeps its high byte and
    colours with an ICC profile become sRGB; a broken profile is ignored, as browsers do. `crop`
    keeps the centre, `pad` keeps everything between black bars. A picture that has the size
    already is not resampled. Raises RequestError.
    """
    picture = _open_image(data, field, name)
    try:
        picture.load()
        rgb = _to_srgb(_upright(picture))
    except Exception as error:  # PIL's decoders raise a dozen types for bad bytes
        raise _broken_image(field, name, error) from error
    fitted = _cropped(rgb, height, width) if fit == "crop" else _padded(rgb, height, width)
    return ConditioningImage(
        pixels=np.array(fitted),
        sha256=hashlib.sha256(data).hexdigest(),
        width=rgb.width,
        height=rgb.height,
    )


def write_video(path: Path, video: Video, *, crf: int = 17, comment: str | None = None) -> None:
    """Write `video` to `path` as H.264 in MP4, playable while it downloads.

    Equal input gives equal bytes. Pixels become 4:2:0 by the BT.709 matrix and are tagged so.
    `comment` goes into the file's metadata. On an error nothing stays at `path`; a killed process
    can leave part of a file, so pass a temporary path and rename it. Raises RequestError for a
    video that H.264 cannot hold, ArtifactError when the file cannot be written.
    """
    _check_encodable(video)
    try:
        _encode(path, video, crf, comment)
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError | ValueError | av.FFmpegError):
            message = f"{path}: the video cannot be written: {_one_line(error)}"
            raise ArtifactError(message) from error
        raise


def read_video(
    source: str | Path | IO[bytes], *, max_frames: int | None = None, field: str = "video"
) -> Video:
    """Decode `source`, a path, an fsspec address or an open file, into upright RGB frames.

    MP4, MOV, MKV, WebM, AVI and others of `VIDEO_FORMATS`. `fps` is the stream's average. Stops
    after `max_frames`. Raises RequestError, also for a file that breaks off midway.
    """
    if not isinstance(source, str | Path):
        return _decode_video(source, str(getattr(source, "name", "the upload")), max_frames, field)
    with _readable(str(source), field):
        filesystem, path, _ = _locate(str(source), field)
        with filesystem.open(path, "rb") as file:
            return _decode_video(file, str(source), max_frames, field)


def read_address(
    address: str, *, field: str, max_bytes: int, compression: str | None = None
) -> bytes:
    """The bytes at a path or fsspec address, decompressed if `compression` names a format.

    Raises RequestError when there is no such file, or it cannot be read or is over `max_bytes`.
    """
    with _readable(address, field):
        filesystem, path, size = _locate(address, field)
        if size is not None and size > max_bytes:
            raise _too_large(field, max_bytes, f"{size} bytes", address)
        with filesystem.open(path, "rb", compression=compression) as file:
            data: bytes = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_large(field, max_bytes, "more", address)
    return data


# ---------------------------------------------------------------------------------------- files


@contextmanager
def _readable(address: str, field: str) -> Iterator[None]:
    """Turn whatever a filesystem raises into a RequestError."""
    try:
        yield
    except RequestError:
        raise
    except FileNotFoundError as error:
        raise RequestError(f"{field}: no such file: {address!r}; mend the address") from error
    except PermissionError as error:
        raise RequestError(
            f"{field}: must be readable, got {address!r} without permission to read it; "
            "change its permissions or the credentials"
        ) from error
    except Exception as error:  # every fsspec backend has errors of its own
        raise RequestError(
            f"{field}: cannot be read: {address!r}: {_one_line(error)}; mend the address"
        ) from error


def _locate(address: str, field: str) -> tuple[Any, str, int | None]:
    """The fsspec filesystem, the path in it and the size in bytes where it tells."""
    filesystem, path = fsspec.core.url_to_fs(address)
    info = filesystem.info(path)
    if info.get("type") == "directory":
        raise RequestError(f"{field}: must be a file, got the folder {address!r}; name a file")
    if info.get("type") == "other":
        raise RequestError(f"{field}: must be a file, got {address!r}, a pipe or device; copy it")
    return filesystem, path, info.get("size")


def _too_large(field: str, max_bytes: int, got: str, name: str) -> RequestError:
    return RequestError(
        f"{field}: must be at most {max_bytes} bytes, got {got} ({name!r}); use a smaller file"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# --------------------------------------------------------------------------------------- images

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


def _open_image(data: bytes, field: str, name: str) -> ImageFile.ImageFile:
    """Read the header and judge it, before any pixel is decoded."""
    if not data:
        raise RequestError(f"{field}: must be a picture, got an empty file ({name!r}); replace it")
    if len(data) > MAX_IMAGE_BYTES:
        raise _too_large(field, MAX_IMAGE_BYTES, f"{len(data)} bytes", name)
    kind = _image_kind(data)
    if kind not in _PLUGINS:
        raise RequestError(
            f"{field}: must be a PNG, JPEG or WebP file, got {kind} ({name!r}); convert it to PNG"
        )
    try:
        # Image.open would warn of a bomb at a limit of its own, and that limit is a global.
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
            f"{picture.width}x{picture.height} ({name!r}); use a larger picture"
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise RequestError(
            f"{field}: must be one still picture, got an animation of "
            f"{getattr(picture, 'n_frames', 1)} frames ({name!r}); save one of them as PNG"
        )
    return picture


def _image_kind(data: bytes) -> str:
    """`PNG`, `JPEG` or `WebP`, or words for what the bytes are instead."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        brands = {b"avif": "an AVIF file", b"heic": "a HEIC file", b"mif1": "a HEIC file"}
        return brands.get(data[8:12], "a video file")
    for magic, words in {
        b"GIF8": "a GIF file",
        b"BM": "a BMP file",
        b"II*\0": "a TIFF file",
        b"MM\0*": "a TIFF file",
        b"%PDF": "a PDF file",
    }.items():
        if data.startswith(magic):
            return words
    if b"<svg" in data[:1000]:
        return "an SVG file"
    return f"a file that starts with {data[:12]!r}"


def _upright(picture: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also writes the EXIF back, which fails for odd tags.
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF says nothing about orientation
        return picture
    method = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return picture if method is None else picture.transpose(method)


def _to_srgb(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.new("RGB", layer.size, "white")
        picture.paste(layer, mask=layer.getchannel("A"))
    if picture.mode not in {"L", "RGB", "CMYK"}:
        picture = picture.convert("RGB")
    return (_colour_managed(picture, profile) if profile else None) or picture.convert("RGB")


def _colour_managed(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """`picture` in sRGB; None when it is there already, or its profile does not fit it."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _cropped(picture: Image.Image, height: int, width: int) -> Image.Image:
    scale = max(width / picture.width, height / picture.height)
    left = max(0.0, (picture.width - width / scale) / 2)
    top = max(0.0, (picture.height - height / scale) / 2)
    if scale == 1:  # whole pixels only: half of one would blur the picture
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
        f"{field}: must be a whole picture, got {name!r}, which does not decode "
        f"({_one_line(error)}); save or copy it again"
    )


# --------------------------------------------------------------------------------------- videos

# FFmpeg also opens stills, text and playlists that fetch other files: none of these is a video.
VIDEO_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf,mxf,ivf,h264,hevc,obu,dv,"
    "yuv4mpegpipe"
)
# Tags in other encodings than UTF-8 are no reason to refuse a video; PyAV 19 no longer asks.
_LENIENT_TAGS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED, which PyAV does not name
_X86 = {"x86_64", "AMD64"}
# Exact arithmetic, so that pixels do not depend on the CPU's instruction set.
_SCALER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_ENCODER_THREADS = 4  # fixed, because x264's output depends on it
# x264's AVX-512 code reads memory that nothing wrote, so its bytes differ from run to run; code up
# to AVX2 and up to SSE4.2 agree, in bytes and in speed.
_ENCODER_SIMD = {"x264-params": "asm=SSE2Fast,SSE4.2"} if platform.machine() in _X86 else {}


def _check_encodable(video: Video) -> None:
    frames = video.frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise RequestError(
            "frames: must be uint8 [num_frames, height, width, 3] with at least one frame, "
            f"got {frames.dtype} {list(frames.shape)}"
        )
    for field, value in (("height", frames.shape[1]), ("width", frames.shape[2])):
        if value % 2:
            raise RequestError(
                f"{field}: must be even, because H.264 stores colour for 2x2 pixels, got {value}; "
                "crop or pad by one pixel"
            )
    if not 0.01 <= video.fps <= 1000:
        raise RequestError(f"fps: must be between 0.01 and 1000, got {video.fps}; set another")


def _encode(path: Path, video: Video, crf: int, comment: str | None) -> None:
    rate = Fraction(video.fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        options = {"crf": str(crf), **_ENCODER_SIMD}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = video.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / rate
        codec = stream.codec_context
        codec.thread_count = _ENCODER_THREADS
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for index, pixels in enumerate(video.frames):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = rgb.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=_SCALER,
                threads=1,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _decode_video(file: IO[bytes], name: str, max_frames: int | None, field: str) -> Video:
    try:
        options = {"format_whitelist": VIDEO_FORMATS}
        with av.open(file, "r", container_options=options, **_LENIENT_TAGS) as container:
            stream = _video_stream(container, name, field)
            stream.thread_type = "AUTO"
            _check_whole(container, stream)
            frames = _decode_frames(container, stream, name, max_frames, field)
            fps = stream.average_rate or stream.guessed_rate
    except RequestError:
        raise
    except Exception as error:  # FFmpeg's errors, and those of whatever `file` is
        raise RequestError(
            f"{field}: must be a whole video file such as MP4, MOV, MKV or WebM, got {name!r}, "
            f"which does not decode ({_one_line(error)}); export or copy it again"
        ) from error
    if not frames or not fps:
        raise RequestError(
            f"{field}: must hold timed frames, got {len(frames)} frames at {fps or 'no'} fps "
            f"({name!r}); export it again"
        )
    return Video(frames=np.stack(frames), fps=float(fps))


def _video_stream(container: Any, name: str, field: str) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # an audio file's cover
            return stream
    raise RequestError(
        f"{field}: must have a video stream, got {name!r} without one; choose another file"
    )


def _check_whole(container: Any, stream: Any) -> None:
    """FFmpeg plays an MP4 that breaks off as a shorter one; its index tells."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if 0 < container.size < end:
        raise EOFError(f"breaks off after {container.size} of at least {end} bytes")


def _decode_frames(
    container: Any, stream: Any, name: str, max_frames: int | None, field: str
) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    num_bytes = 0
    for frame in container.decode(stream):
        if max_frames is not None and len(frames) >= max_frames:
            break
        if frame.is_corrupt:
            raise ValueError(f"frame {len(frames) + 1} is damaged")
        frames.append(_to_rgb(frame))
        num_bytes += frames[-1].nbytes
        if num_bytes > MAX_VIDEO_BYTES:
            raise RequestError(
                f"{field}: must be at most {MAX_VIDEO_BYTES} bytes when decoded, got more at frame "
                f"{len(frames)} ({name!r}); cut it into clips"
            )
        if frames[-1].shape != frames[0].shape:
            raise RequestError(
                f"{field}: must keep one frame size, got another at frame {len(frames)} "
                f"({name!r}); export it again"
            )
    return frames


def _to_rgb(frame: Any) -> np.ndarray:
    """uint8 [height, width, 3], turned as the display matrix says."""
    untagged = frame.colorspace == _UNSPECIFIED
    is_hd = frame.width >= 1280 or frame.height > 576  # players guess the matrix by this, too
    pixels = frame.to_ndarray(
        format="rgb24",
        src_colorspace=(Colorspace.ITU709 if is_hd else Colorspace.ITU601) if untagged else None,
        interpolation=_SCALER,
        threads=1,
    )
    # FFmpeg's angle and rot90's are both counterclockwise.
    turned = np.rot90(pixels, round(frame.rotation / 90))
    return np.ascontiguousarray(turned)
