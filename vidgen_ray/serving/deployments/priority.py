"""CPU priorities where clips are made on the cores that also answer HTTP."""

import os

from vidgen_ray.config import has_nvidia_gpu

_NICENESS = 10  # about a tenth of the CPU share of normal processes under contention


def lower_priority() -> None:
    """Run this thread, and those that it starts, at a lower CPU priority.

    Nothing changes on a machine with a GPU, which would then wait for its CPU thread.
    """
    if not has_nvidia_gpu():
        os.nice(_NICENESS)
