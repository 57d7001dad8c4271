"""Clips of moving pictures, made for tests."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from vidgen_ray.schema import Video
from vidgen_ray.video_io import write_video

FPS = 8


def make_scene(seed: int, num_frames: int, speed_px: float, size: int = 256) -> np.ndarray:
    """A smooth picture that moves to the right, uint8 [num_frames, size, size, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(0, 255, (12, 24, 3))
    y, x = np.mgrid[0:size, 0 : 4 * size] / size
    wide = np.zeros((size, 4 * size, 3))
    for row in range(12):
        weight = np.exp(-(((y - row / 11) * 9) ** 2))[..., None]
        wide += weight * coarse[row][np.minimum((x * 6).astype(int), 23)]
    wide = (255 * (wide - wide.min()) / np.ptp(wide)).astype(np.uint8)
    shifts = [round(speed_px * number) for number in range(num_frames)]
    return np.stack([wide[:, shift : shift + size] for shift in shifts])


def write(path: Path, frames: np.ndarray, fps: float = FPS) -> str:
    write_video(path, Video(frames, fps))
    return str(path)


def make_disc(num_frames: int) -> np.ndarray:
    """A disc 180 px across that moves over 512x288, uint8 [num_frames, 288, 512, 3]."""
    frames = np.full((num_frames, 288, 512, 3), 60, np.uint8)
    for number, frame in enumerate(frames):
        cv2.circle(frame, (150 + 4 * number, 144), 90, (230, 230, 230), -1)
    return frames


def write_coded(
    path: Path,
    frames: np.ndarray,
    *,
    sample_aspect_ratio: Fraction = Fraction(1),
    fps: int = 25,
    codec: str = "libx264",
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> None:
    """Encode frames as shown with pixels of another aspect, as broadcast archives do."""
    height, width = frames.shape[1:3]
    coded_width = round(width / sample_aspect_ratio / 2) * 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = coded_width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        if rotation:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(frames):
            coded = cv2.resize(pixels, (coded_width, height), interpolation=cv2.INTER_AREA)
            frame = av.VideoFrame.from_ndarray(coded, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
