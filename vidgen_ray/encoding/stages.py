"""The stages of encoding on Ray Data: read and cut a clip, encode it, write a shard."""

import hashlib
import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image

from vidgen_ray.addresses import locate, readable
from vidgen_ray.cluster.board import activity, begin
from vidgen_ray.cluster.device_loss import exit_on_device_loss
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
from vidgen_ray.request import derive_seed
from vidgen_ray.schema import Clip
from vidgen_ray.video_io import check_span, read_span

if TYPE_CHECKING:  # diffusers takes seconds, and workers that only read clips do without it
    from vidgen_ray.model.encoders import VideoEncoder

logger = logging.getLogger(__name__)

_HASH_CHUNK_BYTES = 2**22
_SHARD_COLUMNS = ("key", "dtype", "shape", "num_images", "tensors", "picture")


class SpanRow(TypedDict):
    """One span of one video on its way through the stages.

    An error of the clip is put into `reason`, one that ends the run into `fatal`; rows with either
    pass the later stages unchanged, so that no row is lost.
    """

    group: str
    clip: str  # JSON
    key: str
    reused: bool
    reason: str
    fatal: str
    decode_s: float
    encode_s: float
    encoded_at: float
    # From `read_clip` to `EncodeClips`: uint8 [num_frames, height, width, 3], [height, width, 3].
    frames: NotRequired[np.ndarray]
    image: NotRequired[np.ndarray]
    # From there to `write_clips`: the columns of a latents shard.
    dtype: NotRequired[str]
    shape: NotRequired[list[int]]
    num_images: NotRequired[int]
    tensors: NotRequired[bytes]
    picture: NotRequired[bytes]


@dataclass(frozen=True)
class EncodingRun:
    """What every stage needs to know; `committed_keys` is a Ray reference to a set of keys."""

    config: Config
    settings: EncodingSettings
    output: str
    committed_keys: Any
    board: Any


def first_row(group: str, clip: Clip) -> SpanRow:
    """The row of a group of captions before any stage."""
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
    }


def read_clip(row: SpanRow, run: EncodingRun) -> SpanRow:
    """Compute the clip's key; unless that is committed, decode its `frames` and `image`."""
    return _run_stage("read", _read_clip, row, run)


def _read_clip(row: SpanRow, run: EncodingRun) -> SpanRow:
    start = time.perf_counter()
    clip, settings = Clip.model_validate_json(row["clip"]), run.settings
    size: dict[str, Any] = {"height": settings.height, "width": settings.width}
    span: dict[str, Any] = {"start_s": clip.start_s, "end_s": clip.end_s}
    check_span(clip.video, num_frames=settings.num_frames, fps=settings.fps, **span)
    image = read_image(clip.image, fit=settings.image_fit, **size) if clip.image else None
    digest = _hash_video(clip.video, int(run.config.encoding.max_video_gb * 1e9))
    key = settings.latents_key(digest, clip.start_s, image.sha256 if image else "")
    if key in ray.get(run.committed_keys):
        return {**row, "key": key, "reused": True}
    video = read_span(
        clip.video,
        num_frames=settings.num_frames,
        fps=settings.fps,
        prepare=lambda pixels: fit_pixels(pixels, fit=settings.image_fit, **size),
        **span,
    )
    pixels = image.pixels if image else video.frames[0]
    return {
        **row,
        "key": key,
        "frames": video.frames,
        "image": pixels,
        "picture": _png(pixels),  # here, where no GPU waits for it
        "decode_s": time.perf_counter() - start,
    }


class EncodeClips:
    """The stage with the VAE, which loads with the first row that needs it."""

    def __init__(self, run: EncodingRun) -> None:
        self._run = run
        self._encoder: VideoEncoder | None = None

    def __call__(self, row: SpanRow) -> SpanRow:
        """Replace the frames by the columns of a latents shard."""
        if row["reused"]:
            return _without_tensors(row)
        return _run_stage("encode", self._encode, row, self._run)

    def _encode(self, row: SpanRow, run: EncodingRun) -> SpanRow:
        encoder = self._encoder = self._encoder or self._load()
        start = time.perf_counter()
        try:
            with exit_on_device_loss():
                posterior = encoder.encode_video(row["frames"])
                images = encoder.encode_image(
                    row["image"], run.settings.num_noised_images, derive_seed(row["key"])
                )
        except Exception as error:
            if is_out_of_memory(error):
                raise _out_of_memory(run.settings) from error
            raise
        columns = latents_row(row["key"], posterior, images, row["picture"])
        return {
            **_without_tensors(row),
            "encode_s": time.perf_counter() - start,
            "encoded_at": time.time(),
            **columns,  # type: ignore[typeddict-item]
        }

    def _load(self) -> "VideoEncoder":
        from vidgen_ray.model.encoders import VideoEncoder

        config, settings = self._run.config, self._run.settings
        checkpoint, device = open_checkpoint(config.model), _device(config)
        return VideoEncoder(checkpoint, settings.dtype, device, tiling=settings.vae_tiling)


