"""Training on made latents: seconds a step, peak VRAM, FLOP utilisation, and scaling.

    python -m vidgen_ray.model.untrained cogvideox_5b_i2v CHECKPOINT --device cuda
    python benchmarks/training_gpu.py CHECKPOINT OUTPUT --num-workers 1,2,4
    python benchmarks/training_gpu.py CHECKPOINT OUTPUT --size tiny    # a smoke test on a CPU

The path is that of `vidgen train` at rank 128 and batch 1; only the latents are noise. Utilisation
is of the count in `vidgen_ray/training/estimate.py`, with what checkpointing repeats (hardware) and
without (model), against a measured matrix product. Scaling efficiency is the samples a second of n
workers over n times those of one.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path

import torch
from rich.console import Console

from vidgen_ray.config import Config, load_config
from vidgen_ray.encoding import shards
from vidgen_ray.encoding.driver import encoding_settings
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.lora import architecture_of
from vidgen_ray.schema import ClipSource
from vidgen_ray.training.driver import run_training
from vidgen_ray.training.estimate import TransformerShape, step_flop
from vidgen_ray.training.run import TrainingArguments
from vidgen_ray.training.worker import device_facts

NUM_WARM_UP = 4  # steps that are not counted: allocation, tuning, compilation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--num-workers", default="0", help="such as 1,2,4; 0 is in process")
    parser.add_argument("--checkpointing", default="selective", help="such as selective,full")
    parser.add_argument("--no-compile", action="store_true", help="leave the blocks as they are")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=1)
    a = parser.parse_args()
    base: dict[str, object] = {
        "model.checkpoint": str(a.checkpoint),
        "training.max_steps": a.steps,
        "training.num_epochs": 1000,
        "training.batch_size": a.batch_size,
        "training.checkpoint_every_steps": 100_000,
        "training.num_samples": 0,
        "training.compile_blocks": False if a.no_compile else "auto",
    }
    if a.size == "tiny":
        base |= {
            "model.dtype": "float32",
            "generation.num_frames": 9,
            "generation.height": 64,
            "generation.width": 96,
            "encoding.dtype": "float32",
            "training.rank": 4,
            "training.num_gpus_per_worker": 0,
        }
    one: float | None = None
    for mode in a.checkpointing.split(","):
        for num_workers in map(int, a.num_workers.split(",")):
            config = load_config(
                "training/lora_default", {**base, "training.gradient_checkpointing": mode}
            )
            result = measure(config, a.output, num_workers)
            if num_workers <= 1:
                one = result["samples_per_s"]
            if one:
                result["scaling"] = result["samples_per_s"] / (one * max(1, num_workers))
            print(json.dumps({"checkpointing": mode, "workers": num_workers, **result}), flush=True)


def measure(config: Config, output: Path, num_workers: int) -> dict[str, float]:
    """Medians over the steps of a run after its first ones."""
    checkpoint = open_checkpoint(config.model)
    shape = make_latents(config, checkpoint, output / "latents", 8 * max(1, num_workers))
    run = output / "run"
    shutil.rmtree(run, ignore_errors=True)
    arguments = TrainingArguments(str(output / "latents"), str(run), config, num_workers)
    run_training(arguments, Console(stderr=True))
    lines = (run / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    counted = rows[NUM_WARM_UP:]
    step_s = statistics.median(float(row["step_s"]) for row in counted)
    architecture = TransformerShape(**architecture_of(checkpoint, config.training, *shape))
    hardware = sum(step_flop(architecture, config.training))
    plain = config.training.model_copy(update={"gradient_checkpointing": "none"})
    rate = device_facts(config, 1).matmul_flops
    return {
        "step_s": step_s,
        "slowest_step_s": max(float(row["step_s"]) for row in counted),
        "samples_per_s": statistics.median(float(row["samples_per_s"]) for row in counted),
        "peak_vram_gb": max(float(row["peak_vram_gb"] or 0) for row in rows),
        "tflop": hardware / 1e12,
        "hardware_utilisation": hardware / step_s / rate,
        "model_utilisation": sum(step_flop(architecture, plain)) / step_s / rate,
        "matmul_tflops": rate / 1e12,
    }


def make_latents(
    config: Config, checkpoint: Checkpoint, folder: Path, num_clips: int
) -> tuple[int, int, int]:
    """Latents of noise in the right shape, as `vidgen encode` lays them out; T, h, w of them."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = encoding_settings(config, checkpoint)
    vae = json.loads((checkpoint.folder / "vae" / "config.json").read_text())
    text = json.loads((checkpoint.folder / "transformer" / "config.json").read_text())
    shape = ((settings.num_frames - 1) // 4 + 1, settings.height // 8, settings.width // 8)
    dtype, channels = getattr(torch, settings.dtype), vae["latent_channels"]
    source = ClipSource(dataset="noise", licence="none needed")
    entries, latents, prompts = [], [], []
    for prompt in ["", *(f"noise {index}" for index in range(num_clips))]:
        embeds = torch.randn(text["max_text_seq_length"], text["text_embed_dim"]).to(dtype)
        prompts.append(shards.prompt_row(settings.prompt_key(prompt), prompt, embeds, 3))
        if not prompt:
            continue
        posterior = torch.randn(2 * channels, *shape).to(dtype)
        images = torch.randn(3, 2 * channels, *shape[1:]).to(dtype)
        key = settings.latents_key(prompt, None, "")
        latents.append(shards.latents_row(key, posterior, images, b""))
        entry = {"id": prompt, "prompt": prompt, "outcome": "encoded", "latents": key}
        prompt_key = settings.prompt_key(prompt)
        entries.append(shards.ClipEntry(**entry, prompt_key=prompt_key, source=source))
    for kind, rows in ((shards.LATENTS, latents), (shards.PROMPTS, prompts)):
        name, data = shards.shard_bytes(rows)
        (folder / kind).mkdir(parents=True)
        (folder / kind / name).write_bytes(data)
    (folder / shards.SETTINGS_NAME).write_text(settings.model_dump_json())
    (folder / shards.CLIPS_NAME).write_bytes(shards.entries_bytes(entries))
    return shape


if __name__ == "__main__":
    main()
