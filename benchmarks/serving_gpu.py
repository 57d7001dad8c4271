"""The 5B behind HTTP on a bare GPU host, without internet: python3 benchmarks/serving_gpu.py

Makes a full-size checkpoint (untrained: the cost is the real one, the pictures are noise), starts
Ray and serve_config.yaml pointed at it, makes one clip end to end, looks for VRAM in /metrics,
posts more and sees whether a second replica starts where there are two GPUs. Prints a table.

    --size tiny     smoke test: a tiny checkpoint, on a CPU where there is no GPU
    --size paused   frames of the full size, a wait in place of the model: what lies between clips
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
RAY_FOLDER = f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray"
FULL = {"num_frames": 49, "height": 480, "width": 720}
IMAGE = ROOT / "data" / "samples" / "brandenburg-gate.jpg"
SPANS = (
    (
        "a clip in its Generator",
        "clip started",
        "clip generated",
        {"load", "text", "image_encode", "denoise", "decode"},
    ),
    ("from made to settled", "clip generated", "clip committed", {"score", "save"}),
)
ROWS: list[tuple[str, str]] = []


def note(what: str, value: str) -> None:
    """A row of the table, also as it happens."""
    ROWS.append((what, value))
    print(f"{what}: {value}", flush=True)


def ask(url: str, method: str = "GET", body: dict[str, Any] | None = None) -> Any:
    """JSON or text of an answer."""
    data = json.dumps(body).encode() if body is not None else None
    request = Request(url, data, {"content-type": "application/json"}, method=method)
    with urlopen(request, timeout=60) as answer:
        content = answer.read()
    return json.loads(content) if answer.headers.get_content_subtype() == "json" else content


def until(condition: Callable[[], Any], timeout_s: float) -> Any:
    """What `condition` gives once it is true, None when it never was."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            value = condition()
        except (HTTPError, URLError, ConnectionError, TimeoutError):
            value = None
        if value:
            return value
        time.sleep(0.5)
    return None


def checkpoint(size: str, folder: Path) -> None:
    """Make the untrained checkpoint, if it is not there."""
    name = "cogvideox_5b_i2v" if size == "full" else "tiny"
    if not (folder / "model_index.json").is_file():
        start = time.monotonic()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        command = [sys.executable, "-m", "vidgen_ray.model.untrained", name, str(folder)]
        subprocess.run([*command, "--device", device], check=True, cwd=ROOT)
        note("checkpoint made", f"{time.monotonic() - start:.0f} s")


def clip_times(server: int) -> tuple[dict[str, dict[str, float]], list[list[str]]]:
    """When each clip was started, made and settled, from the logs; the clips of each Generator."""
    times: dict[str, dict[str, float]] = defaultdict(dict)
    makers: dict[str, list[str]] = defaultdict(list)
    for log in Path(RAY_FOLDER).glob(f"session_*_{server}/logs/serve/replica_*.log"):
        for line in log.read_text().splitlines():
            entry = json.loads(line) if '"message": "clip ' in line else {}
            if "video_id" in entry:
                times[entry["video_id"]][entry["message"]] = entry["timestamp_ns"] / 1e9
                if entry["message"] == "clip generated":
                    makers[log.name].append(entry["video_id"])
    return times, list(makers.values())


def between_clips(url: str, server: int, video_ids: list[str]) -> None:
    """What lies between the end of a Generator's clip and the start of its next one."""
    times, makers = clip_times(server)
    done = [video_id for video_id in video_ids if len(times[video_id]) == 3]  # no clip if it failed
    if not done:
        return
    stages = {video_id: ask(f"{url}/v1/videos/{video_id}")["stage_durations"] for video_id in done}
    for name, begin, end, work in SPANS:
        spans = [times[video_id][end] - times[video_id][begin] for video_id in done]
        beside = [
            span - sum(seconds for stage, seconds in stages[video_id].items() if stage in work)
            for video_id, span in zip(done, spans, strict=True)
        ]
        text = (
            f"{statistics.median(spans):.2f} s, {statistics.median(beside):.2f} s beside its work"
        )
        note(f"{name}, median", text)
    pairs = [pair for made in makers for pair in pairwise(made) if set(pair) <= set(done)]
    if pairs:
        idle = [1000 * (times[b]["clip started"] - times[a]["clip generated"]) for a, b in pairs]
        text = f"median {statistics.median(idle):.0f} ms, most {max(idle):.0f} ms"
        note("Generator idle between clips", text)
        early = sum(times[b]["clip started"] < times[a]["clip committed"] for a, b in pairs)
        note("clips begun before the last one was settled", f"{early} of {len(pairs)}")


