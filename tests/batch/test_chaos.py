"""Whatever is killed, a rerun ends with every id there exactly once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.support.tiny_model import LENIENT
from vidgen_ray.schema import GenerationRecord, RunStatus
from vidgen_ray.video_io import read_video

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

IDS = ["a", "b", "c"]


class Batch:
    """`vidgen batch` in a process of its own, over three slow clips."""

    def __init__(self, folder: Path, overrides: dict[str, object]) -> None:
        self.folder = folder
        self.output = folder / "out"
        self._overrides = {
            **overrides,
            **LENIENT,
            "generation.num_inference_steps": 900,
        }
        Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(folder / "photo.png")
        rows = [{"id": clip_id, "image": "photo.png", "prompt": "push in"} for clip_id in IDS]
        (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, *more: str) -> subprocess.Popen[str]:
        settings = [f"{name}={json.dumps(value)}" for name, value in self._overrides.items()]
        sets = [word for setting in [*settings, *more] for word in ("--set", setting)]
        command = [sys.executable, "-m", "vidgen_ray", "batch", str(self.folder / "jobs.jsonl")]
        return subprocess.Popen(
            [*command, "--config", "nano", "--output", str(self.output), *sets],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 240) -> tuple[int, str]:
        said, _ = process.communicate(timeout=timeout_s)
        return process.returncode, said

    def status(self) -> RunStatus | None:
        try:
            return RunStatus.model_validate_json((self.output / "status.json").read_text())
        except FileNotFoundError:
            return None

    def wait_for(self, wanted: Callable[[RunStatus], bool], timeout_s: float = 300) -> RunStatus:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            status = self.status()
            if status and wanted(status):
                return status
            time.sleep(0.05)
        raise TimeoutError(f"never saw the wanted status; the last one is {self.status()}")

    def records(self) -> dict[str, GenerationRecord]:
        lines = (self.output / "manifest.jsonl").read_text().splitlines()
        records = [GenerationRecord.model_validate_json(line) for line in lines]
        assert len({record.id for record in records}) == len(records)
        return {record.id: record for record in records}

    def check_whole(self) -> None:
        records = self.records()
        assert list(records) == IDS
        for clip_id, record in records.items():
            assert record.status == "accepted", record.error
            beside = (self.output / f"{clip_id}.json").read_text()
            assert GenerationRecord.model_validate_json(beside) == record
            assert read_video(self.output / f"{clip_id}.mp4").frames.shape == (9, 64, 96, 3)
        assert {path.stem for path in self.output.glob("*.mp4")} == set(IDS)


@pytest.fixture
def batch(tmp_path: Path, tiny_overrides: dict[str, object]) -> Batch:
    return Batch(tmp_path, tiny_overrides)


def is_generating(status: RunStatus) -> bool:
    return status.state == "running" and any(clip.step > 2 for clip in status.running)


def second_is_generating(status: RunStatus) -> bool:
    return is_generating(status) and status.accepted >= 1


def test_a_killed_driver_leaves_a_run_that_goes_on(batch: Batch) -> None:
    first = batch.start()
    batch.wait_for(second_is_generating)
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    batch.finish(first)
    psutil.wait_procs(children, timeout=60)
    kept = {
        path.name: path.stat().st_mtime_ns
        for path in batch.output.glob("?.mp4")
        if path.with_suffix(".json").exists()
    }
    assert kept
    code, said = batch.finish(batch.start())
    assert code == 0, said
    batch.check_whole()
    for name, modified in kept.items():
        assert (batch.output / name).stat().st_mtime_ns == modified


def test_a_killed_worker_is_replaced_within_the_run(batch: Batch) -> None:
    process = batch.start()
    status = batch.wait_for(second_is_generating)
    os.kill(status.running[0].pid, signal.SIGKILL)
    code, said = batch.finish(process)
    assert code == 0, said
    batch.check_whole()


def test_a_killed_ray_ends_the_run_with_one_error_and_a_rerun_goes_on(batch: Batch) -> None:
    process = batch.start()
    batch.wait_for(second_is_generating)
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    code, said = batch.finish(process)
    assert code == 1, said
    assert "error: Ray " in said
    assert len(said.splitlines()) < 10
    assert "Traceback" not in said
    code, said = batch.finish(batch.start())
    assert code == 0, said
    batch.check_whole()


def test_a_ray_that_is_only_slow_does_not_end_the_run(batch: Batch) -> None:
    process = batch.start()
    batch.wait_for(is_generating)
    (board,) = (
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.cmdline() and child.cmdline()[0].startswith("ray::BoardState")
    )
    board.suspend()
    time.sleep(50)
    board.resume()
    code, said = batch.finish(process)
    assert code == 0, said
    batch.check_whole()


def test_a_request_that_kills_its_worker_is_quarantined_and_the_rest_finishes(
    batch: Batch,
) -> None:
    process = batch.start("batch.max_worker_deaths=2")
    killed: set[int] = set()
    while process.poll() is None:
        status = batch.status()
        for clip in status.running if status and status.state == "running" else []:
            if clip.id == "b" and clip.stage == "generate" and clip.pid not in killed:
                killed.add(clip.pid)
                os.kill(clip.pid, signal.SIGKILL)
        time.sleep(0.05)
    code, said = batch.finish(process)
    assert code == 3, said
    records = batch.records()
    assert records["b"].status == "quarantined"
    assert records["b"].error is not None
    assert records["b"].error.message == "killed its worker 2 times in stage generate"
    assert len(killed) == 2
    assert [records[name].status for name in "ac"] == ["accepted"] * 2
    assert not (batch.output / "b.mp4").exists()


def test_a_signal_stops_the_run_and_leaves_it_resumable(batch: Batch) -> None:
    process = batch.start()
    batch.wait_for(second_is_generating)
    process.send_signal(signal.SIGTERM)
    code, said = batch.finish(process, timeout_s=30)
    assert code == 128 + signal.SIGTERM, said
    assert "run the same command again" in said
    status = batch.status()
    assert status is not None
    assert status.state == "interrupted"
    code, said = batch.finish(batch.start())
    assert code == 0, said
    batch.check_whole()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_is_one_error_and_nothing_half_written_counts(batch: Batch) -> None:
    batch.output.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(batch.output)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        code, said = batch.finish(batch.start())
        assert code == 1, said
        assert "No space left on device" in said
        assert "Traceback" not in said
        for path in batch.output.glob("?.mp4"):
            record = batch.output / f"{path.stem}.json"
            if record.exists():
                assert len(read_video(path).frames) == 9
        subprocess.run(["mount", "-o", "remount,size=64m", str(batch.output)], check=True)
        code, said = batch.finish(batch.start())
        assert code == 0, said
        batch.check_whole()
    finally:
        subprocess.run(["umount", str(batch.output)], check=True)