def write_clips(table: pa.Table, run: EncodingRun) -> pa.Table:
    """Commit the clips of a batch of rows as one shard; return the rows without their tensors."""
    encoded = {row["key"]: row for row in table.to_pylist() if row["tensors"]}
    if encoded:
        rows = [{column: row[column] for column in _SHARD_COLUMNS} for row in encoded.values()]
        name, data = shard_bytes(rows)
        ArtifactStore(run.output).write(f"{LATENTS}/{name}", data)
    return table.drop_columns([name for name in _SHARD_COLUMNS if name != "key"])


class EncodePrompts:
    """The stage with the text encoder."""

    def __init__(self, config: Config) -> None:
        from vidgen_ray.model.encoders import PromptEncoder

        checkpoint = open_checkpoint(config.model)
        self._encoder = PromptEncoder(checkpoint, config.encoding.dtype, _device(config))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Turn rows of `key` and `prompt` into rows of a prompts shard."""
        rows = table.to_pylist()
        embeds, counts = self._encoder.encode([row["prompt"] for row in rows])
        encoded = [
            prompt_row(row["key"], row["prompt"], embeds[index], counts[index])
            for index, row in enumerate(rows)
        ]
        return pa.Table.from_pylist(encoded)


def write_prompts(table: pa.Table, output: str) -> pa.Table:
    """Commit a batch of prompts as one shard; return their keys."""
    name, data = shard_bytes(table.to_pylist())
    ArtifactStore(output).write(f"{PROMPTS}/{name}", data)
    return table.select(["key"])


def _run_stage(
    name: str, stage: Callable[[SpanRow, EncodingRun], SpanRow], row: SpanRow, run: EncodingRun
) -> SpanRow:
    """Run `stage` on a row without errors; put an error into the row."""
    if row["fatal"] or row["reason"]:
        return _without_tensors(row)
    try:
        num_deaths = begin(run.board, activity(row["group"], name))
        if num_deaths >= run.config.encoding.max_worker_deaths:
            raise RequestError(f"killed its worker {num_deaths} times in stage {name}")
        return stage(row, run)
    except RequestError as error:
        return {**_without_tensors(row), "reason": str(error)}
    except VidgenError as error:
        return {**_without_tensors(row), "fatal": str(error)}
    except Exception as error:
        logger.exception("%s: %s failed", row["group"], name)
        return {**_without_tensors(row), "reason": f"{type(error).__name__}: {error}"}
    finally:
        run.board.end.remote(row["group"], name)


def _without_tensors(row: SpanRow) -> SpanRow:
    """The row with empty shard columns of the right types, so that all rows fit one table."""
    empty = {"dtype": "", "shape": [0], "num_images": 0, "tensors": b"", "picture": b""}
    kept = {name: value for name, value in row.items() if name not in ("frames", "image")}
    return {**kept, **empty}  # type: ignore[typeddict-item]


def _png(pixels: np.ndarray) -> bytes:
    """The PNG file of a picture, uint8 [height, width, 3]."""
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG", compress_level=1)
    return picture.getvalue()


def _out_of_memory(settings: EncodingSettings) -> ConfigError:
    return ConfigError(
        f"out of memory encoding {settings.num_frames} frames of {settings.height}x"
        f"{settings.width}; set model.vae_tiling=true, or free the GPU"
    )


def _hash_video(address: str, max_bytes: int) -> str:
    """SHA-256 of a video file. Raises RequestError if it is missing or too large."""
    with readable(address, "video"):
        filesystem, path, size = locate(address, "video")
        if size is not None and size > max_bytes:
            raise RequestError(
                f"video: must be at most {max_bytes} bytes, got {size} ({address!r}); cut it into "
                "clips, or raise encoding.max_video_gb"
            )
        digest = hashlib.sha256()
        with filesystem.open(path, "rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _device(config: Config) -> torch.device:
    """The device of a worker; on a CPU it uses all cores."""
    device = choose_device(config.model.device)
    if device.type == "cpu":
        use_cpu(config.model.cpu_threads, config.encoding.dtype)
    return device
