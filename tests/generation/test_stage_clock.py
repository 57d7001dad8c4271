"""Seconds and peaks are credited to the stage they happened in."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from vidgen_ray.generation import stage_clock as stages
from vidgen_ray.generation.stage_clock import StageClock


class Memory:
    """Stands in for a GPU's allocator, which remembers the most since it was last reset."""

    def __init__(self) -> None:
        self.now = self.peak = 0.0

    def hold(self, gb: float) -> None:
        self.now = gb
        self.peak = max(self.peak, gb)

    def reset(self, _device: torch.device) -> None:
        self.peak = self.now

    def most(self, _device: torch.device) -> float:
        return self.peak


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr(stages, "peak_vram_gb", memory.most)
    monkeypatch.setattr(stages, "reset_peak_vram", memory.reset)
    return memory


def test_a_peak_belongs_to_the_innermost_stage(memory: Memory) -> None:
    clock = StageClock(torch.device("cpu"))
    memory.hold(9)  # of an earlier clip
    memory.hold(1)
    with clock.stage("text_s"):
        memory.hold(4)
        memory.hold(2)
    with clock.stage("denoise_s"):
        memory.hold(5)
        memory.hold(2)
        with clock.stage("image_encode_s"):
            memory.hold(7)
            memory.hold(2)
        memory.hold(3)
    assert clock.peaks_gb == {"text_s": 4, "denoise_s": 5, "image_encode_s": 7}


def test_the_peak_of_a_stage_that_fails_counts(memory: Memory) -> None:
    clock = StageClock(torch.device("cpu"))
    with contextlib.suppress(MemoryError), clock.stage("decode_s"):
        memory.hold(8)
        raise MemoryError
    assert clock.peaks_gb == {"decode_s": 8}


def test_a_cpu_has_no_peaks() -> None:
    clock = StageClock(torch.device("cpu"))
    owner = SimpleNamespace(work=lambda: 3)
    with clock.stage("denoise_s"), clock.stage_of(owner, "work", "text_s"):
        assert owner.work() == 3
    assert clock.peaks_gb == {}
    assert set(clock.seconds) == {"denoise_s", "text_s"}
