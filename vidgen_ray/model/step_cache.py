"""The step cache: reuse the residual of the transformer's blocks between similar steps."""

from collections.abc import Callable

import torch

AllReduce = Callable[[torch.Tensor], torch.Tensor]


class StepCache:
    """The cached residuals of one clip. Call `reset` before each clip.

    The first block always runs. The relative change of its residual since the last computed step
    decides whether the remaining blocks run or their cached residual is reused (first-block cache
    of ParaAttention, after TeaCache, arXiv:2411.19108).
    """

    def __init__(self, threshold: float, all_reduce: AllReduce | None = None) -> None:
        """`threshold` is the largest relative change at which the cached residual is reused.

        `all_reduce` sums a tensor over the ranks, so that all ranks take the same decision.
        """
        self._threshold = threshold
        self._all_reduce = all_reduce
        self.reset()

    def reset(self) -> None:
        """Drop everything cached for the clip."""
        self.changes: list[
            float
        ] = []  # relative change of each step after the first, for calibration
        self._first: torch.Tensor | None = None
        self._rest: torch.Tensor | None = None

    def lookup(self, first: torch.Tensor) -> torch.Tensor | None:
        """The cached residual [B, S, D] of the remaining blocks, or None if they have to run.

        `first` [B, S, D] is the residual of the first block on the video tokens in this step.
        """
        if self._first is None:
            return None
        sums = torch.stack(
            [
                (first - self._first).abs().sum(dtype=torch.float32),
                self._first.abs().sum(dtype=torch.float32),
            ]
        )
        if self._all_reduce:
            sums = self._all_reduce(sums)
        difference, size = sums.tolist()
        change = difference / max(size, 1e-12)
        self.changes.append(change)
        return self._rest if change <= self._threshold else None

    def store(self, first: torch.Tensor, rest: torch.Tensor) -> None:
        """Cache the residuals [B, S, D] of the first block and of the rest in a computed step."""
        self._first, self._rest = first, rest
