"""The sample photographs, their credits and the sample jobs file belong together."""

import json
import re
from pathlib import Path

import pytest
from PIL import ExifTags, Image, ImageOps

from vidgen_ray.config import Config
from vidgen_ray.schema import resolve_request

SAMPLES = Path(__file__).parent.parent / "data" / "samples"
PHOTOS = sorted(SAMPLES.glob("*.jpg"))
JOBS = [json.loads(line) for line in (SAMPLES / "jobs.jsonl").read_text("utf-8").splitlines()]
CREDITS = re.findall(
    r"^\| `(.+?)` \|.+\| (.+?) \[\d\] \|", (SAMPLES / "CREDITS.md").read_text("utf-8"), re.MULTILINE
)
MOVES = ["push in", "pull out", "pan left", "pan right", "tilt up", "tilt down", "handheld"]
MOVES += ["static", "orbit left", "orbit right"]


def upright(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def test_every_photo_is_credited_and_free_and_no_other_file_is_there() -> None:
    assert sorted(name for name, _ in CREDITS) == [path.name for path in PHOTOS]
    assert {licence for _, licence in CREDITS} <= {"CC0-1.0", "public domain"}
    assert {path.name for path in SAMPLES.iterdir()} == {
        "jobs.jsonl",
        "CREDITS.md",
        *(path.name for path in PHOTOS),
    }


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_image_can_fill_a_clip_of_480_by_720(path: Path) -> None:
    image = upright(path)
    assert image.width >= 720
    assert image.height >= 480


def test_images_stay_small_enough_for_a_checkout() -> None:
    assert sum(path.stat().st_size for path in PHOTOS) <= 1_200_000


def test_one_image_is_portrait_and_one_is_stored_rotated() -> None:
    assert upright(SAMPLES / "minaret.jpg").height > upright(SAMPLES / "minaret.jpg").width
    with Image.open(SAMPLES / "harbour.jpg") as image:
        assert image.getexif()[ExifTags.Base.Orientation] == 6
        assert image.height > image.width
    assert upright(SAMPLES / "harbour.jpg").width > upright(SAMPLES / "harbour.jpg").height


def test_jobs_have_unique_ids_and_existing_images() -> None:
    assert len({job["id"] for job in JOBS}) == len(JOBS) >= 4
    assert {job["image"] for job in JOBS} == {path.name for path in PHOTOS}


def test_every_prompt_names_a_camera_move() -> None:
    for job in JOBS:
        assert any(move in job["prompt"].lower() for move in MOVES), job["id"]


def test_jobs_are_valid_requests() -> None:
    for job in JOBS:
        assert resolve_request(job, Config()).prompt == job["prompt"]
