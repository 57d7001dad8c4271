"""`vidgen doctor`: tests what a machine needs to generate clips."""

import io
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import ray
import torch

from vidgen_ray.config import Config, ModelConfig
from vidgen_ray.errors import VidgenError
from vidgen_ray.generation.engine import Engine
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.model.acceleration import choose_options
from vidgen_ray.model.checkpoint import is_local, open_checkpoint, why_not_cached
from vidgen_ray.schema import Video
from vidgen_ray.video_io import read_video, write_video


@dataclass(frozen=True)
class Check:
    """A result. `ok` is None for one that is only information."""

    name: str
    ok: bool | None
    finding: str


def examine(config: Config, *, load: bool = True) -> Iterator[Check]:
    """Check this machine for `config`, one thing after another; `load` loads the weights."""
    yield Check("python", True, f"{platform.python_version()} on {platform.platform()}")
    yield from _check_torch(config)
    yield Check("ray", True, ray.__version__)
    yield _check_memory()
    yield _check_codec()
    yield _check_flow()
    weights = check_weights(config.model)
    yield weights
    if load and weights.ok is not False:
        yield from _check_model(config)


def check_weights(model: ModelConfig) -> Check:
    """Whether every file of the checkpoint is on this machine; a hub id can still be downloaded."""
    missing = why_not_cached(model)
    if missing is not None:
        if is_local(model):
            return Check("weights", False, missing)
        finding = f"{model.checkpoint} is not complete on this machine; it will be downloaded"
        return Check("weights", None, f"{finding}, `vidgen prefetch` does it now: {missing}")
    unused = [
        path.name
        for files in open_checkpoint(model, local_files_only=True).weights.values()
        for path in files.unused
    ]
    beside = f"; not loaded, delete the stale files: {', '.join(unused)}" if unused else ""
    return Check("weights", True, f"{model.checkpoint} is on this machine{beside}")


def _check_torch(config: Config) -> Iterator[Check]:
    cuda = torch.version.cuda or "none"
    yield Check("torch", True, f"{torch.__version__}, CUDA {cuda}")
    wants_gpu = config.model.device == "cuda" or config.batch.num_gpus_per_worker > 0
    if not torch.cuda.is_available():
        finding = "none"
        if wants_gpu:
            finding += "; this configuration needs one (try --config nano)"
        yield Check("gpu", False if wants_gpu else None, finding)
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        vram = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB VRAM free"
        yield Check("gpu", True, f"{index}: {name}, {vram}{_utilisation(index)}")


def _utilisation(index: int) -> str:
    """The GPU's utilization; needs the `gpu` extra."""
    try:
        return f", {torch.cuda.utilization(index)} % busy"
    except (ModuleNotFoundError, RuntimeError):
        return ""


def _check_memory() -> Check:
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(".")
    return Check(
        "machine",
        True,
        f"{os.cpu_count()} cores, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB "
        f"memory free, {disk.free / 1e9:.0f} GB free on this disk",
    )


def _check_codec() -> Check:
    """Write and read two frames."""
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.mp4"
            write_video(path, Video(frames, 8))
            num_frames = len(read_video(io.BytesIO(path.read_bytes())).frames)
    except VidgenError as error:
        return Check("codecs", False, str(error))
    return Check("codecs", num_frames == 2, f"H.264 written and read, {num_frames} of 2 frames")


def _check_flow() -> Check:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    try:
        score_video(Video(frames, 8))
    except AttributeError:
        return Check("scoring", False, "this OpenCV has no optflow; install opencv-contrib-python")
    return Check("scoring", True, f"Dual TV-L1 of OpenCV {cv2.__version__}")


def _check_model(config: Config) -> Iterator[Check]:
    try:
        engine = Engine(config)
        defaults = config.generation
        options = choose_options(
            config.model,
            engine.checkpoint,
            engine.device,
            defaults.num_frames * defaults.height * defaults.width,
        )
        seconds = engine.load()
    except VidgenError as error:
        yield Check("model", False, str(error))
        return
    checkpoint = engine.checkpoint
    billions = sum(checkpoint.num_parameters.values()) / 1e9
    trained = "" if checkpoint.trained else ", untrained"
    yield Check(
        "model",
        True,
        f"{checkpoint.source}: {billions:.3g} billion parameters in {options.dtype}{trained}, "
        f"loaded in {seconds:.1f} s, {checkpoint.fingerprint[:19]}",
    )
    tiling = "on" if options.vae_tiling else "off"
    asked = config.model.offload
    yield Check(
        "offload",
        True,
        f"{options.offload} (asked for: {asked}), VAE tiling {tiling}, on {engine.device}",
    )
