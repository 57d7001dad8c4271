"""Clips of moving pictures, made for tests."""

from pathlib import Path

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