def serve_config(options: argparse.Namespace, folder: Path) -> Path:
    """serve_config.yaml, pointed at the checkpoint."""
    tree = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    tree["http_options"]["port"] = options.port
    (app,) = tree["applications"]
    settings: dict[str, Any] = {
        "model.checkpoint": str(options.checkpoint),
        "quality.max_attempts": 1,
    }
    if options.size == "tiny":
        settings |= {"generation.num_frames": 9, "generation.height": 64, "generation.width": 96}
    if options.size == "paused":
        app["import_path"] = "tests.support.paused_model:build_app"
        app["args"]["config"] = "nano"
        settings = {f"generation.{name}": value for name, value in FULL.items()}
        settings |= {"generation.allow_untrained_shape": True, "quality.max_attempts": 1}
    app["args"] |= {"output": str(folder / "out"), "settings": settings}
    generator = next(entry for entry in app["deployments"] if entry["name"] == "Generator")
    generator["autoscaling_config"]["max_replicas"] = max(1, torch.cuda.device_count())
    if not torch.cuda.is_available():
        settings["model.dtype"] = "float32"
        generator["autoscaling_config"]["max_replicas"] = 1 if options.size == "paused" else 2
        for entry in app["deployments"]:
            entry["ray_actor_options"] = {"num_gpus": 0, "num_cpus": 0}
            if entry["name"] == "Scorer":  # the cores are those of the Generator
                entry["autoscaling_config"]["max_replicas"] = 2
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def create(url: str, steps: int) -> str:
    """The id of a new job."""
    import base64

    image = "data:image/jpeg;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
    body = {"prompt": "slow push in", "num_inference_steps": steps, "seed": 7}
    job = ask(f"{url}/v1/videos", "POST", {**body, "input_reference": {"image_url": image}})
    return str(job["id"])


def clip(url: str, steps: int, timeout_s: float) -> dict[str, Any] | None:
    """One clip, end to end, with the progress that a client sees."""
    video_id = create(url, steps)
    seen: list[int] = []

    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = ask(f"{url}/v1/videos/{video_id}")
        if job["progress"] not in seen:
            seen.append(job["progress"])
        return job if job["status"] not in {"queued", "in_progress"} else None

    job: dict[str, Any] | None = until(ended, timeout_s)
    if job is None or job["status"] != "completed":
        note("one clip", f"FAILED: {job and job['error']}")
        return None
    content = ask(f"{url}/v1/videos/{video_id}/content")
    times = job["stage_durations"]
    note("one clip", f"{job['verdict']}, score {job['temporal_score']:.2f}, {len(content)} bytes")
    note("stages, s", ", ".join(f"{name} {value:.2f}" for name, value in times.items()))
    made = sum(value for name, value in times.items() if name not in {"queued", "total"})
    note("platform, besides the stages", f"{1000 * (times['total'] - made):.0f} ms")
    note("progress seen by polls", " ".join(map(str, seen)))
    note("peak memory", f"{job['peak_memory_mb']} MB")
    return job


def metrics(url: str) -> None:
    """VRAM as Prometheus would see it."""

    def lines() -> list[str]:
        text = ask(f"{url}/metrics").decode()
        return [line for line in text.splitlines() if line.startswith(WANTED)]

    until(lambda: all(any(line.startswith(name) for line in lines()) for name in WANTED), 60)
    found = lines()
    for name in WANTED:
        values = [line.rpartition(" ")[2] for line in found if line.startswith(name)]
        note(f"/metrics {name}", ", ".join(values) or "absent (no GPU)")


WANTED = ("ray_vidgen_vram_reserved_gb", "ray_vidgen_peak_vram_gb", "ray_node_gram_used")


def scaling(url: str, steps: int, jobs: int, timeout_s: float) -> list[str]:
    """More jobs than one replica can make at once: how many replicas come. Ids of the jobs."""
    start = time.monotonic()
    video_ids = [create(url, steps) for _ in range(jobs)]
    most = 1

    def all_ended() -> bool:
        nonlocal most
        running = ask(f"{url}/health")["deployments"]["Generator"]["replicas"].get("RUNNING", 0)
        if running > most:
            most = running
            note(f"{running} replicas running after", f"{time.monotonic() - start:.0f} s")
        states = [ask(f"{url}/v1/videos/{video_id}")["status"] for video_id in video_ids]
        return all(state not in {"queued", "in_progress"} for state in states)

    until(all_ended, timeout_s)
    states = [ask(f"{url}/v1/videos/{video_id}")["status"] for video_id in video_ids]
    counts = {state: states.count(state) for state in sorted(set(states))}
    note(f"{jobs} jobs at once", f"{counts} in {time.monotonic() - start:.0f} s, {most} replicas")
    return video_ids


def main() -> int:
    """Exit code 0 when the clip was made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["full", "tiny", "paused"], default="full")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--timeout", type=float, default=500, help="seconds, of each part")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vidgen-serving-"))
    options.checkpoint = (options.checkpoint or folder / "checkpoint").resolve()
    if options.size != "paused":
        checkpoint(options.size, options.checkpoint)
    path = serve_config(options, folder)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    log = folder / "log"
    url = f"http://127.0.0.1:{options.port}"
    start = time.monotonic()
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", str(path), "--address", "local"],
            stdout=stream,
            stderr=stream,
            env=environment,
            cwd=ROOT,
        )
    try:
        if not until(lambda: ask(f"{url}/health")["status"] == "ok", options.timeout):
            print(log.read_text()[-6000:])
            return 1
        note("up, weights loaded", f"{time.monotonic() - start:.0f} s")
        note("GPUs", f"{torch.cuda.device_count()}")
        if clip(url, options.steps, options.timeout) is None:
            print(log.read_text()[-6000:])
            return 1
        if options.size != "paused":
            metrics(url)
        if options.jobs:
            video_ids = scaling(url, options.steps, options.jobs, options.timeout)
            between_clips(url, server.pid, video_ids)
    finally:
        server.terminate()
        server.wait(timeout=60)
    print("\n| | |\n|---|---|")
    for what, value in ROWS:
        print(f"| {what} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
