"""Whose turn it is on a machine that makes clips on the CPUs which also answer HTTP."""

import os

from vidgen_ray.config import has_nvidia_gpu

_NICENESS = 10  # a tenth of the share of those who answer, when there is not enough for all


def step_aside() -> None:
    """Let this thread, and those that it starts, run after the others of the machine.

    Where there is a GPU nothing changes: it would wait for its CPU.
    """
    if not has_nvidia_gpu():
        os.nice(_NICENESS)
