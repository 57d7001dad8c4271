"""One moving picture of some clips: python scripts/contact_sheet.py OUT.webp CLIP..."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vidgen_ray.video_io import read_video

COLUMNS = 3
STRIDE = 2  # frames of a clip from one picture to the next


def main(output: Path, clips: list[str]) -> None:
    """Lay the clips out row by row; the last row is filled with black."""
    videos = [read_video(clip) for clip in clips]
    pictures = [video.frames[::STRIDE] for video in videos]
    blank = np.zeros_like(pictures[0])
    pictures += [blank] * (-len(pictures) % COLUMNS)
    starts = range(0, len(pictures), COLUMNS)
    rows = [np.concatenate(pictures[start : start + COLUMNS], axis=2) for start in starts]
    first, *others = (Image.fromarray(frame) for frame in np.concatenate(rows, axis=1))
    duration = round(1000 * STRIDE / videos[0].fps)
    first.save(output, save_all=True, append_images=others, duration=duration, loop=0, quality=70)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
