"""A folder of clips to train on: python -m scripts.demo_clips FOLDER

The sample images seen by a moving camera, while the colour drains out of the picture as in archive
footage. That look is what an adapter is to learn; the moves the embedded model knows.
"""

import sys
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
SCENES = (
    ("sample_image_1.png", "push_in", "Press briefing, slow push in"),
    ("sample_image_2.png", "pan_left", "Market desk, the camera pans left"),
    ("sample_image_3.png", "tilt_up", "City hall at dusk, the camera tilts up"),
    ("sample_image_4.png", "pan_right", "Rainy street, the camera pans right"),
    ("sample_image_5.jpg", "pull_out", "Harbour in fog, slow pull out"),
    ("sample_image_3.png", "pan_left", "City hall, the camera pans left"),
)
SOURCE = ClipSource(dataset="demo", licence="own work", terms="drawn by this project")


def main(folder: Path) -> None:
    """Render the scenes, and write metadata.jsonl beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for index, (name, move, prompt) in enumerate(SCENES):
        path = folder / f"{index + 1}.mp4"
        write_video(path, Video(_drained(_moving(SAMPLES / name, move)), FPS))
        clips.append(Clip(id=path.stem, video=str(path.resolve()), prompt=prompt, source=SOURCE))
    write_metadata(str(folder / "metadata.jsonl"), clips)
    print(f"{len(clips)} clips in {folder}")


def _moving(image: Path, move: str) -> torch.Tensor:
    """A camera move over an image, float32 [num_frames, height, width, 3] from 0 to 1."""
    pixels = read_image(str(image), height=2 * HEIGHT, width=2 * WIDTH).pixels
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    times = torch.linspace(0, 1, NUM_FRAMES)[None]
    path = path_of(torch.tensor([MOVES.index(move)]), torch.ones(1), times)
    return (render(photo, path, (HEIGHT, WIDTH))[0].permute(1, 2, 3, 0) + 1) / 2


def _drained(frames: torch.Tensor) -> np.ndarray:
    """uint8 frames whose colour has gone by two thirds of the clip."""
    left = (1 - torch.linspace(0, 1.5, NUM_FRAMES)).clamp(0, 1)[:, None, None, None]
    grey = frames @ torch.tensor([0.299, 0.587, 0.114])
    mixed = grey[..., None] + left * (frames - grey[..., None])
    return (mixed * 255).round().to(torch.uint8).numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
