"""The stages of encoding on Ray Data: read and cut a clip, encode it, write a shard.

One row is one span of one video. A stage never loses a row: what is wrong with a clip goes into
`reason`, what is wrong with the run into `fatal`. Rows with either pass the later stages untouched.

Neither the driver nor the workers that cut clips, one on each core, load diffusers.
"""

import hashlib
import io
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
import torch
from PIL import Image

from vidgen_ray.addresses import locate, readable
from vidgen_ray.cluster.board import activity, begin
from vidgen_ray.config import Config
from vidgen_ray.encoding.shards import (
    LATENTS,
    PROMPTS,
    EncodingSettings,
    latents_row,
    prompt_row,
    shard_bytes,
)
from vidgen_ray.errors import ConfigError, RequestError, VidgenError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.image_io import fit_pixels, read_image
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.device import choose_device, is_out_of_memory, use_cpu
from vidgen_ray.schema import Clip, derive_seed
from vidgen_ray.video_io import check_span, read_span

if TYPE_CHECKING:
    from vidgen_ray.model.encoders import VideoEncoder

logger = logging.getLogger(__name__)

Row = dict[str, Any]

_CHUNK = 2**22  # bytes hashed at once
# What a row carries from one stage to the next; none of it leaves the last one.
_CARGO = ("frames", "image", "dtype", "shape", "num_images", "tensors", "picture")


@dataclass(frozen=True)
class ClipStage:
    """What every stage needs to know. `there` refers to the keys that are committed already."""

    config: Config
    settings: EncodingSettings
    output: str
    there: Any
    board: Any


def first_row(group: str, clip: Clip) -> Row:
    """The row of a group of captions, before any stage."""
    return {
        "group": group,
        "clip": clip.model_dump_json(),
        "key": "",
        "reused": False,
        "reason": "",
        "fatal": "",
        "decode_s": 0.0,
        "encode_s": 0.0,
        "encoded_at": 0.0,
        "frames": None,
        "image": None,
    }


def prepare(row: Row, stage: ClipStage) -> Row:
    """Find the clip's key; unless that is there, `frames` and `image` become uint8 arrays."""

    def work(row: Row) -> Row:
        start = time.perf_counter()
        clip = Clip.model_validate_json(row["clip"])
        settings = stage.settings
        shape: dict[str, Any] = {
            "height": settings.height,
            "width": settings.width,
            "fit": settings.image_fit,
        }
        cut: dict[str, Any] = {
            "num_frames": settings.num_frames,
            "fps": settings.fps,
            "start_s": clip.start_s,
            "end_s": clip.end_s,
        }
        check_span(clip.video, **cut)
        image = read_image(clip.image, **shape) if clip.image else None
        digest = _hash_video(clip.video, int(stage.config.encoding.max_video_gb * 1e9))
        key = settings.latents_key(digest, clip.start_s, image.sha256 if image else "")
        if key in ray.get(stage.there):
            return {**row, "key": key, "reused": True}
        video = read_span(clip.video, prepare=lambda pixels: fit_pixels(pixels, **shape), **cut)
        pixels = image.pixels if image else video.frames[0]
        picture = io.BytesIO()  # made here, where the GPU does not wait for it
        Image.fromarray(pixels).save(picture, "PNG", compress_level=1)
        made = {"frames": video.frames, "image": pixels, "picture": picture.getvalue()}
        return {**row, **made, "key": key, "decode_s": time.perf_counter() - start}

    return _guard("read", work, row, stage)


class EncodeClips:
    """The stage with the VAE, which loads with the first row that needs it."""

    def __init__(self, stage: ClipStage) -> None:
        self._stage = stage
        self._encoder: VideoEncoder | None = None

    def __call__(self, row: Row) -> Row:
        """Frames become a row of a shard."""
        if row["reused"]:
            return _without_cargo(row)
        return _guard("encode", self._work, row, self._stage)

    def _work(self, row: Row) -> Row:
        settings = self._stage.settings
        if self._encoder is None:
            from vidgen_ray.model.encoders import VideoEncoder  # diffusers, which takes seconds

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
        return {**_without_cargo(row), **seconds, **made}


