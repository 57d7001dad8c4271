"""A batch on object storage; batch, encoding and training as Ray jobs on a cluster."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
import yaml

from tests.support.tiny_model import LENIENT
from vidgen_ray.config import load_config
from vidgen_ray.schema import GenerationRecord, RunStatus, Video
from vidgen_ray.video_io import write_video

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def sets(tiny_overrides: dict[str, object]) -> list[str]:
    values = {**tiny_overrides, **LENIENT}
    settings = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return [word for setting in settings for word in ("--set", setting)]


def test_jobs_images_and_results_on_s3(photo: Path, sets: list[str], s3_bucket: str) -> None:
    s3 = fsspec.filesystem("s3", skip_instance_cache=True)
    s3.put_file(str(photo), f"{s3_bucket}/photos/photo.png")
    row = {"id": "a", "image": "photos/photo.png", "prompt": "push in"}
    s3.pipe_file(f"{s3_bucket}/jobs.jsonl", (json.dumps(row) + "\n").encode())
    words = ["batch", f"s3://{s3_bucket}/jobs.jsonl", "--output", f"s3://{s3_bucket}/run"]
    command = [sys.executable, "-m", "vidgen_ray", *words, "--config", "nano", *sets]
    for made in (1, 0):
        result = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"{made} of 1 clips to make" in result.stdout
    s3.invalidate_cache()
    names = {name.split("/", 2)[2] for name in s3.find(f"{s3_bucket}/run")}
    assert {
        "a.mp4", "a.json", "manifest.jsonl", "status.json", "summary.json", "index.html",
        "config.yaml", "thumbnails/a.jpg",
    } <= names  # fmt: skip
    record = GenerationRecord.model_validate_json(s3.cat_file(f"{s3_bucket}/run/a.json"))
    assert record.artifact is not None
    assert s3.info(f"{s3_bucket}/run/a.mp4")["size"] == record.artifact.size_bytes


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray head of its own, as an operator starts one; the dashboard's address."""
    ports = free_ports(3)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--num-cpus=2"]
    command += [f"--ray-client-server-port={ports[2]}", "--dashboard-host=127.0.0.1"]
    head = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **AUTHENTICATION},
    )
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        wait_for_dashboard(ports[1], head)
        yield address
    finally:
        processes = psutil.Process(head.pid).children(recursive=True)
        head.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=20)
        for process in alive:
            process.kill()
        head.wait(timeout=20)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for_dashboard(port: int, head: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert head.poll() is None, head.stdout.read() if head.stdout else ""
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError("the dashboard did not come up")


def ray_job(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", *words]
    environment = {**os.environ, "RAY_ADDRESS": address, **AUTHENTICATION}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment, cwd=REPOSITORY
    )


def submit_first(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The first job of a cluster: its agents may come up later than its dashboard."""
    end = time.monotonic() + 90
    while True:
        submitted = ray_job(address, "submit", *words)
        if "No available agent" not in submitted.stdout + submitted.stderr:
            return submitted
        assert time.monotonic() < end, submitted.stderr
        time.sleep(2)


def test_a_batch_as_a_ray_job_can_be_stopped_and_gone_on_with(
    cluster: str, photo: Path, sets: list[str], tmp_path: Path
) -> None:
    rows = [{"id": name, "image": str(photo), "prompt": "push in"} for name in "abc"]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    entrypoint = [sys.executable, "jobs/batch.py", str(tmp_path / "jobs.jsonl")]
    entrypoint += ["--output", str(output), "--config", "nano", *sets]
    entrypoint += ["--num-inference-steps", "150"]

    submitted = submit_first(cluster, "--no-wait", "--working-dir", ".", "--", *entrypoint)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    found = re.search(r"raysubmit_\w+", submitted.stdout)
    assert found, submitted.stdout
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if (output / "a.json").exists() and any(
            clip.step > 2 for clip in read_status(output).running
        ):
            break
        time.sleep(0.1)
    stopped = ray_job(cluster, "stop", found[0])
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert read_status(output).state == "interrupted"

    finished = ray_job(cluster, "submit", "--working-dir", ".", "--", *entrypoint)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.search(r"already there: [12] accepted", finished.stdout)
    relative = [*entrypoint]
    relative[relative.index("--output") + 1] = "out"
    refused = ray_job(cluster, "submit", "--working-dir", ".", "--", *relative)
    assert "output: must be an absolute path or a URL in a Ray job" in refused.stdout
    lines = (output / "manifest.jsonl").read_text().splitlines()
    records = [GenerationRecord.model_validate_json(line) for line in lines]
    assert [(record.id, record.status) for record in records] == [(n, "accepted") for n in "abc"]


def test_a_validation_as_a_ray_job(
    cluster: str, photo: Path, tiny_adapter: Path, sets: list[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(f"prompts: [{{id: a, image: {photo}, prompt: slow push in}}]\n")
    entrypoint = [sys.executable, "jobs/validate.py", "--lora", str(tiny_adapter)]
    entrypoint += ["--prompts", str(prompts), "--output", str(tmp_path / "out")]
    entrypoint += ["--config", "nano", *sets]
    done = submit_first(cluster, "--working-dir", ".", "--", *entrypoint)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: 1 of 1 prompts pass" in done.stdout
    assert json.loads((tmp_path / "out/validation.json").read_text())["passed"]


def read_status(output: Path) -> RunStatus:
    return RunStatus.model_validate_json((output / "status.json").read_text())


def test_encoding_and_training_as_ray_jobs(
    cluster: str, tiny_training: dict[str, object], tmp_path: Path
) -> None:
    for index in range(2):
        y, x, t = np.mgrid[0:64, 0:96, 0:9]
        frames = np.stack([x * 2 + 5 * t, y * 3, x + 80 * index], -1).transpose(2, 0, 1, 3)
        write_video(tmp_path / f"{index}.mp4", Video(frames.astype(np.uint8), 8.0))
    source = {"dataset": "test", "licence": "CC0"}
    rows = [
        {"id": str(index), "video": f"{index}.mp4", "prompt": "pan left", "source": source}
        for index in range(2)
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = {**tiny_training, "training.num_epochs": 2, "training.num_samples": 1}
    tree = load_config("training/lora_nano", overrides).model_dump(mode="json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    config = ["--config", str(tmp_path / "config.yaml")]
    latents, output = str(tmp_path / "latents"), tmp_path / "lora"
    encode = ["jobs/encode.py", str(tmp_path / "metadata.jsonl"), "--output", latents, *config]
    encoded = submit_first(cluster, "--working-dir", ".", "--", sys.executable, *encode)
    assert encoded.returncode == 0, encoded.stdout + encoded.stderr
    assert "2 rows: 2 encoded, 0 reused" in encoded.stdout
    train = ["jobs/train.py", "--latents", latents, "--output", str(output), *config]
    workers = ["--num-workers", "2"]
    trained = ray_job(
        cluster, "submit", "--working-dir", ".", "--", sys.executable, *train, *workers
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert (output / "adapter_final" / "pytorch_lora_weights.safetensors").is_file()
    assert (output / "samples" / "epoch-0002-1.mp4").is_file()
