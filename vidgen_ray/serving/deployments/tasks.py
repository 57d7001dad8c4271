"""What travels between Dispatcher, Generator and Scorer. Pixels go by Ray's shared memory."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClipTask:
    """One attempt at a leased job. `request` is its GenerationRequest as JSON."""

    job_id: str
    lease_token: str
    attempt: int
    request: str
    http_request_id: str


@dataclass(frozen=True)
class Made:
    """An attempt after the Generator: its record as JSON, and pixels unless it failed.

    `image` is uint8 [height, width, 3], `frames` uint8 [num_frames, height, width, 3].
    """

    record: str
    http_request_id: str
    image: np.ndarray | None
    frames: np.ndarray | None


@dataclass(frozen=True)
class Settled:
    """An attempt after the Scorer: the committed record as JSON, None to ask for another."""

    record: str | None
