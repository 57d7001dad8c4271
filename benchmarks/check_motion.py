"""What the flow of `dataset check` says of pictures moved by a known amount, and of grainy stills.

python -m benchmarks.check_motion
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vidgen_ray.config import CheckConfig
from vidgen_ray.datasets.probing import REFERENCE_HEIGHT_PX, probe
from vidgen_ray.schema import Video
from vidgen_ray.video_io import write_video

SAMPLES = Path(__file__).parents[1] / "data/samples"
WIDTH, HEIGHT, NUM_FRAMES, FPS = 480, 320, 49, 8
SHIFTS_PX = (0.02, 0.05, 0.1, 0.3)  # a frame
GRAINS = (0, 1, 2, 4)  # standard deviation, grey levels


def measure(frames: np.ndarray) -> float | None:
    """The motion of uint8 [num_frames, height, width, 3] after H.264, px a second at 480 lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, Video(frames, FPS))
        return probe(str(path), None, None, CheckConfig()).motion_px


def moved(image: Image.Image, shift_px: float) -> np.ndarray:
    """The picture, moved on by `shift_px` each frame."""
    offsets = [(1, 0, shift_px * number, 0, 1, 0) for number in range(NUM_FRAMES)]
    size, how = (WIDTH, HEIGHT), Image.Transform.AFFINE
    return np.stack(
        [np.asarray(image.transform(size, how, o, Image.Resampling.BICUBIC)) for o in offsets]
    )


def grainy(image: Image.Image, deviation: float) -> np.ndarray:
    """The picture, still, with other grain in each frame."""
    still = np.asarray(image.crop((0, 0, WIDTH, HEIGHT)), float)
    noise = np.random.default_rng(0).normal(0, deviation, (NUM_FRAMES, *still.shape))
    return np.clip(still + noise, 0, 255).astype(np.uint8)


def main() -> None:
    """Print a line a picture."""
    for name in ("brandenburg-gate.jpg", "bridge.jpg", "launch-pad.jpg"):
        image = Image.open(SAMPLES / name).convert("RGB").resize((WIDTH + 60, HEIGHT))
        for shift_px in SHIFTS_PX:
            true = shift_px * FPS * REFERENCE_HEIGHT_PX / HEIGHT
            print(f"{name}: moved {true:.2f} px/s, measured {measure(moved(image, shift_px))}")
        for grain in GRAINS:
            print(f"{name}: still, grain {grain}, measured {measure(grainy(image, grain))}")


if __name__ == "__main__":
    main()
