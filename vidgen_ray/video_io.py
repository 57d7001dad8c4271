"""Decode video files to arrays and encode arrays to video files."""

import math
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

from vidgen_ray.addresses import locate, one_line, readable
from vidgen_ray.errors import ArtifactError, RequestError
from vidgen_ray.schema import Video

MAX_VIDEO_BYTES = 4 * 2**30  # of decoded pixels


def write_video(path: Path, video: Video, *, crf: int = 17, comment: str | None = None) -> None:
    """Write `video` to `path` as H.264 in a fast-start MP4.

    Equal input gives equal bytes. Pixels are converted to 4:2:0 with the BT.709 matrix and tagged
    accordingly. `comment` goes into the file's metadata. An error leaves no file at `path`, but a
    killed process can leave a partial one, so pass a temporary path and rename it. Raises
    RequestError for a video that H.264 cannot hold, ArtifactError if the file cannot be written.
    """
    _check_encodable(video)
    try:
        _encode(path, video, crf, comment)
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError | ValueError | av.FFmpegError):
            message = f"{path}: the video cannot be written: {one_line(error)}"
            raise ArtifactError(message) from error
        raise


@contextmanager
def open_video(address: str, field: str = "video") -> Iterator[tuple[Any, Any]]:
    """PyAV's container and video stream of a path or fsspec address, to decode frame by frame.

    Raises RequestError, also for errors while the caller decodes.
    """
    with readable(address, field):
        filesystem, path, _ = locate(address, field)
        with filesystem.open(path, "rb") as file, _decoding(file, address, field) as opened:
            yield opened


def read_video(
    source: str | Path | IO[bytes], *, max_frames: int | None = None, field: str = "video"
) -> Video:
    """Decode `source`, a path, an fsspec address or an open file, into RGB frames as shown.

    Frames are upright and have square pixels. Reads MP4, MOV, MKV, WebM, AVI and the other
    `VIDEO_FORMATS`. `fps` is the stream's average. Stops after `max_frames`. Raises RequestError,
    also for a truncated file.
    """
    if not isinstance(source, str | Path):
        return _decode_video(source, str(getattr(source, "name", "the upload")), max_frames, field)
    with readable(str(source), field):
        filesystem, path, _ = locate(str(source), field)
        with filesystem.open(path, "rb") as file:
            return _decode_video(file, str(source), max_frames, field)


def read_span(
    source: str | Path | IO[bytes],
    *,
    num_frames: int,
    fps: float,
    start_s: float | None = None,
    end_s: float | None = None,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    field: str = "video",
) -> Video:
    """Sample `num_frames` frames as shown at `fps`, from `start_s` on the file's own timeline.

    Each sample is the frame on screen at that time, so that sources of any constant or variable
    frame rate come out at the right speed. Frames are upright and have square pixels. Only sampled
    frames are converted; `prepare` is applied to each, uint8 [height, width, 3]. Raises
    RequestError, also if the file or the span is too short: the last frame must begin before
    `end_s`.
    """
    name = str(source if isinstance(source, str | Path) else getattr(source, "name", "the upload"))
    check_span(name, num_frames=num_frames, fps=fps, start_s=start_s, end_s=end_s, field=field)
    times = [(start_s or 0.0) + index / fps for index in range(num_frames)]
    if not isinstance(source, str | Path):
        return _decode_span(source, name, times, fps, prepare, field)
    with readable(str(source), field):
        filesystem, path, _ = locate(str(source), field)
        with filesystem.open(path, "rb") as file:
            return _decode_span(file, name, times, fps, prepare, field)


def check_span(
    name: str,
    *,
    num_frames: int,
    fps: float,
    start_s: float | None,
    end_s: float | None,
    field: str = "video",
) -> None:
    """Raise RequestError for a span that cannot hold `num_frames` at `fps`, whatever the file."""
    length_s = math.inf if end_s is None else end_s - (start_s or 0.0)
    if (num_frames - 1) / fps >= length_s + _SPAN_TOLERANCE_S:
        raise _too_short(field, name, num_frames, fps, length_s)


def shown_size(frame: Any, pixel_aspect: Fraction) -> tuple[int, int]:
    """Width and height of a PyAV frame with square pixels, before rotation."""
    return max(1, round(frame.width * pixel_aspect)), frame.height


def pixel_aspect_of(stream: Any) -> Fraction:
    """Width over height of a pixel (PAL widescreen: 64/45), 1 if the file does not say.

    Raises ValueError for an aspect that no format has.
    """
    ratio = stream.sample_aspect_ratio  # a Fraction, or PyAV 19's own type
    aspect = Fraction(ratio.numerator, ratio.denominator) if ratio else Fraction(1)
    if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        raise ValueError(f"its sample aspect ratio is {aspect}, export it with square pixels")
    return aspect


# FFmpeg also opens stills, text and playlists that fetch other files: none of these is a video.
VIDEO_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf,mxf,ivf,h264,hevc,obu,dv,"
    "yuv4mpegpipe"
)
_OPTIONS = {"format_whitelist": VIDEO_FORMATS}
# Metadata in other encodings than UTF-8 is no reason to refuse a video; PyAV 19 ignores it.
_LENIENT_TAGS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED, which PyAV does not name
_X86 = {"x86_64", "AMD64"}
# Bit-exact scaling: pixels must not depend on the CPU's instruction set.
_SCALER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
_JITTER_S = 0.002  # containers round times to milliseconds
_SPAN_TOLERANCE_S = 0.01  # annotations are rounded, too
_MAX_PIXEL_ASPECT = 4  # formats in use go up to 2:1
_ENCODER_THREADS = 4  # fixed, because x264's output depends on it
# x264's AVX-512 code reads uninitialised memory, so its output differs between runs; limited to
# AVX2 or SSE4.2 the bytes are equal, at the same speed.
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
    with _decoding(file, name, field) as (container, stream):
        frames = _decode_frames(container, stream, name, max_frames, field)
        fps = stream.average_rate or stream.guessed_rate
    if not frames or not fps:
        raise RequestError(
            f"{field}: must hold timed frames, got {len(frames)} frames at {fps or 'no'} fps "
            f"({name!r}); export it again"
        )
    return Video(frames=np.stack(frames), fps=float(fps))


