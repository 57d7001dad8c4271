"""A lost CUDA context: no later clip can work in the process, so Ray must start another."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vidgen_ray.errors import VidgenError

logger = logging.getLogger(__name__)


@contextmanager
def exit_on_device_loss() -> Iterator[None]:
    """End the process when the block fails because the device's context is gone."""
    try:
        yield
    except (VidgenError, torch.AcceleratorError) as error:
        if isinstance(error, torch.AcceleratorError) or isinstance(
            error.__cause__, torch.AcceleratorError
        ):
            logger.critical("%s", error)
            os._exit(1)
        raise
