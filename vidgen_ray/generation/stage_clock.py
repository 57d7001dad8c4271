"""Seconds and peak VRAM of each stage of a clip, with the device's queue drained at its borders."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from vidgen_ray.model.device import peak_vram_gb, reset_peak_vram


class StageClock:
    """Adds up seconds by stage name. A stage inside another counts once, for the inner one.

    `peaks_gb` is the most VRAM allocated in each stage, in 1e9 bytes; empty on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks_gb: dict[str, float] = {}
        self.last: str = "start"
        self._device = device
        self._open: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as `name`, a field of `StageTimes`."""
        self.last = name
        self._note_peak()
        self._open.append(name)
        start = self._now()
        try:
            yield
        finally:
            elapsed = self._now() - start
            self._note_peak()
            self._open.pop()
            self._add(name, elapsed)
            if self._open:
                self._add(self._open[-1], -elapsed)
                self.last = self._open[-1]

    @contextmanager
    def stage_of(self, owner: Any, method: str, name: str) -> Iterator[None]:
        """Within the context, every call of `owner.method` is timed as `name`."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            delattr(owner, method)

    @contextmanager
    def stages_of(self, owner: Any, names: Mapping[str, str]) -> Iterator[None]:
        """`stage_of` for every method of `names` that the owner has."""
        with ExitStack() as stack:
            for method, name in names.items():
                if hasattr(owner, method):
                    stack.enter_context(self.stage_of(owner, method, name))
            yield

    def _add(self, name: str, elapsed: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def _note_peak(self) -> None:
        """Credit the peak since the last border to the innermost open stage."""
        peak_gb = peak_vram_gb(self._device)
        if peak_gb is not None and self._open:
            name = self._open[-1]
            self.peaks_gb[name] = max(peak_gb, self.peaks_gb.get(name, 0.0))
        reset_peak_vram(self._device)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
