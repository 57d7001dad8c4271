"""What makes clips: the protocol that one device, a group of ranks or plain diffusers fulfil."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vidgen_ray.errors import ClipCancelled, ClipTimeout
from vidgen_ray.image_io import ConditioningImage
from vidgen_ray.request import GenerationRequest
from vidgen_ray.schema import AdapterRecord, ModelRecord, StageTimes, Video

if TYPE_CHECKING:  # imports torch, which scoring workers do without
    import torch

    from vidgen_ray.model.checkpoint import Checkpoint

OnStep = Callable[[int, int], None]
Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Generation:
    """A generated video and how it was made. `peak_vram_gb` is allocated memory, in 1e9 bytes.

    `latents` [1, F, C, h, w] are what was decoded, on the CPU; None where the engine does not
    show them, and once an attempt has left its engine.
    """

    video: Video
    image: ConditioningImage
    model: ModelRecord
    adapter: AdapterRecord | None
    stages: StageTimes
    peak_vram_gb: float | None
    stage_peaks_gb: dict[str, float]
    device: str
    latents: "torch.Tensor | None" = None


class ClipEngine(Protocol):
    """One model that makes one clip at a time."""

    @property
    def checkpoint(self) -> "Checkpoint":
        """The facts of the loaded checkpoint."""
        ...

    def load(self) -> float:
        """Load the weights that a plain request needs; seconds taken. Raises ConfigError."""
        ...

    def generate(
        self,
        request: GenerationRequest,
        on_step: OnStep | None = None,
        cancelled: Cancelled | None = None,
        *,
        image: ConditioningImage | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """Make the clip of `request`.

        `on_step(done, total)` is called after each denoising step; `cancelled()` is asked between
        steps; `image` saves reading `request.image` again.

        Raises RequestError before any step where the request is at fault, ClipCancelled,
        ClipTimeout, OutOfMemory, and EngineError for anything else.
        """
        ...

    def close(self) -> None:
        """Free the device. The engine must not be used afterwards."""
        ...


class StepCallbacks:
    """The caller's callbacks, run between denoising steps."""

    def __init__(
        self, on_step: OnStep | None, cancelled: Cancelled | None, timeout_s: float | None
    ) -> None:
        self._on_step = on_step
        self._cancelled = cancelled
        self._timeout_s = timeout_s
        self._start = time.monotonic()

    def check(self) -> None:
        if self._cancelled and self._cancelled():
            raise ClipCancelled("the clip was cancelled by its caller")
        elapsed = time.monotonic() - self._start
        if self._timeout_s is not None and elapsed > self._timeout_s:
            raise ClipTimeout(
                f"the clip took longer than its limit of {self._timeout_s:g} s; raise "
                "batch.clip_timeout_s, or use fewer steps or a faster profile"
            )

    def step(self, done: int, total: int) -> None:
        if self._on_step:
            self._on_step(done, total)
        self.check()
