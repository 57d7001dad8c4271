"""Blots on the grid of the model's patches are seen; texture, motion and edges are not."""

import cv2
import numpy as np
import pytest

from vidgen_ray.config import QualityConfig
from vidgen_ray.generation.patch_grid import patch_grid
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import judge
from vidgen_ray.schema import Video

LIMIT = QualityConfig().max_patch_grid


@pytest.fixture(scope="module")
def pan() -> np.ndarray:
    """17 frames of 160x240 that pan over coarse and fine texture and one hard edge."""
    random = np.random.default_rng(1)
    coarse = cv2.resize(random.integers(60, 190, (11, 17, 3), dtype=np.uint8), (320, 160))
    fine = random.normal(0, 6, (160, 320, 3))
    wide = np.clip(coarse + fine, 0, 255).astype(np.uint8)
    wide[:, 150:158] = 20
    return np.stack([wide[:, 3 * step : 3 * step + 240] for step in range(17)])


def blots(strength: float) -> np.ndarray:
    y, x = np.mgrid[0:160, 0:240] * (2 * np.pi / 16)
    return strength * (np.cos(x) * np.cos(y))[..., None]


def test_a_grid_that_stands_still_over_the_motion_is_rejected(pan: np.ndarray) -> None:
    score = score_video(Video(pan, 8))
    assert score.patch_grid is not None
    assert score.patch_grid < LIMIT
    assert judge(score, QualityConfig())[0] == "accepted"
    spoilt = np.clip(pan + blots(15), 0, 255).astype(np.uint8)
    verdict, reasons = judge(score_video(Video(spoilt, 8)), QualityConfig())
    assert verdict == "rejected"
    assert "a grid of blots covers the picture" in " ".join(reasons)


def test_it_grows_with_the_blots(pan: np.ndarray) -> None:
    shares = [patch_grid(np.clip(pan + blots(s), 0, 255).astype(np.uint8)) for s in (0, 5, 30)]
    assert all(share is not None for share in shares)
    assert shares == sorted(shares)  # type: ignore[type-var]
    assert shares[-1] is not None
    assert shares[-1] > 0.3


def test_small_or_flat_pictures(pan: np.ndarray) -> None:
    assert patch_grid(pan[:, :64, :96]) is None
    assert patch_grid(np.full_like(pan, 128)) == 0
