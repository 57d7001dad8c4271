"""Render clips from photos along named camera moves."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

MOVES = (
    "push_in",
    "pull_out",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "static",
    "handheld",
    "orbit_left",
    "orbit_right",
)
SPEEDS = {"slow": 0.6, "normal": 1.0, "fast": 1.45}  # factors of the travel
SPEED_SPREAD = 0.05  # a path's travel varies by this fraction
TRAVEL = {"push_in": -0.30, "pull_out": 0.26, "pan": 0.21, "tilt": 0.24, "orbit": 0.085}
EASE = 0.4  # share of smoothstep in a path; the rest is linear
OVERSAMPLING = 2  # samples a pixel, across and down
_WOBBLES = ((0.7, 1.8, 1.0), (1.8, 3.5, 0.6), (3.5, 6.0, 0.3))  # cycles a clip from, to; weight
_HANDHELD = {"shift_x": 0.0085, "shift_y": 0.0105, "roll": 0.006, "log_scale": 0.004}


@dataclass(frozen=True)
class Path:
    """Where a camera is in each frame, each [num_clips, num_frames]; zeros are the first frame."""

    log_scale: Tensor  # of the field of view: negative is nearer
    shift_x: Tensor  # of the camera, in frame widths, positive is right
    shift_y: Tensor  # in frame heights, positive is down
    roll: Tensor  # radians
    parallax: Tensor  # widths that a point of depth 1 moves against one of depth 0

    def __add__(self, other: "Path") -> "Path":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Path(**sums)


def path_of(moves: Tensor, amounts: Tensor, times: Tensor) -> Path:
    """The path of `moves` (indices into MOVES), scaled by `amounts`, at `times` from 0 to 1.

    `moves` and `amounts` are [num_clips], `times` is [num_clips, num_frames]. Coordinates are in
    frames: x and y run from -0.5 to 0.5 over the first frame.
    """
    eased = (1 - EASE) * times + EASE * times**2 * (3 - 2 * times)
    travelled = amounts[:, None] * eased

    def share(move: str) -> Tensor:
        return (moves == MOVES.index(move)).to(times.dtype)[:, None] * travelled

    handheld = (moves == MOVES.index("handheld")).to(times.dtype) * amounts
    directed = Path(
        log_scale=TRAVEL["push_in"] * share("push_in") + TRAVEL["pull_out"] * share("pull_out"),
        shift_x=TRAVEL["pan"] * (share("pan_right") - share("pan_left")),
        shift_y=TRAVEL["tilt"] * (share("tilt_down") - share("tilt_up")),
        roll=torch.zeros_like(times),
        parallax=TRAVEL["orbit"] * (share("orbit_right") - share("orbit_left")),
    )
    return directed + _handheld(handheld, times)


def any_path(num_clips: int, times: Tensor) -> Path:
    """Straight paths in every direction at once: the VAE must code them though no prompt names
    them.
    """
    ends = torch.rand(5, num_clips, 1, device=times.device) * 2 - 1
    reach = torch.tensor([0.3, 0.2, 0.2, 0.1, 0.08], device=times.device)[:, None, None]
    log_scale, shift_x, shift_y, roll, parallax = (ends * reach * times).unbind()
    return Path(log_scale, shift_x, shift_y, roll, parallax)


def render(
    photos: Tensor, path: Path, size: tuple[int, int], window: Tensor | None = None
) -> Tensor:
    """Clips [num_clips, 3, num_frames, height, width] in -1..1 of `photos` along `path`.

    `photos` are uint8 [num_clips, 3, H, W] that fill the first frame; they should be twice `size`
    for sharp clips. Beyond its edge a photo is mirrored, so that photo and path determine the clip.
    `window` [num_clips, 4] (left, top, width, height in fractions) renders only a part of each
    frame, at `size`.
    """
    num_clips, num_frames = path.shift_x.shape
    height, width = size[0] * OVERSAMPLING, size[1] * OVERSAMPLING
    x, y = _points(num_clips, height, width, window, photos.device)
    x, y = _seen_from(path, x, y, aspect=photos.shape[3] / photos.shape[2])
    grid = torch.stack([2 * x, 2 * y], dim=-1).reshape(num_clips, num_frames * height, width, 2)
    frames = F.grid_sample(
        photos.to(torch.float32) / 127.5 - 1,
        grid.to(torch.float32),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    ).reshape(num_clips, 3, num_frames, height, width)
    return F.avg_pool3d(frames, (1, OVERSAMPLING, OVERSAMPLING)).clamp(-1, 1)


def depth(x: Tensor, y: Tensor) -> Tensor:
    """A synthetic depth from -1 (far) to 1 (near): ground in front and a subject in the middle."""
    subject = torch.exp(-((x / 0.22) ** 2 + ((y - 0.05) / 0.30) ** 2))
    return (1.5 * y + subject - 0.25).clamp(-1, 1)


def _handheld(amounts: Tensor, times: Tensor) -> Path:
    swings = {name: reach * _wobble(times) * amounts[:, None] for name, reach in _HANDHELD.items()}
    return Path(**swings, parallax=torch.zeros_like(times))


def _wobble(times: Tensor) -> Tensor:
    """A random smooth path from 0: three sines for each clip."""
    total = torch.zeros_like(times)
    for low, high, weight in _WOBBLES:
        draw = torch.rand(2, times.shape[0], 1, device=times.device)
        angle = 2 * math.pi * (low + (high - low) * draw[0])
        phase = 2 * math.pi * draw[1]
        total += weight * (torch.sin(angle * times + phase) - torch.sin(phase))
    return total


def _points(
    num_clips: int, height: int, width: int, window: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Frame coordinates of the samples: x [num_clips, 1, 1, width], y [num_clips, 1, height, 1]."""
    if window is None:
        window = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device).expand(num_clips, 4)
    left, top, wide, high = (side[:, None] for side in window.unbind(1))
    x = left + wide * (torch.arange(width, device=device) + 0.5) / width - 0.5
    y = top + high * (torch.arange(height, device=device) + 0.5) / height - 0.5
    return x[:, None, None, :], y[:, None, :, None]


def _seen_from(path: Path, x: Tensor, y: Tensor, aspect: float) -> tuple[Tensor, Tensor]:
    """The sampling positions in the photo, [num_clips, num_frames, height, width] each."""
    values = {field.name: getattr(path, field.name)[:, :, None, None] for field in fields(path)}
    near = x + values["parallax"] * depth(x, y)
    scale = torch.exp(values["log_scale"])
    cosine, sine = torch.cos(values["roll"]), torch.sin(values["roll"])
    turned_x = near * cosine - y * sine / aspect
    turned_y = near * sine * aspect + y * cosine
    return values["shift_x"] + scale * turned_x, values["shift_y"] + scale * turned_y
