"""`vidgen score`: temporal scores and verdicts of existing clips."""

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vidgen_ray.cli.options import ConfigOption
from vidgen_ray.config import load_config
from vidgen_ray.errors import VidgenError
from vidgen_ray.image_io import Fit

if TYPE_CHECKING:
    from vidgen_ray.schema import TemporalScore


def score(
    videos: Annotated[list[str], typer.Argument(help="Video files or fsspec addresses.")],
    config: ConfigOption = "nano",
    max_frames: Annotated[int | None, typer.Option(help="Score this many frames at most.")] = None,
    image: Annotated[
        str | None, typer.Option(help="The photo that every clip begins with, to compare.")
    ] = None,
    image_fit: Annotated[Fit, typer.Option(help="How the photo was made to fit.")] = "crop",
) -> None:
    """Print temporal scores and verdicts as JSON, one object a line.

    Exit codes: 0 all accepted, 2 a file cannot be read, 3 some were not accepted.
    """
    quality = load_config(config).quality
    from vidgen_ray.generation.verdict import judge

    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    exit_code = 0
    for name in videos:
        try:
            measured = _measure(name, max_frames, image, image_fit)
        except VidgenError as error:
            errors.print(f"{name}: {error}")
            exit_code = 2
            continue
        verdict, reasons = judge(measured, quality)
        line = {"video": name, "verdict": verdict, "reasons": reasons, **measured.model_dump()}
        print(json.dumps(line), flush=True)
        exit_code = exit_code or (0 if verdict == "accepted" else 3)
    raise typer.Exit(exit_code)


def _measure(name: str, max_frames: int | None, image: str | None, fit: Fit) -> "TemporalScore":
    from vidgen_ray.generation.scoring import score_video
    from vidgen_ray.image_io import read_image
    from vidgen_ray.video_io import read_video

    video = read_video(name, max_frames=max_frames)
    photo = None
    if image is not None:
        height, width = video.frames.shape[1:3]
        photo = read_image(image, height=height, width=width, fit=fit).pixels
    return score_video(video, os.cpu_count() or 1, photo)
