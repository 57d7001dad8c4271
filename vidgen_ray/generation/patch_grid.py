"""How much of a clip's detail is the grid of a transformer's patches: blots that stay in place."""

import cv2
import numpy as np

PERIOD = 16  # px: patches of 2x2 latents, each of 8x8 px
LEAST_TILES = 100  # fewer agree by chance
OUTLIER = 3.0  # detail is cut off at this many median deviations, so that no edge decides


def patch_grid(frames: np.ndarray, step: int = 4) -> float | None:
    """The share of detail that repeats every PERIOD px, both ways: 0 none, 1 nothing else.

    Each frame, of every `step`, is cut into tiles; the variance of their mean is compared with
    that of all, and the median frame counts, so that what moves cancels. `frames` are uint8
    [num_frames, height, width, 3]; None where they are too small.
    """
    rows, columns = frames.shape[1] // PERIOD, frames.shape[2] // PERIOD
    if rows * columns < LEAST_TILES:
        return None
    shares = []
    for frame in frames[::step]:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        detail = grey - cv2.GaussianBlur(grey, (0, 0), PERIOD / 2)
        limit = OUTLIER * float(np.median(np.abs(detail))) + 1e-3
        detail = detail[: rows * PERIOD, : columns * PERIOD].clip(-limit, limit)
        mean_tile = detail.reshape(rows, PERIOD, columns, PERIOD).mean(axis=(0, 2))
        shares.append(mean_tile.var() / max(float(detail.var()), 1e-6))
    return float(np.median(shares))
