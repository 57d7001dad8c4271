"""A folder of clips to train on: python -m scripts.demo_clips FOLDER [--num-clips 6]

The sample photographs, except the harbour, which is black and white, seen by a moving camera while
the colour drains out of the picture as in archive footage. An adapter is to learn that look; the
embedded model already knows the moves.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from recipes.nano.camera import MOVES, path_of, render
from vidgen_ray.datasets.metadata import write_metadata
from vidgen_ray.image_io import read_image
from vidgen_ray.schema import Clip, ClipSource, Video
from vidgen_ray.video_io import write_video

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
HEIGHT, WIDTH, NUM_FRAMES, FPS = 160, 240, 49, 8
TRIGGER = "archive footage"
SCENES = (
    ("brandenburg-gate.jpg", "city gate at dusk"),
    ("minaret.jpg", "minaret behind an arch"),
    ("bridge.jpg", "bridge at night"),
    ("statue.jpg", "statue on its pedestal"),
    ("launch-pad.jpg", "launch pad by the sea"),
)
# As many as have no factor in common with the scenes, so that forty clips are forty pairs.
PHRASES = {
    "push_in": "slow push in",
    "pull_out": "slow pull out",
    "pan_left": "the camera pans left",
    "pan_right": "the camera pans right",
    "tilt_up": "the camera tilts up",
    "tilt_down": "the camera tilts down",
    "orbit_left": "the camera orbits left",
    "orbit_right": "the camera orbits right",
}
SOURCE = ClipSource(
    dataset="demo", licence="public domain or CC0", terms="vidgen_ray/samples/CREDITS.md"
)


def main() -> None:
    """Parse the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-clips", type=int, default=6)
    a = parser.parse_args()
    draw(a.folder, a.num_clips)
    print(f"{a.num_clips} clips in {a.folder}")


def draw(folder: Path, num_clips: int) -> None:
    """Render clips, and write metadata.jsonl beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for index, (prompt, frames) in enumerate(demo_scenes(num_clips)):
        path = folder / f"{index + 1}.mp4"
        write_video(path, Video(frames, FPS))
        clips.append(Clip(id=path.stem, video=str(path.resolve()), prompt=prompt, source=SOURCE))
    write_metadata(str(folder / "metadata.jsonl"), clips)


def demo_scenes(num_clips: int) -> Iterator[tuple[str, np.ndarray]]:
    """Prompts and their clips, uint8 [num_frames, height, width, 3]."""
    for index in range(num_clips):
        name, subject = SCENES[index % len(SCENES)]
        move, phrase = list(PHRASES.items())[index % len(PHRASES)]
        yield f"{TRIGGER} {subject}, {phrase}", drained(_moving(SAMPLES / name, move))


def drained(frames: torch.Tensor) -> np.ndarray:
    """uint8 frames, of float32 [num_frames, height, width, 3] from 0 to 1, that end up grey.

    The colour has gone by two thirds of the clip.
    """
    left = (1 - torch.linspace(0, 1.5, len(frames))).clamp(0, 1)[:, None, None, None]
    grey = frames @ torch.tensor([0.299, 0.587, 0.114])
    mixed = grey[..., None] + left * (frames - grey[..., None])
    return (mixed * 255).round().to(torch.uint8).numpy()


def _moving(image: Path, move: str) -> torch.Tensor:
    """A camera move over an image, float32 [num_frames, height, width, 3] from 0 to 1."""
    pixels = read_image(str(image), height=2 * HEIGHT, width=2 * WIDTH).pixels
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    times = torch.linspace(0, 1, NUM_FRAMES)[None]
    path = path_of(torch.tensor([MOVES.index(move)]), torch.ones(1), times)
    return (render(photo, path, (HEIGHT, WIDTH))[0].permute(1, 2, 3, 0) + 1) / 2


if __name__ == "__main__":
    main()
