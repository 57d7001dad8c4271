"""Measure the visible grid of a transformer's patches: blotches that stay in place."""

import cv2
import numpy as np

PERIOD = 16  # px: patches of 2x2 latents, each of 8x8 px
MIN_TILES = 100  # fewer tiles agree by chance
CLIP_DEVIATIONS = 3.0  # detail is clipped at this many median deviations: edges must not dominate


def patch_grid(frames: np.ndarray, step: int = 4) -> float | None:
    """The share of detail that repeats every PERIOD px in both directions, 0 to 1.

    Every `step`-th frame is cut into tiles of PERIOD px: the score is the variance of the mean tile
    over the variance of all detail, the median over frames. Moving detail averages out. `frames`
    are uint8 [num_frames, height, width, 3]; None if they are too small.
    """
    rows, columns = frames.shape[1] // PERIOD, frames.shape[2] // PERIOD
    if rows * columns < MIN_TILES:
        return None
    shares = []
    for frame in frames[::step]:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        detail = grey - cv2.GaussianBlur(grey, (0, 0), PERIOD / 2)
        limit = CLIP_DEVIATIONS * float(np.median(np.abs(detail))) + 1e-3
        detail = detail[: rows * PERIOD, : columns * PERIOD].clip(-limit, limit)
        mean_tile = detail.reshape(rows, PERIOD, columns, PERIOD).mean(axis=(0, 2))
        shares.append(mean_tile.var() / max(float(detail.var()), 1e-6))
    return float(np.median(shares))
