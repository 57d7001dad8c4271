"""One moving picture of all clips of a folder: python scripts/contact_sheet.py FOLDER OUT.webp"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vidgen_ray.video_io import read_video

COLUMNS = 3
STRIDE = 2  # frames of a clip from one picture to the next


def main(folder: Path, output: Path) -> None:
    """Lay the clips out in the order of their names; the last row is filled with black."""
    videos = [read_video(str(path)) for path in sorted(folder.glob("*.mp4"))]
    clips = [video.frames[::STRIDE] for video in videos]
    blank = np.zeros_like(clips[0])
    clips += [blank] * (-len(clips) % COLUMNS)
    rows = [np.concatenate(clips[i : i + COLUMNS], axis=2) for i in range(0, len(clips), COLUMNS)]
    first, *others = (Image.fromarray(frame) for frame in np.concatenate(rows, axis=1))
    duration = round(1000 * STRIDE / videos[0].fps)
    first.save(output, save_all=True, append_images=others, duration=duration, loop=0, quality=70)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
