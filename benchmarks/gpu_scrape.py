"""Records what a GPU host exports, for tests elsewhere: python -m benchmarks.gpu_scrape FILE.

Two clips of the embedded model are made on the GPU, and a few steps are trained on latents of
noise; the series about GPUs are kept as one page, with names of this host and run replaced.
`--cpu` tries the way without a GPU: what is waited for then is the loss.
"""

import argparse
import json
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import ray
from rich.console import Console

from benchmarks.mixed_load import LENIENT, PHOTO
from benchmarks.training_gpu import make_latents
from vidgen_ray.batch.driver import BatchArguments, run_batch
from vidgen_ray.config import load_config
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.training.driver import run_training
from vidgen_ray.training.run import TrainingArguments

_OF_CLIPS = r"node_(gram|gpus)_\w+|vidgen_(vram|vram_allocated|peak_vram)_gb"
_OF_TRAINING = r"vidgen_train_peak_vram_gb"
_TIMEOUT_S = 300.0

_REPLACED = {
    "GpuUuid": "GPU-0",
    "NodeAddress": "192.0.2.2",
    "SessionName": "session_1",
    "WorkerId": "1",
    "ip": "192.0.2.2",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    num_gpus = 0 if options.cpu else 1
    ray.init(address="local", _system_config={"metrics_report_interval_ms": 1000})
    folder = Path(tempfile.mkdtemp(prefix="vidgen-scrape-"))
    with ThreadPoolExecutor(1) as pool:  # processes that have ended export nothing
        awaited = "vidgen_steps_total" if options.cpu else "vidgen_peak_vram_gb"
        lines = pool.submit(series, awaited, _OF_CLIPS)
        make_clips(folder, num_gpus)
        kept = lines.result()
        awaited = "vidgen_train_loss" if options.cpu else _OF_TRAINING
        lines = pool.submit(series, awaited, _OF_TRAINING)
        train(folder, num_gpus)
        kept += lines.result()
    options.page.write_text("\n".join(kept) + "\n")
    print(f"{len(kept)} lines in {options.page}")


def make_clips(folder: Path, num_gpus: int) -> None:
    """Two clips on one worker."""
    rows = [{"id": f"clip-{n}", "image": str(PHOTO), "prompt": "slow push in"} for n in range(2)]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = {**LENIENT, "batch.num_gpus_per_worker": num_gpus, "quality.max_attempts": 1}
    overrides |= {"generation.num_inference_steps": 4}
    config = load_config("nano", overrides)
    arguments = BatchArguments(str(folder / "jobs.jsonl"), str(folder / "out"), config, "nano")
    run_batch(arguments, Console())


def train(folder: Path, num_gpus: int) -> None:
    """Ten steps on one worker."""
    overrides = {
        "training.max_steps": 10,
        "training.num_samples": 0,
        "training.compile_blocks": False,
        "training.num_gpus_per_worker": num_gpus,
    }
    config = load_config("training/lora_nano", overrides)
    make_latents(config, open_checkpoint(config.model), folder / "latents", 8)
    arguments = TrainingArguments(str(folder / "latents"), str(folder / "lora"), config, 1)
    run_training(arguments, Console())


def series(awaited: str, wanted: str) -> list[str]:
    """The lines of the series that match `wanted`, once the one `awaited` is exported."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    pattern = re.compile(rf"(# (HELP|TYPE) )?ray_({wanted})[ {{]")
    end = time.monotonic() + _TIMEOUT_S
    while f"\nray_{awaited}{{" not in (page := httpx.get(url, trust_env=False).text):
        if time.monotonic() > end:
            raise TimeoutError(f"{awaited}: not within {_TIMEOUT_S:g} s at {url}")
        time.sleep(0.5)
    return [_anonymous(line) for line in page.splitlines() if pattern.match(line)]


def _anonymous(line: str) -> str:
    for label, value in _REPLACED.items():
        line = re.sub(rf'\b{label}="[^"]*"', f'{label}="{value}"', line)
    return line


if __name__ == "__main__":
    main()
