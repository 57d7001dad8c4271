"""One clip's file, looked at: does it decode, is it long enough, one shot, in motion, seen before.

Frames are looked at small: 160 px wide, and no more than 12 a second.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import av
import cv2
import numpy as np
from scenedetect.detectors import AdaptiveDetector

from vidgen_ray.config import CheckConfig
from vidgen_ray.errors import RequestError
from vidgen_ray.schema import ClipCheck
from vidgen_ray.video_io import open_video

WIDTH_PX = 160
MAX_FPS = 12
REFERENCE_HEIGHT_PX = 480

_HASHED_AT = (0.25, 0.5, 0.75)  # of the clip


@dataclass
class _Look:
    """What passed by while a clip was decoded."""

    num_frames: int = 0
    first_s: float | None = None
    last_s: float = 0.0
    width: int = 0
    height: int = 0
    rotation: int = 0
    fps: float | None = None
    size_bytes: int | None = None


def probe(
    address: str, start_s: float | None, end_s: float | None, settings: CheckConfig
) -> ClipCheck:
    """What is in the span of a video; a file that does not decode is a finding, too.

    Decodes the span once, and keeps only small frames. `duplicate_of` is left open.
    """
    look = _Look()
    small: list[tuple[float, np.ndarray]] = []
    try:
        for time_s, frame in _frames(address, start_s or 0.0, end_s, look):
            if not small or time_s - small[-1][0] >= 1 / MAX_FPS - 1e-3:
                small.append((time_s, frame))
    except RequestError as error:
        return ClipCheck(marks=["undecodable"], reason=str(error), size_bytes=look.size_bytes)
    if not small:
        reason = f"video: {address!r} has no frame from {start_s or 0:g} s on"
        return ClipCheck(marks=["undecodable"], reason=reason, size_bytes=look.size_bytes)
    frame_s = 1 / look.fps if look.fps else 0.0
    duration_s = look.last_s - (look.first_s or 0.0) + frame_s
    cuts_s = _cuts([frame for _, frame in small], [time_s for time_s, _ in small])
    motion_px = _motion(small)
    found = ClipCheck(
        duration_s=round(duration_s, 3),
        num_frames=look.num_frames,
        width=look.width,
        height=look.height,
        fps=None if look.fps is None else round(look.fps, 3),
        rotation=look.rotation,
        size_bytes=look.size_bytes,
        cuts_s=cuts_s,
        motion_px=None if motion_px is None else round(motion_px, 2),
        perceptual_hash=_hash([frame for _, frame in small]),
    )
    return found.model_copy(update={"marks": _marks(found, settings)})


def _frames(
    address: str, start_s: float, end_s: float | None, look: _Look
) -> Iterator[tuple[float, np.ndarray]]:
    """Small upright BGR frames of the span with their times in the file; fills in `look`."""
    with open_video(address) as (container, stream):
        look.size_bytes = container.size or None
        rate = stream.average_rate or stream.guessed_rate
        look.fps = float(rate) if rate else None
        offset_s = float((stream.start_time or 0) * stream.time_base)
        if start_s > 1.0:
            with suppress(av.FFmpegError):  # a file without an index is read from its start
                container.seek(int((start_s + offset_s) / stream.time_base), stream=stream)
        for number, frame in enumerate(container.decode(stream)):
            time_s = number / (look.fps or 1.0) if frame.time is None else frame.time - offset_s
            if time_s < start_s - 1e-3:
                continue
            if end_s is not None and time_s >= end_s:
                break
            if frame.is_corrupt:
                raise ValueError(f"the frame at {time_s:.2f} s is damaged")
            look.num_frames += 1
            look.first_s = time_s if look.first_s is None else look.first_s
            look.last_s = time_s
            yield time_s, _small(frame, look)


def _small(frame: Any, look: _Look) -> np.ndarray:
    turns = round(frame.rotation / 90)
    sideways = turns % 2 == 1
    look.rotation = frame.rotation % 360
    look.width = frame.height if sideways else frame.width
    look.height = frame.width if sideways else frame.height
    height = max(16, round(WIDTH_PX * frame.height / frame.width))
    pixels = frame.reformat(width=WIDTH_PX, height=height, format="bgr24").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _cuts(frames: list[np.ndarray], times_s: list[float]) -> list[float]:
    """Times of the first frames after cuts, by PySceneDetect's adaptive content detector."""
    detector = AdaptiveDetector(min_scene_len=3)
    found: list[int] = []
    for number, frame in enumerate(frames):
        found += detector.process_frame(number, frame)
    return [round(times_s[number], 3) for number in found]


def _motion(small: list[tuple[float, np.ndarray]]) -> float | None:
    """Median over frame pairs of the mean DIS flow, in px a second of a picture 480 px high."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    grey = [(time_s, cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)) for time_s, frame in small]
    speeds = []
    for (time_s, frame), (next_s, following) in pairwise(grey):
        field = flow.calc(frame, following, None)
        length = float(np.hypot(field[..., 0], field[..., 1]).mean())
        speeds.append(length * REFERENCE_HEIGHT_PX / frame.shape[0] / max(next_s - time_s, 1e-3))
    return float(np.median(speeds)) if speeds else None


def _hash(frames: list[np.ndarray]) -> str:
    """Perceptual hashes (64 bits of low DCT frequencies) of three frames, as 48 hex digits."""
    chosen = [frames[round(at * (len(frames) - 1))] for at in _HASHED_AT]
    return "".join(cv2.img_hash.pHash(frame).tobytes().hex() for frame in chosen)


def _marks(found: ClipCheck, settings: CheckConfig) -> list[str]:
    short_side = min(found.width or 0, found.height or 0)
    marks = {
        "short": (found.duration_s or 0.0) < settings.min_duration_s,
        "slow": found.fps is not None and found.fps < settings.min_fps,
        "small": short_side < settings.min_side_px,
        "cut": bool(found.cuts_s),
        "static": found.motion_px is not None and found.motion_px < settings.min_motion_px,
    }
    return [mark for mark, holds in marks.items() if holds]