def _decode_span(
    file: IO[bytes],
    name: str,
    times: list[float],
    fps: float,
    prepare: Callable[[np.ndarray], np.ndarray] | None,
    field: str,
) -> Video:
    with _decoding(file, name, field) as (container, stream):
        frames, length_s = _frames_at(container, stream, times, prepare)
    if len(frames) < len(times):
        raise _too_short(field, name, len(times), fps, max(0.0, length_s - times[0]))
    try:
        return Video(frames=np.stack(frames), fps=fps)
    except ValueError:
        raise RequestError(
            f"{field}: must keep one frame size, got several ({name!r}); export it again"
        ) from None


@contextmanager
def _decoding(file: IO[bytes], name: str, field: str) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of a file; any decoding error becomes a RequestError."""
    try:
        with av.open(file, "r", container_options=_OPTIONS, **_LENIENT_TAGS) as container:
            stream = _video_stream(container, name, field)
            stream.thread_type = "AUTO"
            _check_whole(container, stream)
            yield container, stream
    except RequestError:
        raise
    except Exception as error:  # FFmpeg's errors, and those of whatever the file is
        raise RequestError(
            f"{field}: must be a whole video file such as MP4, MOV, MKV or WebM, got {name!r}, "
            f"which does not decode ({one_line(error)}); export or copy it again"
        ) from error


def _frames_at(
    container: Any,
    stream: Any,
    times: list[float],
    prepare: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[list[np.ndarray], float]:
    """The frames on screen at `times`, as far as the file goes, and its end in seconds."""
    first_s = float((stream.start_time or 0) * stream.time_base)
    if times[0] > 1.0:
        with suppress(av.FFmpegError):  # without an index the file is read from its start
            container.seek(int((times[0] + first_s) / stream.time_base), stream=stream)
    frames: list[np.ndarray] = []
    pixel_aspect = pixel_aspect_of(stream)
    shown, shown_end_s = None, 0.0
    frame_s = float(1 / (stream.average_rate or stream.guessed_rate or 25))
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ValueError("a frame is damaged")
        begin_s = frame.time - first_s if frame.time is not None else shown_end_s
        num_past = bisect_left(times, begin_s - _JITTER_S) if shown is not None else 0
        frames += [_prepared(shown, pixel_aspect, prepare) for _ in range(len(frames), num_past)]
        if len(frames) == len(times):
            return frames, begin_s
        shown, shown_end_s = frame, begin_s + frame_s
    num_past = bisect_left(times, shown_end_s) if shown is not None else 0
    frames += [_prepared(shown, pixel_aspect, prepare) for _ in range(len(frames), num_past)]
    return frames, shown_end_s


def _prepared(
    frame: Any, pixel_aspect: Fraction, prepare: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    pixels = _to_rgb(frame, pixel_aspect)
    return prepare(pixels) if prepare else pixels


def _too_short(field: str, name: str, num_frames: int, fps: float, got_s: float) -> RequestError:
    return RequestError(
        f"{field}: must last {(num_frames - 1) / fps:.2f} s for {num_frames} frames at {fps:g} "
        f"fps, got {got_s:.2f} s ({name!r}); use a longer clip or span"
    )


def _video_stream(container: Any, name: str, field: str) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # an audio file's cover
            return stream
    raise RequestError(
        f"{field}: must have a video stream, got {name!r} without one; choose another file"
    )


def _check_whole(container: Any, stream: Any) -> None:
    """Raise EOFError for a truncated MP4, which FFmpeg would play as a shorter one."""
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if 0 < container.size < end:
        raise EOFError(f"truncated after {container.size} of at least {end} bytes")


def _decode_frames(
    container: Any, stream: Any, name: str, max_frames: int | None, field: str
) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    pixel_aspect = pixel_aspect_of(stream)
    num_bytes = 0
    for frame in container.decode(stream):
        if max_frames is not None and len(frames) >= max_frames:
            break
        if frame.is_corrupt:
            raise ValueError(f"frame {len(frames) + 1} is damaged")
        frames.append(_to_rgb(frame, pixel_aspect))
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


def _to_rgb(frame: Any, pixel_aspect: Fraction) -> np.ndarray:
    """uint8 [height, width, 3] as shown: square pixels, rotated by the display matrix."""
    untagged = frame.colorspace == _UNSPECIFIED
    is_hd = frame.width >= 1280 or frame.height > 576  # players choose the matrix by size, too
    width, height = shown_size(frame, pixel_aspect)
    pixels = frame.to_ndarray(
        format="rgb24",
        width=width,
        height=height,
        src_colorspace=(Colorspace.ITU709 if is_hd else Colorspace.ITU601) if untagged else None,
        interpolation=_SCALER,
        threads=1,
    )
    # FFmpeg and rot90 both count angles counterclockwise.
    turned = np.rot90(pixels, round(frame.rotation / 90))
    return np.ascontiguousarray(turned)
