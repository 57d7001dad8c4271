"""What the stages of encoding that hold a part of the model do there."""

import logging
import os
import time

import pyarrow as pa
import torch

from vidgen_ray.config import Config
from vidgen_ray.distributed.encoding_stages import ClipStage, Row, without_cargo
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.device import choose_device, is_out_of_memory, use_cpu
from vidgen_ray.model.encoders import PromptEncoder, VideoEncoder
from vidgen_ray.schema import derive_seed
from vidgen_ray.training.shards import latents_row, prompt_row

logger = logging.getLogger(__name__)


class ClipWorker:
    """The VAE, which loads with the first row that needs it."""

    def __init__(self, stage: ClipStage) -> None:
        self._stage = stage
        self._encoder: VideoEncoder | None = None

    def work(self, row: Row) -> Row:
        """Frames become a row of a shard."""
        settings = self._stage.settings
        if self._encoder is None:
            config = self._stage.config
            checkpoint = open_checkpoint(config.model)
            device = _device(config)
            self._encoder = VideoEncoder(
                checkpoint, settings.dtype, device, tiling=settings.vae_tiling
            )
        start = time.perf_counter()
        try:
            posterior = self._encoder.encode_video(row["frames"])
            images = self._encoder.encode_image(
                row["image"], settings.num_noised_images, derive_seed(row["key"])
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise ConfigError(
                    f"out of memory encoding {settings.num_frames} frames of {settings.height}x"
                    f"{settings.width}; set model.vae_tiling=true, or free the GPU"
                ) from error
            if isinstance(error, torch.AcceleratorError):
                logger.critical("%s", error)
                os._exit(1)  # no later clip can work in this process; Ray starts another
            raise
        made = latents_row(row["key"], posterior, images, row["picture"])
        seconds = {"encode_s": time.perf_counter() - start, "encoded_at": time.time()}
        return {**without_cargo(row), **seconds, **made}


class PromptWorker:
    """The text encoder."""

    def __init__(self, config: Config) -> None:
        checkpoint = open_checkpoint(config.model)
        self._encoder = PromptEncoder(checkpoint, config.encoding.dtype, _device(config))

    def work(self, table: pa.Table) -> pa.Table:
        """Rows of `key` and `prompt` become rows of a shard."""
        rows = table.to_pylist()
        embeds, counts = self._encoder.encode([row["prompt"] for row in rows])
        made = [
            prompt_row(row["key"], row["prompt"], embeds[index], counts[index])
            for index, row in enumerate(rows)
        ]
        return pa.Table.from_pylist(made)


def _device(config: Config) -> torch.device:
    """The device of a worker; a CPU is used whole."""
    device = choose_device(config.model.device)
    if device.type == "cpu":
        use_cpu(config.model.cpu_threads, config.encoding.dtype)
    return device
