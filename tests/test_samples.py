"""The sample images and the sample jobs file belong together and can be drawn again."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from scripts import draw_samples as draw
from vidgen_ray.config import Config
from vidgen_ray.schema import resolve_request

SAMPLES = Path(__file__).parent.parent / "data" / "samples"
JOBS = [json.loads(line) for line in (SAMPLES / "jobs.jsonl").read_text("utf-8").splitlines()]
MOVES = ["push in", "pull out", "pan left", "pan right", "tilt up", "tilt down", "handheld"]
MOVES += ["static", "orbit left", "orbit right"]


def upright(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def test_every_scene_is_drawn_and_nothing_else_lies_there() -> None:
    images = {path.name for path in SAMPLES.iterdir() if path.suffix in {".png", ".jpg"}}
    assert images == set(draw.SCENES)


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("sample_image_*")), ids=lambda path: path.name)
def test_image_can_fill_a_clip_of_480_by_720(path: Path) -> None:
    image = upright(path)
    assert min(image.size) >= 480
    assert max(image.size) >= 720


def test_images_stay_small_enough_for_a_checkout() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.glob("sample_image_*")) <= 2_500_000


def test_one_image_is_portrait_and_one_is_stored_lying() -> None:
    sizes = [upright(path).size for path in SAMPLES.glob("*.png")]
    assert any(height > width for width, height in sizes)
    with Image.open(SAMPLES / "sample_image_5.jpg") as image:
        assert image.getexif()[ExifTags.Base.Orientation] == 6
        assert image.height > image.width
    landscape = upright(SAMPLES / "sample_image_5.jpg")
    assert landscape.width > landscape.height


@pytest.mark.parametrize("name", ["sample_image_2.png", "sample_image_3.png"])
def test_drawing_again_gives_the_same_pixels(name: str) -> None:
    again = np.asarray(draw.SCENES[name](), np.int16)
    kept = np.asarray(upright(SAMPLES / name), np.int16)
    # Another processor may round a sine the other way: one step of two levels, here and there.
    assert np.abs(again - kept).max() <= 2
    assert (again != kept).mean() < 0.001


def test_jobs_have_unique_ids_and_existing_images() -> None:
    assert len({job["id"] for job in JOBS}) == len(JOBS) >= 4
    assert {job["image"] for job in JOBS} == {path.name for path in SAMPLES.glob("sample_image_*")}


def test_every_prompt_names_a_camera_move() -> None:
    for job in JOBS:
        assert any(move in job["prompt"].lower() for move in MOVES), job["id"]


def test_jobs_are_valid_requests() -> None:
    for job in JOBS:
        assert resolve_request(job, Config()).prompt == job["prompt"]
