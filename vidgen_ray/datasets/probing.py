"""Measure a clip's span: decoding, duration, size, interlacing, cuts, motion and look."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from scenedetect.detectors import AdaptiveDetector

from vidgen_ray.config import CheckConfig
from vidgen_ray.errors import RequestError
from vidgen_ray.schema import ClipCheck
from vidgen_ray.video_io import open_video, pixel_aspect_of, shown_size

WIDTH_PX = 160  # of the downscaled frames that are analysed
MAX_FPS = 12
REFERENCE_HEIGHT_PX = 480

_HASHED_AT = (0.25, 0.5, 0.75)  # of the clip
_INTERLACED_SHARE = 0.1  # of the frames; telecined film has two of five


@dataclass
class _File:
    """Facts about the file, and about its frames inside the span."""

    size_bytes: int | None = None
    fps: float | None = None
    rotation: int = 0
    width: int = 0
    height: int = 0
    small_px: int | None = None
    num_frames: int = 0
    num_interlaced: int = 0
    first_s: float = 0.0
    last_s: float = 0.0


def probe(
    address: str, start_s: float | None, end_s: float | None, settings: CheckConfig
) -> ClipCheck:
    """Measure the span of a video; a file that does not decode is marked, not raised.

    Decodes the span once and holds two small frames at a time. `duplicate_of` is not filled in.
    """
    file, analysis = _File(), _FrameAnalysis()
    try:
        for time_s, frame in _frames(address, start_s or 0.0, end_s, file):
            analysis.add(time_s, frame)
        if file.num_frames == 0:
            raise RequestError(f"video: {address!r} has no frame from {start_s or 0:g} s on")
    except RequestError as error:
        return ClipCheck(marks=["undecodable"], reason=str(error), size_bytes=file.size_bytes)
    frame_s = 1 / file.fps if file.fps else 0.0
    found = ClipCheck(
        duration_s=round(file.last_s - file.first_s + frame_s, 3),
        num_frames=file.num_frames,
        width=file.width,
        height=file.height,
        fps=None if file.fps is None else round(file.fps, 3),
        rotation=file.rotation,
        size_bytes=file.size_bytes,
        cuts_s=analysis.cuts_s,
        motion_px=analysis.motion_px,
        perceptual_hash=analysis.perceptual_hash,
    )
    is_interlaced = file.num_interlaced >= _INTERLACED_SHARE * file.num_frames
    return found.model_copy(update={"marks": _marks(found, is_interlaced, settings)})


class _FrameAnalysis:
    """Cuts, motion and perceptual hash of a stream of frames."""

    def __init__(self) -> None:
        self._detector = AdaptiveDetector(min_scene_len=3)
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._previous: np.ndarray | None = None
        self._times_s: list[float] = []
        self._cuts: list[int] = []
        self._speeds_px: list[float] = []
        self._hashes: list[bytes] = []

    def add(self, time_s: float, frame: np.ndarray) -> None:
        """Analyse the next BGR frame [height, width, 3] unless it exceeds MAX_FPS."""
        since_s = time_s - self._times_s[-1] if self._times_s else 1.0
        if since_s < 1 / MAX_FPS - 1e-3:
            return
        self._cuts += self._detector.process_frame(len(self._times_s), frame)
        self._times_s.append(time_s)
        self._hashes.append(cv2.img_hash.pHash(frame).tobytes())
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        if self._previous is not None:
            flow = self._flow.calc(self._previous, grey, None)
            length_px = float(np.hypot(flow[..., 0], flow[..., 1]).mean())
            self._speeds_px.append(length_px * REFERENCE_HEIGHT_PX / grey.shape[0] / since_s)
        self._previous = grey

    @property
    def cuts_s(self) -> list[float]:
        """Times of the first frames after cuts, by PySceneDetect's adaptive content detector."""
        return [round(self._times_s[number], 3) for number in self._cuts]

    @property
    def motion_px(self) -> float | None:
        """Median over frame pairs of the mean DIS flow, px a second of a picture 480 px high."""
        return round(float(np.median(self._speeds_px)), 2) if self._speeds_px else None

    @property
    def perceptual_hash(self) -> str:
        """Hashes (64 bits of low DCT frequencies) of three frames, as 48 hex digits."""
        last = len(self._hashes) - 1
        return "".join(self._hashes[round(at * last)].hex() for at in _HASHED_AT)


def _frames(
    address: str, start_s: float, end_s: float | None, file: _File
) -> Iterator[tuple[float, np.ndarray]]:
    """Downscaled frames of the span as shown, BGR, with their times; fills in `file`."""
    with open_video(address) as (container, stream):
        file.size_bytes = container.size or None
        rate = stream.average_rate or stream.guessed_rate
        file.fps = float(rate) if rate else None
        offset_s = float((stream.start_time or 0) * stream.time_base)
        pixel_aspect = pixel_aspect_of(stream)
        if start_s > 1.0:
            with suppress(av.FFmpegError):  # without an index the file is read from its start
                container.seek(int((start_s + offset_s) / stream.time_base), stream=stream)
        for number, frame in enumerate(container.decode(stream)):
            time_s = number / (file.fps or 1.0) if frame.time is None else frame.time - offset_s
            if time_s < start_s - 1e-3:
                continue
            if end_s is not None and time_s >= end_s:
                break
            if frame.is_corrupt:
                raise ValueError(f"the frame at {time_s:.2f} s is damaged")
            file.num_frames += 1
            file.num_interlaced += frame.interlaced_frame
            file.first_s = time_s if file.num_frames == 1 else file.first_s
            file.last_s = time_s
            yield time_s, _small(frame, pixel_aspect, file)


def _small(frame: Any, pixel_aspect: Fraction, file: _File) -> np.ndarray:
    """uint8 BGR [height, width, 3], WIDTH_PX wide before rotation; records the size as shown."""
    turns = round(frame.rotation / 90)
    width, height = shown_size(frame, pixel_aspect)
    file.rotation = frame.rotation % 360
    file.width, file.height = (height, width) if turns % 2 == 1 else (width, height)
    if file.small_px is None:  # one size for all frames, even if theirs changes midway
        file.small_px = max(16, round(WIDTH_PX * height / width))
    pixels = frame.reformat(width=WIDTH_PX, height=file.small_px, format="bgr24").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _marks(found: ClipCheck, is_interlaced: bool, settings: CheckConfig) -> list[str]:
    short_side = min(found.width or 0, found.height or 0)
    marks = {
        "short": (found.duration_s or 0.0) < settings.min_duration_s,
        "slow": found.fps is not None and found.fps < settings.min_fps,
        "small": short_side < settings.min_side_px,
        "interlaced": is_interlaced,
        "cut": bool(found.cuts_s),
        "static": found.motion_px is not None and found.motion_px < settings.min_motion_px,
    }
    return [mark for mark, holds in marks.items() if holds]
