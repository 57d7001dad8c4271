"""A first frame against its photo: lost detail is nothing, lost content is much."""

import cv2
import numpy as np
import pytest

from vidgen_ray.config import QualityConfig
from vidgen_ray.generation.image_match import MAX_DB, image_match_db
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import judge
from vidgen_ray.schema import Video

LIMIT = QualityConfig().min_image_match_db


@pytest.fixture
def picture() -> np.ndarray:
    """160x240 RGB: smooth shapes, and fine texture over them."""
    y, x = np.mgrid[0:160, 0:240] / 160
    smooth = np.stack([x / 1.5, 0.5 + 0.4 * np.sin(9 * x * y), 1 - y], axis=-1) * 200
    noise = np.random.default_rng(0).normal(0, 8, smooth.shape)
    return np.clip(smooth + noise + 20, 0, 255).astype(np.uint8)


def test_blur_and_another_size_still_agree(picture: np.ndarray) -> None:
    assert image_match_db(picture, picture) == MAX_DB
    assert image_match_db(cv2.GaussianBlur(picture, (0, 0), 1.5), picture) > LIMIT + 5
    large = cv2.resize(picture, (720, 480), interpolation=cv2.INTER_CUBIC)
    assert image_match_db(large, picture) > LIMIT + 5


def test_blots_and_another_scene_do_not(picture: np.ndarray) -> None:
    y, x = np.mgrid[0:160, 0:240]
    blots = 60 * np.sin(x / 6) * np.sin(y / 6)
    spoilt = np.clip(picture + blots[..., None], 0, 255).astype(np.uint8)
    assert image_match_db(spoilt, picture) < LIMIT - 4
    assert image_match_db(picture[:, ::-1], picture) < LIMIT - 10


def test_a_clip_of_another_picture_is_not_accepted(picture: np.ndarray) -> None:
    frames = np.stack([np.roll(picture, 2 * step, axis=1) for step in range(9)])
    own = score_video(Video(frames, 8), image=picture)
    other = score_video(Video(frames, 8), image=picture[::-1])
    assert judge(own, QualityConfig())[0] == "accepted"
    verdict, reasons = judge(other, QualityConfig())
    assert verdict == "rejected"
    assert "the first frame is not the photo" in reasons[0]
    assert score_video(Video(frames, 8)).image_match_db is None
