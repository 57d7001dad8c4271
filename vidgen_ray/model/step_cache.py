"""The step cache: a step much like the last computed one takes over the work of its blocks.

The first block of the transformer always runs. How much its contribution has changed since the
last computed step, relative to its size, decides whether the other blocks run or their last
contribution is added again (first-block cache of ParaAttention, after TeaCache, arXiv:2411.19108).
"""

from collections.abc import Callable

import torch

Agree = Callable[[torch.Tensor], torch.Tensor]


class StepCache:
    """What is kept between the steps of one clip. `reset` it before each."""

    def __init__(self, threshold: float, agree: Agree | None = None) -> None:
        """`agree` makes one number of those of several ranks, so that all decide alike."""
        self._threshold = threshold
        self._agree = agree
        self.reset()

    def reset(self) -> None:
        """Forget the clip."""
        self.changes: list[float] = []  # of each step after the first, for calibration
        self._first: torch.Tensor | None = None
        self._rest: torch.Tensor | None = None

    def lookup(self, first: torch.Tensor) -> torch.Tensor | None:
        """What the other blocks added last time; None where they have to run.

        `first` [B, S, D] is what the first block added to the video tokens in this step.
        """
        if self._first is None:
            return None
        sums = torch.stack(
            [
                (first - self._first).abs().sum(dtype=torch.float32),
                self._first.abs().sum(dtype=torch.float32),
            ]
        )
        if self._agree:
            sums = self._agree(sums)
        difference, size = sums.tolist()
        change = difference / max(size, 1e-12)
        self.changes.append(change)
        return self._rest if change <= self._threshold else None

    def store(self, first: torch.Tensor, rest: torch.Tensor) -> None:
        """Keep what the first block and the others added in a computed step."""
        self._first, self._rest = first, rest