def write_clips(table: pa.Table, stage: ClipStage) -> pa.Table:
    """Commit the clips of a batch of rows as one shard; the rows without their tensors."""
    rows = table.to_pylist()
    made = {row["key"]: row for row in rows if row["tensors"]}
    names = ("key", "dtype", "shape", "num_images", "tensors", "picture")
    if made:
        name, data = shard_bytes([{field: row[field] for field in names} for row in made.values()])
        ArtifactStore(stage.output).write(f"{LATENTS}/{name}", data)
    return table.drop_columns([name for name in _CARGO if name in table.column_names])


class EncodePrompts:
    """The stage with the text encoder."""

    def __init__(self, config: Config) -> None:
        from vidgen_ray.model.encoders import PromptEncoder  # diffusers, which takes seconds

        checkpoint = open_checkpoint(config.model)
        self._encoder = PromptEncoder(checkpoint, config.encoding.dtype, _device(config))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `key` and `prompt` become rows of a shard."""
        rows = table.to_pylist()
        embeds, counts = self._encoder.encode([row["prompt"] for row in rows])
        made = [
            prompt_row(row["key"], row["prompt"], embeds[index], counts[index])
            for index, row in enumerate(rows)
        ]
        return pa.Table.from_pylist(made)


def write_prompts(table: pa.Table, output: str) -> pa.Table:
    """Commit a batch of prompts as one shard; their keys."""
    name, data = shard_bytes(table.to_pylist())
    ArtifactStore(output).write(f"{PROMPTS}/{name}", data)
    return table.select(["key"])


def _guard(name: str, work: Callable[[Row], Row], row: Row, stage: ClipStage) -> Row:
    """Do `work` on a row that is still good; what is raised ends in the row."""
    if row["fatal"] or row["reason"]:
        return _without_cargo(row)
    entry = activity(row["group"], name)
    try:
        num_deaths = begin(stage.board, entry)
        if num_deaths >= stage.config.encoding.max_worker_deaths:
            raise RequestError(f"killed its worker {num_deaths} times in stage {name}")
        return work(row)
    except ConfigError as error:
        return _without_cargo({**row, "fatal": str(error)})
    except VidgenError as error:
        if type(error) is RequestError:
            return _without_cargo({**row, "reason": str(error)})
        return _without_cargo({**row, "fatal": str(error)})
    except Exception as error:
        logger.exception("%s: %s failed", row["group"], name)
        return _without_cargo({**row, "reason": f"{type(error).__name__}: {error}"})
    finally:
        stage.board.end.remote(row["group"], name)


def _without_cargo(row: Row) -> Row:
    """The row with empty cargo of the right types, so that rows of any kind make one table."""
    kept = {name: value for name, value in row.items() if name not in _CARGO}
    empty = {"dtype": "", "shape": [0], "num_images": 0, "tensors": b"", "picture": b""}
    return {**kept, **empty}


def _hash_video(address: str, max_bytes: int) -> str:
    """SHA-256 of a video file. Raises RequestError where it is missing or too large."""
    with readable(address, "video"):
        filesystem, path, size = locate(address, "video")
        if size is not None and size > max_bytes:
            raise RequestError(
                f"video: must be at most {max_bytes} bytes, got {size} ({address!r}); cut it into "
                "clips, or raise encoding.max_video_gb"
            )
        digest = hashlib.sha256()
        with filesystem.open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _device(config: Config) -> torch.device:
    """The device of a worker; a CPU is used whole."""
    device = choose_device(config.model.device)
    if device.type == "cpu":
        use_cpu(config.model.cpu_threads, config.encoding.dtype)
    return device
