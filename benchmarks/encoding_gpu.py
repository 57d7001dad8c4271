"""Encoding through Ray Data against a bare loop that calls VAE and T5 on tensors on the device.

    python -m vidgen_ray.model.untrained cogvideox_5b_i2v CHECKPOINT --device cuda
    python benchmarks/encoding_gpu.py CHECKPOINT OUTPUT
    python benchmarks/encoding_gpu.py CHECKPOINT OUTPUT --size tiny    # a smoke test on a CPU

The clips are made, by all cores at once: H.264 of 61 frames at 10 fps and 1.5 times the size that
the model takes, so that decoding, resampling and cropping are what they would be. Both encode the
same clips, prompts and noised images. The rate through Ray Data is that of the steady state, as
`vidgen encode` reports it (without the first quarter of the clips), plus the prompts'; the whole
run with the start of Ray and the workers is told beside it. Each figure is printed as soon as it is
there, with the seconds since the start.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vidgen_ray.config import Config, load_config
from vidgen_ray.datasets.metadata import write_metadata
from vidgen_ray.encoding.driver import EncodingArguments, run_encoding
from vidgen_ray.encoding.result import EncodingSummary
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.device import choose_device, num_cores
from vidgen_ray.model.encoders import PromptEncoder, VideoEncoder
from vidgen_ray.schema import Clip, ClipSource, Video
from vidgen_ray.video_io import write_video

SOURCE = ClipSource(dataset="made", licence="none needed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--num-clips", type=int, default=48)
    parser.add_argument("--num-bare-clips", type=int, default=6)
    parser.add_argument("--num-gpus-per-worker", default="1", help="such as 1,0.5")
    a = parser.parse_args()
    a.num_gpus_per_worker = "0" if a.size == "tiny" else a.num_gpus_per_worker
    start = time.perf_counter()

    def say(**figures: object) -> None:
        print(json.dumps({"at_s": round(time.perf_counter() - start, 1), **figures}), flush=True)

    settings: dict[str, object] = {"model.checkpoint": str(a.checkpoint)}
    if a.size == "tiny":
        settings |= {
            "generation.num_frames": 9,
            "generation.height": 64,
            "generation.width": 96,
            "encoding.dtype": "float32",
            "encoding.max_workers": 1,
        }
    config = load_config("training/lora_default", settings)
    make_clips(config, a.output / "clips", a.num_clips)
    say(clips_made=a.num_clips)
    bare = bare_loop(config, min(a.num_clips, a.num_bare_clips))
    say(bare_clips_per_s=1 / (bare["vae_s"] + bare["text_s"]), **bare)
    for share in filter(None, a.num_gpus_per_worker.split(",")):
        shared = load_config(
            "training/lora_default", {**settings, "encoding.num_gpus_per_worker": float(share)}
        )
        say(num_gpus_per_worker=share, **through_ray(shared, a.output, a.num_clips, bare))


def through_ray(
    config: Config, output: Path, num_clips: int, bare: dict[str, float]
) -> dict[str, float | None]:
    """What `vidgen encode` takes, beside the seconds of the bare loop."""
    latents = output / f"latents-{time.time_ns()}"
    metadata = str(output / "clips" / "metadata.jsonl")
    console = Console(stderr=True)
    run_encoding(EncodingArguments(metadata, str(latents), config), console)
    summary = EncodingSummary.model_validate_json((latents / "summary.json").read_text())
    assert summary.clips_per_s
    assert summary.encode_s
    sizes = [path.stat().st_size for path in (latents / "latents").glob("*.parquet")]
    through_ray_s = 1 / summary.clips_per_s + bare["text_s"]
    return {
        "ray_clip_s": 1 / summary.clips_per_s,
        "ray_of_bare": (bare["vae_s"] + bare["text_s"]) / through_ray_s,
        "gpu_busy": summary.encode_s * summary.clips_per_s,
        "encode_s": summary.encode_s,
        "decode_core_s": summary.decode_s,
        "prompts_wall_s": summary.prompts_wall_s,
        "wall_s": summary.wall_s,
        "whole_run_of_bare": num_clips * (bare["vae_s"] + bare["text_s"]) / summary.wall_s,
        "shard_mb": statistics.median(sizes) / 1e6,
    }


def make_clips(config: Config, folder: Path, num_clips: int) -> None:
    """Videos of moving waves and grain, and their metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.mp4" for index in range(num_clips)]
    with ThreadPoolExecutor(num_cores()) as pool:  # numpy and the encoder release the GIL
        list(pool.map(lambda index: make_clip(config, paths[index], index), range(num_clips)))
    clips = [
        Clip(
            id=path.stem,
            video=str(path.resolve()),
            prompt=f"camera pans left over the harbour, scene {path.stem}",
            source=SOURCE,
        )
        for path in paths
    ]
    write_metadata(str(folder / "metadata.jsonl"), clips)


def make_clip(config: Config, path: Path, seed: int) -> None:
    """One video, unless it is there."""
    if path.exists():
        return
    shape = config.generation
    height, width = shape.height * 3 // 2, shape.width * 3 // 2
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    grain = np.random.default_rng(seed).integers(0, 40, (height, width, 3), np.uint8)
    frames = np.stack(
        [
            np.stack([x / 3 + 5 * t, y / 2 + seed * 9, x - y + 3 * t], -1).astype(np.uint8) // 2
            + np.roll(grain, 3 * t, axis=1)
            for t in range(round(shape.num_frames * 10 / shape.fps))
        ]
    )
    write_video(path, Video(frames, 10.0))


@torch.inference_mode()
def bare_loop(config: Config, num_clips: int) -> dict[str, float]:
    """Seconds a clip in the VAE, with its images, and a prompt in T5; inputs are on the device."""
    checkpoint = open_checkpoint(config.model)
    device = choose_device(config.model.device)
    encoding, shape = config.encoding, config.generation
    dtype = getattr(torch, encoding.dtype)
    tiling = config.model.vae_tiling is True
    vae = VideoEncoder(checkpoint, encoding.dtype, device, tiling=tiling)._vae
    pixels = torch.rand(1, 3, shape.num_frames, shape.height, shape.width, device=device)
    pixels = (2 * pixels - 1).to(dtype)

    def encode_clip() -> Any:
        vae.encode(pixels)
        for _ in range(1 + encoding.num_noised_images):
            vae.encode(pixels[:, :, :1])

    vae_s = seconds_each(encode_clip, num_clips, device)
    text = PromptEncoder(checkpoint, encoding.dtype, device)
    batch = encoding.prompts_per_batch
    ids = torch.ones(batch, text.num_tokens, dtype=torch.long, device=device)
    text_s = seconds_each(lambda: text._encoder(ids), -(-num_clips // batch), device) / batch
    return {"vae_s": vae_s, "text_s": text_s}


def seconds_each(work: Any, count: int, device: torch.device) -> float:
    """Mean seconds of a call, after two that warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work(), work(), wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
