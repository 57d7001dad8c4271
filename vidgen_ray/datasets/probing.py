"""One clip's file, looked at: does it decode, is it long enough, one shot, in motion, seen before.

Frames are looked at small: 160 px wide, and no more than 12 a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
from scenedetect.detectors import AdaptiveDetector

from vidgen_ray.addresses import one_line
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
    motion_px = _motion(small, look.height)
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
