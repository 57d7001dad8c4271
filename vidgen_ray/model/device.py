"""The device a model runs on: which one, its name, its memory."""

import os
import platform
from typing import NamedTuple

import torch

from vidgen_ray.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device that `cuda`, `cpu` or `auto` names. Raises ConfigError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "model.device: cuda, but torch sees no GPU; check the driver with nvidia-smi, or use "
            "--config nano for the small model on the CPU"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {num_cores()} cores)"


def reset_peak_vram(device: torch.device) -> None:
    """Start measuring the peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_vram_gb(device: torch.device) -> float | None:
    """The most VRAM allocated since the last reset, in 1e9 bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


class Vram(NamedTuple):
    """A GPU's name and what this process has of its memory, in 1e9 bytes; None on a CPU."""

    device: str
    reserved_gb: float | None
    allocated_gb: float | None


def vram_now() -> Vram:
    """The memory that this process holds on its current GPU."""
    if not torch.cuda.is_available():
        return Vram("", None, None)
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    return Vram(torch.cuda.get_device_name(), reserved / 1e9, allocated / 1e9)


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` is an allocator's refusal, of a GPU or of the machine."""
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
