"""Recognise the camera move of a clip from optical flow."""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from recipes.nano.camera import TRAVEL, depth

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]

STRIDE = 3  # frames from one picture to the next
MARGIN = 0.06  # of each side, where content leaves or is revealed
LEAST_TRAVEL = 0.3  # of a move at normal speed
LEAST_TREMBLE = 0.0022  # of the frame's width, root mean square
FIT_ROUNDS = 4
ROBUST_PX = 0.5  # misfits beyond this count less (Huber)


@dataclass(frozen=True)
class Motion:
    """The accumulated camera motion of a clip."""

    shift_x: float  # frame widths, positive when the camera goes right
    shift_y: float  # frame heights, positive when it goes down
    log_scale: float  # negative when it goes nearer
    parallax: float  # widths between depth 0 and 1, positive when it goes around to the right
    tremble: float  # frame widths, root mean square around the smooth path


def recognise(frames: Frames) -> tuple[str, Motion]:
    """The move of `frames`, uint8 [num_frames, height, width, 3], and the motion it is based on.

    DIS flow (Kroeger et al. 2016) between frames STRIDE apart is fitted with a shift, a scale and
    the parallax of the recipe's depth; the sums over the clip are compared with the travel of each
    move. A camera without net motion is handheld if it trembles, else static.
    """
    motion = measure_motion(frames)
    shares = {
        "push_in": motion.log_scale / TRAVEL["push_in"],
        "pull_out": motion.log_scale / TRAVEL["pull_out"],
        "pan_right": motion.shift_x / TRAVEL["pan"],
        "pan_left": -motion.shift_x / TRAVEL["pan"],
        "tilt_down": motion.shift_y / TRAVEL["tilt"],
        "tilt_up": -motion.shift_y / TRAVEL["tilt"],
        "orbit_right": motion.parallax / TRAVEL["orbit"],
        "orbit_left": -motion.parallax / TRAVEL["orbit"],
    }
    move = max(shares, key=lambda name: shares[name])
    if shares[move] < LEAST_TRAVEL:
        move = "handheld" if motion.tremble > LEAST_TREMBLE else "static"
    return move, motion


def measure_motion(frames: Frames) -> Motion:
    """Fit the flow of each stride and sum the results."""
    flow_of = cv2.DISOpticalFlow_create(  # type: ignore[attr-defined]
        cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
    )
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames[::STRIDE]]
    size = (greys[0].shape[0], greys[0].shape[1])
    columns, seen = _model(size)
    steps = np.array(
        [
            _fit(flow_of.calc(first, second, None), first, columns, seen)
            for first, second in pairwise(greys)
        ]
    )
    total = steps.sum(axis=0)
    return Motion(
        shift_x=-total[0] / size[1],
        shift_y=-total[1] / size[0],
        log_scale=-total[2],
        parallax=-total[3] / size[1],
        tremble=_tremble(steps[:, :2] / size[1]),
    )


def _model(size: tuple[int, int]) -> tuple[Floats, NDArray[np.bool_]]:
    """Flow [2, pixels, 4] of a unit of each motion, and the pixels that are used."""
    height, width = size
    x = ((np.arange(width) + 0.5) / width - 0.5)[None].repeat(height, 0)
    y = ((np.arange(height) + 0.5) / height - 0.5)[:, None].repeat(width, 1)
    near = depth(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    zero, one = np.zeros_like(x), np.ones_like(x)
    across = np.stack([one, zero, x * width, near], axis=-1)
    down = np.stack([zero, one, y * height, zero], axis=-1)
    inside = (np.abs(x) < 0.5 - MARGIN) & (np.abs(y) < 0.5 - MARGIN)
    return np.stack([across, down]).reshape(2, -1, 4), inside.ravel()


def _fit(
    flow: NDArray[np.float32],
    picture: NDArray[np.uint8],
    columns: Floats,
    seen: NDArray[np.bool_],
) -> Floats:
    """Robust least squares over textured pixels: [4]."""
    slope_x, slope_y = cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)
    texture = np.hypot(slope_x, slope_y).ravel()
    chosen = seen & (texture > np.percentile(texture[seen], 50))
    design, target = columns[:, chosen], flow.reshape(-1, 2)[chosen].T
    weights = np.ones(target.shape[1])
    for _ in range(FIT_ROUNDS):
        weighted = design * weights[:, None]
        normal = np.einsum("cpi,cpj->ij", weighted, design)
        solution = np.linalg.solve(
            normal + 1e-6 * np.eye(4), np.einsum("cpi,cp->i", weighted, target)
        )
        misfit = np.linalg.norm(target - design @ solution, axis=0)
        weights = ROBUST_PX / np.maximum(misfit, ROBUST_PX)
    return solution


def _tremble(steps: Floats) -> float:
    """Root mean square deviation of the path [steps, 2] from its best-fit parabola."""
    way = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    times = np.linspace(-1, 1, len(way))
    smooth = np.polynomial.polynomial.polyvander(times, 2)
    fitted = smooth @ np.linalg.lstsq(smooth, way, rcond=None)[0]
    return float(np.sqrt(np.mean(np.sum((way - fitted) ** 2, axis=1))))
