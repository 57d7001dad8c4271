"""Training and encoding survive the death of a rank, of the driver and of all, and lose nothing."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from vidgen_ray.encoding.shards import LATENTS, read_entries, read_keys
from vidgen_ray.schema import Video
from vidgen_ray.video_io import write_video

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

NUM_EPOCHS = 60
SETTINGS = {"num_epochs": NUM_EPOCHS, "checkpoint_every_steps": 10}
WAIT_S = 300


def _config(folder: Path, overrides: dict[str, object]) -> Path:
    """A configuration file of the nano one with `overrides`."""
    from vidgen_ray.config import load_config

    settings = {f"training.{name}": value for name, value in SETTINGS.items()}
    tree = load_config("training/lora_nano", {**overrides, **settings}).model_dump(mode="json")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def _start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vidgen_ray", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _descendants(driver: "subprocess.Popen[str]", name: str = "") -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _await_line(driver: "subprocess.Popen[str]", start: str) -> None:
    assert driver.stdout is not None
    said = []
    for line in driver.stdout:
        said.append(line)
        if line.startswith(start):
            return
    raise AssertionError("".join(said))


def _losses(output: Path) -> list[float]:
    with (output / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def _end(driver: "subprocess.Popen[str]") -> None:
    """Kill the driver and all that it started."""
    for process in [*_descendants(driver), psutil.Process(driver.pid)]:
        try:
            process.kill()
        except psutil.Error:
            continue
    driver.wait(WAIT_S)


@pytest.fixture(scope="module")
def expected(
    tiny_latents: Path, tiny_training: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """The losses of a run that nothing happened to, with as many samples a step."""
    folder = tmp_path_factory.mktemp("expected")
    config = _config(folder, {**tiny_training, "training.gradient_accumulation_steps": 2})
    driver = _start(
        *("train", "--latents", tiny_latents, "--output", folder / "run"),
        *("--config", config, "--num-workers", 0),
    )
    said, _ = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == 0, said
    return _losses(folder / "run")


@pytest.mark.parametrize("victim", ["a rank", "the driver", "all", "sigterm"])
def test_whatever_dies_the_curve_is_that_of_a_whole_run(
    victim: str,
    expected: list[float],
    tiny_latents: Path,
    tiny_training: dict[str, object],
    tmp_path: Path,
) -> None:
    config, output = _config(tmp_path, tiny_training), tmp_path / "run"
    command = (
        *("train", "--latents", tiny_latents, "--output", output),
        *("--config", config, "--num-workers", 2),
    )
    driver = _start(*command)
    _await_line(driver, "step ")
    deadline = time.monotonic() + WAIT_S
    while not list((output / "state").glob("*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not (output / "adapter_final").exists()
    if victim == "a rank":
        ranks = _descendants(driver, "TrainWorker")
        assert len(ranks) == 2
        ranks[1].kill()
        said, _ = driver.communicate(timeout=WAIT_S)
        assert driver.returncode == 0, said
    else:
        if victim == "the driver":
            driver.kill()
            driver.wait(WAIT_S)
        elif victim == "all":
            _end(driver)
        else:
            driver.terminate()
            driver.communicate(timeout=WAIT_S)
            assert driver.returncode == 128 + signal.SIGTERM
        assert not (output / "adapter_final").exists()
        again = _start(*command)
        said, _ = again.communicate(timeout=WAIT_S)
        assert again.returncode == 0, said
    assert (output / "adapter_final" / "pytorch_lora_weights.safetensors").exists()
    assert _losses(output) == pytest.approx(expected, abs=1e-5)


def test_encoding_after_a_kill_makes_no_committed_clip_twice(
    tiny_training: dict[str, object], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(24):
        frames = np.repeat(rng.integers(0, 255, (1, 64, 96, 3), np.uint8), 10, axis=0)
        write_video(tmp_path / f"{index}.mp4", Video(frames, 8.0))
        source = {"dataset": "test", "licence": "CC0"}
        row = {"id": str(index), "video": f"{index}.mp4", "prompt": "static", "source": source}
        rows.append(json.dumps(row))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    config = _config(tmp_path, {**tiny_training, "encoding.clips_per_shard": 2})
    output = tmp_path / "latents"
    command = ("encode", tmp_path / "metadata.jsonl", "--output", output, "--config", config)
    driver = _start(*command)
    deadline = time.monotonic() + WAIT_S
    while len(list((output / LATENTS).glob("*.parquet"))) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    _end(driver)
    assert not (output / "clips.jsonl").exists()
    before = {path: path.stat().st_mtime_ns for path in (output / LATENTS).glob("*.parquet")}
    num_before = len(read_keys(str(output), LATENTS))
    assert 0 < num_before < 24
    again = _start(*command)
    said, _ = again.communicate(timeout=WAIT_S)
    assert again.returncode == 0, said
    outcomes = [entry.outcome for entry in read_entries(str(output))]
    assert (outcomes.count("reused"), outcomes.count("encoded")) == (num_before, 24 - num_before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(read_keys(str(output), LATENTS)) == 24
