"""`vidgen plan` answers in one screen, and says what is wrong with what was typed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vidgen_ray.schema import BatchSummary, StageTimes

ROOT = Path(__file__).parents[2]

Plan = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """`vidgen plan` with the rates of a small batch: 90 s of a GPU a clip, no clip rejected."""
    counts = dict.fromkeys(("needs_review", "failed", "quarantined", "pending"), 0)
    summary = BatchSummary(
        run_id="measured",
        config="cogvideox_5b_i2v",
        started_at=datetime.now(UTC),
        finished_at=datetime.now(UTC),
        wall_s=300,
        total=3,
        accepted=3,
        made=3,
        median_stages=StageTimes(load_s=10, denoise_s=88, decode_s=2, score_s=10, save_s=2),
        devices=["NVIDIA H200"],
        **counts,
    )
    path = tmp_path_factory.mktemp("measured") / "summary.json"
    path.write_text(summary.model_dump_json())

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        rates = [] if "--rates" in arguments else ["--rates", str(path)]
        command = [sys.executable, "-m", "vidgen_ray", "plan", "--clips", "1000", *rates]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)

    return run


def test_a_plan_has_gpus_hours_and_cost(plan: Plan) -> None:
    done = plan("--gpu", "h200", "--deadline", "24h", "--price-per-gpu-hour", "3.5")
    assert done.returncode == 0, done.stderr
    # 300 s for the node, 10 s for the weights, 500 clips of 90 s, 12 s to score the last one
    assert "1000 clips in 12.6 h on 2 GPUs: 25.2 GPU-hours, costs 88.13" in done.stdout
    assert "server:" not in done.stdout


def test_a_tighter_deadline_takes_more_gpus(plan: Plan) -> None:
    assert "on 7 GPUs" in plan("--deadline", "4h").stdout


def test_rates_of_every_profile_are_there_outside_the_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vidgen_ray", "plan", "--clips", "10", "--gpu", "h200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--profile", "exact"],
        **{"capture_output": True, "text": True, "timeout": 60},
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "61.7 s of NVIDIA H200" in done.stdout
    assert "other profiles: baseline 96.6 s" in done.stdout


def test_a_server_is_simulated_when_arrivals_are_known(plan: Plan) -> None:
    done = plan("--arrivals-per-hour", "60", "--price-per-gpu-hour", "2")
    assert done.returncode == 0, done.stderr
    assert "(p99)" in done.stdout
    assert "an hour" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "a100"], "gpu: no rate was measured on a100"),
        (["--deadline", "tomorrow"], "deadline: must be a number with s, m, h or d"),
        (["--deadline", "1m"], "deadline: must be at least"),
        (["--rates", "nowhere.json"], "rates: cannot be read: nowhere.json"),
        (["--arrivals-per-hour", "900"], "the queue would grow without bound"),
        (
            ["--arrivals-per-hour", "9", "--min-replicas", "9"],
            "min_replicas: must be at most max_replicas (8), got 9",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_error(plan: Plan, arguments: list[str], says: str) -> None:
    done = plan(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in " ".join(done.stderr.split())


@pytest.mark.parametrize("name", ["batch", "benchmark", "encode", "train", "validate"])
def test_a_job_under_a_python_without_the_packages_is_one_error(name: str) -> None:
    command = [sys.executable, "-S", "-E", str(ROOT / "jobs" / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.match(r"error: .* has no ray, torch, typer: a Ray job runs", done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_5b_is_refused_without_a_gpu_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    from vidgen_ray.cli import main

    clip = ["--image", "photo.jpg", "--prompt", "x", "--output", str(tmp_path / "clip.mp4")]
    monkeypatch.setattr(sys, "argv", ["vidgen", "generate", *clip])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "torch sees no GPU here; use --config nano" in capsys.readouterr().err
