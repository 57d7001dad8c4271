"""Measure how well a checkpoint follows prompts on photos it was not trained on."""

import argparse
import csv
import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from recipes.nano.camera import MOVES, SPEEDS, path_of, render
from recipes.nano.motion import recognise
from vidgen_ray.config import Config, load_config
from vidgen_ray.generation.engine import Engine
from vidgen_ray.generation.image_match import MAX_DB, psnr_db
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import judge
from vidgen_ray.image_io import read_image
from vidgen_ray.schema import resolve_request

Frames = NDArray[np.uint8]

PHRASES = {
    "push_in": "push in",
    "pull_out": "pull out",
    "pan_left": "pan left",
    "pan_right": "pan right",
    "tilt_up": "tilt up",
    "tilt_down": "tilt down",
    "static": "static shot",
    "handheld": "handheld shot",
    "orbit_left": "orbit left",
    "orbit_right": "orbit right",
}
SPOKEN_SPEEDS = {"slow": "slow", "normal": "", "fast": "fast"}
SCENES = (
    "news footage of a quiet morning",
    "",
    "people wait outside the court while cameras flash",
    "travel documentary, golden hour, film grain",
    "the harbour after the storm; gulls circle above the wreck",
)
SHEET_ROWS = 20
SHEET_FRAMES = (0, 16, 32, 48)


@dataclass(frozen=True)
class ClipResult:
    """Measurements of one clip. Sharpness is the variance of the Laplacian relative to the true
    render.
    """

    photo: str
    prompt: str
    move: str
    recognised: str
    first_frame_psnr_db: float
    image_match_db: float | None
    patch_grid: float | None
    first_sharpness: float
    last_sharpness: float
    last_frame_psnr_db: float
    temporal_score: float
    verdict: str
    reasons: str
    seconds: float


def main() -> None:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "photos", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first clip")
    parser.add_argument("--steps", type=int, help="instead of the configuration's")
    parser.add_argument("--guidance", type=float, help="instead of the configuration's")
    parser.add_argument(
        "--perturb",
        type=float,
        default=0.0,
        help="add noise of this share of their deviation to the weights; such clips should fail",
    )
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        checkpoint = (
            _perturbed(a.checkpoint, Path(work) / "p", a.perturb) if a.perturb else a.checkpoint
        )
        clips = range(a.first, a.first + a.clips)
        settings = {"num_inference_steps": a.steps, "guidance_scale": a.guidance}
        evaluate(checkpoint, a.photos, a.output, clips, settings)


def evaluate(
    checkpoint: Path, photos: Path, output: Path, clips: range, settings: dict[str, float | None]
) -> list[ClipResult]:
    """Generate and measure clips with the product's own engine; writes clips.csv, summary.json and
    sheet.jpg to `output`.

    Clip n animates one of the photos with the move n mod 10. The sheet shows the photo, frames of
    the clip, and the last frame of a true camera move over the photo. `settings` are fields of a
    request; None keeps the configuration's value.
    """
    generation = {f"generation.{n}": value for n, value in settings.items() if value is not None}
    config = load_config("nano", {"model.checkpoint": str(checkpoint), **generation})
    engine = Engine(config)
    engine.load()
    output.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in photos.iterdir() if path.suffix in (".jpg", ".jpeg", ".png"))
    results, rows = [], []
    for index in clips:
        result, pictures = _make_and_measure(engine, config, paths, index)
        results.append(result)
        rows.append(pictures)
        _write(output, results, rows[:SHEET_ROWS])
        print(f"{len(results)}/{len(clips)} {result}", flush=True)
    _show(results)
    return results


