"""The device a model runs on: which one, its name, its memory."""

import ctypes
import logging
import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from vidgen_ray.config import Config, Dtype, DtypeSetting
from vidgen_ray.errors import ConfigError

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


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


def require_gpu(config: Config) -> None:
    """Refuse to run a model that is configured for a GPU on the CPU by accident.

    `model.device: cpu` asks for it. Raises ConfigError.
    """
    wants_gpu = config.model.device != "cpu" and config.batch.num_gpus_per_worker > 0
    if wants_gpu and not torch.cuda.is_available():
        raise ConfigError(
            f"batch.num_gpus_per_worker: {config.batch.num_gpus_per_worker:g} for "
            f"{config.model.checkpoint}, but torch sees no GPU here; use --config nano for the "
            "embedded model on the CPU, or --set model.device=cpu to wait hours for this one"
        )


def resolve_dtype(setting: DtypeSetting, device: torch.device) -> Dtype:
    """`auto` becomes bfloat16 on a GPU and on a CPU that multiplies it, float32 on other CPUs.

    Called where weights load: the machine that parses a configuration may be another one.
    """
    if setting != "auto":
        return setting
    return "bfloat16" if device.type == "cuda" or cpu_has_bfloat16() else "float32"


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU of this machine has instructions that multiply bfloat16.

    Without them a convolution takes hundreds of times as long as in float32 (oneDNN's reference).
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def use_cpu(num_threads: int | None, dtype: DtypeSetting | None = None) -> None:
    """Prepare this process to compute on a CPU, with `num_threads` threads, by default one a core.

    Large tensors are allocated and freed all the time, and glibc returns each to the system, whose
    zeroed pages took half of the time of decoding a clip: mallopt makes it keep them.
    """
    torch.set_num_threads(num_threads or num_cores())
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if dtype in {"bfloat16", "float16"} and not cpu_has_bfloat16():
        logger.warning(
            "model.dtype: this CPU computes %s hundreds of times slower than float32; "
            "set model.dtype=auto or float32",
            dtype,
        )


def describe_device(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {num_cores()} cores)"


def reset_peak_vram(device: torch.device) -> None:
    """Reset the peak of allocated memory."""
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


def free_bytes(device: torch.device) -> int:
    """Memory that is free, of the GPU or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large matrix product, measured; takes a fraction of a second."""
    size, repeats = (8192, 8) if device.type == "cuda" else (1024, 2)
    a = torch.randn(size, size, device=device, dtype=dtype)

    def seconds() -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, a)
        _wait(device)
        return time.perf_counter() - start

    seconds()  # warms up
    return 2 * size**3 * repeats / min(seconds() for _ in range(3))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