def _make_and_measure(
    engine: Engine, config: Config, paths: list[Path], index: int
) -> tuple[ClipResult, Frames]:
    move = MOVES[index % len(MOVES)]
    speed = "normal" if move == "static" else list(SPEEDS)[index // len(MOVES) % len(SPEEDS)]
    path = paths[(index * 7 + index // len(MOVES)) % len(paths)]
    request = resolve_request(
        {"id": f"clip{index}", "image": str(path), "prompt": _prompt(move, speed, index)}, config
    )
    started = time.perf_counter()
    generation = engine.generate(request)
    seconds = time.perf_counter() - started
    frames, photo = generation.video.frames, generation.image.pixels
    last = _true_last_frame(path, move, speed, frames.shape)
    score = score_video(generation.video, torch.get_num_threads(), photo)
    verdict, reasons = judge(score, config.quality)
    result = ClipResult(
        photo=path.name,
        prompt=request.prompt,
        move=move,
        recognised=recognise(frames)[0],
        first_frame_psnr_db=round(psnr_db(frames[0], photo) or MAX_DB, 2),
        image_match_db=score.image_match_db,
        patch_grid=score.patch_grid,
        first_sharpness=round(_sharpness(frames[0]) / _sharpness(photo), 3),
        last_sharpness=round(_sharpness(frames[-1]) / _sharpness(last), 3),
        last_frame_psnr_db=round(psnr_db(frames[-1], last) or MAX_DB, 2),
        temporal_score=round(score.score, 3),
        verdict=verdict,
        reasons="; ".join(reasons),
        seconds=round(seconds, 1),
    )
    return result, np.hstack([photo, *frames[list(SHEET_FRAMES)], last])


def _prompt(move: str, speed: str, index: int) -> str:
    phrase = f"{SPOKEN_SPEEDS[speed]} {PHRASES[move]}".strip()
    scene = SCENES[index % len(SCENES)]
    parts = [phrase, scene] if index % 2 else [scene, phrase]
    return ", ".join(part for part in parts if part)


def _true_last_frame(path: Path, move: str, speed: str, shape: tuple[int, ...]) -> Frames:
    """The last frame of the true camera move; for a handheld move, its start."""
    _, height, width, _ = shape
    photo = read_image(str(path), height=2 * height, width=2 * width).pixels
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None]
    moves, amounts = torch.tensor([MOVES.index(move)]), torch.tensor([SPEEDS[speed]])
    if move == "handheld":
        amounts = amounts * 0
    frame = render(pixels, path_of(moves, amounts, torch.ones(1, 1)), (height, width))[0, :, 0]
    return ((frame.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()


def _sharpness(frame: Frames) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def _perturbed(checkpoint: Path, folder: Path, share: float) -> Path:
    """A copy whose transformer matrices have noise of `share` of their standard deviation added."""
    shutil.copytree(checkpoint, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: weight + share * weight.float().std() * torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1
        else weight
        for name, weight in load_file(path).items()
    }
    save_file({n: w.half().contiguous() for n, w in weights.items()}, path, {"format": "pt"})
    return folder


def summarise(results: list[ClipResult]) -> dict[str, float]:
    """Averages over clips. Sharpness is the median; `accepted` excludes static shots."""
    moving = [result for result in results if result.move != "static"]
    return {
        "num_clips": len(results),
        "recognised": mean(r.recognised == r.move for r in results),
        "accepted": mean(r.verdict == "accepted" for r in moving) if moving else 0.0,
        "first_frame_psnr_db": mean(r.first_frame_psnr_db for r in results),
        "least_first_frame_psnr_db": min(r.first_frame_psnr_db for r in results),
        "first_sharpness": median(r.first_sharpness for r in results),
        "last_sharpness": median(r.last_sharpness for r in results),
        "last_frame_psnr_db": mean(r.last_frame_psnr_db for r in results),
        "temporal_score": mean(r.temporal_score for r in moving) if moving else 0.0,
        "seconds": median(r.seconds for r in results),
    }


def _write(output: Path, results: list[ClipResult], rows: list[Frames]) -> None:
    with (output / "clips.csv").open("w", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(asdict(results[0])))
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    summary = {name: round(value, 3) for name, value in summarise(results).items()}
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    Image.fromarray(np.vstack(rows)).save(output / "sheet.jpg", quality=88)


def _show(results: list[ClipResult]) -> None:
    table = Table("move", "clips", "recognised", "accepted", "first frame", "sharp first / last")
    for move in MOVES:
        some = [result for result in results if result.move == move]
        if some:
            figures = summarise(some)
            accepted = sum(result.verdict == "accepted" for result in some)
            table.add_row(
                move,
                str(len(some)),
                str(sum(result.recognised == move for result in some)),
                str(accepted),
                f"{figures['first_frame_psnr_db']:.1f} dB",
                f"{figures['first_sharpness']:.0%} / {figures['last_sharpness']:.0%}",
            )
    Console().print(table)
    print(json.dumps({name: round(value, 3) for name, value in summarise(results).items()}))


if __name__ == "__main__":
    main()
