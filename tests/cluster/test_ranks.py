"""Ranks in a batch: the same clip as one device, a dead rank costs its clip alone, no leftovers."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from rich.console import Console

from tests.support.tiny_model import LENIENT
from vidgen_ray.batch.driver import BatchArguments, run_batch
from vidgen_ray.cluster.ranks import RankGroup
from vidgen_ray.config import Config, load_config
from vidgen_ray.errors import ClipCancelled, ClipTimeout, EngineError, RequestError
from vidgen_ray.generation.engine import Engine
from vidgen_ray.image_io import read_image
from vidgen_ray.schema import GenerationRecord, GenerationRequest, resolve_request

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def config(tiny_overrides: dict[str, object]) -> Config:
    return load_config("nano", {**tiny_overrides, "model.gpus_per_clip": 2})


def make_request(config: Config, photo: Path, **more: object) -> GenerationRequest:
    return resolve_request(
        {"id": "a", "image": str(photo), "prompt": "slow push in", **more}, config
    )


@pytest.fixture(scope="module")
def group(ray_cluster: object, config: Config):  # type: ignore[no-untyped-def]
    group = RankGroup(config)
    yield group
    group.close()


def image_of(request: GenerationRequest):  # type: ignore[no-untyped-def]
    return read_image(request.image, height=request.height, width=request.width)


@pytest.mark.thorough
def test_a_group_answers_like_an_engine(group: RankGroup, config: Config, photo: Path) -> None:
    request = make_request(config, photo)
    steps: list[tuple[int, int]] = []
    made = group.generate(
        request, lambda done, total: steps.append((done, total)), image=image_of(request)
    )
    alone = Engine(config).generate(request)
    assert np.abs(made.video.frames.astype(int) - alone.video.frames).max() <= 1
    assert made.model.acceleration is not None
    assert made.model.acceleration.ranks == 2
    assert steps[-1] == (3, 3)


@pytest.mark.thorough
def test_ends_that_all_ranks_share_keep_the_group(
    group: RankGroup, config: Config, photo: Path
) -> None:
    group.load()
    pids = [process.pid for process in group.processes]
    long = make_request(config, photo, num_inference_steps=1000)
    image = image_of(long)
    with pytest.raises(ClipCancelled):
        group.generate(long, cancelled=lambda: True, image=image)
    with pytest.raises(ClipTimeout, match=r"took longer than its limit of 0\.5 s"):
        group.generate(long, image=image, timeout_s=0.5)
    with pytest.raises(RequestError, match="num_frames"):
        group.generate(long.model_copy(update={"num_frames": 17}), image=image)
    group.generate(make_request(config, photo), image=image)
    assert [process.pid for process in group.processes] == pids


@pytest.mark.chaos
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
def test_a_rank_that_dies_or_hangs_fails_its_clip_and_is_replaced(
    group: RankGroup, config: Config, photo: Path, how: signal.Signals
) -> None:
    group.load()
    pids = [process.pid for process in group.processes]
    long = make_request(config, photo, num_inference_steps=1000)
    hit = threading.Event()

    def on_step(done: int, _total: int) -> None:
        if not hit.is_set():
            hit.set()
            os.kill(pids[1], how)

    with pytest.raises((EngineError, ClipTimeout)):
        group.generate(long, on_step, image=image_of(long), timeout_s=30)
    assert hit.is_set()
    made = group.generate(make_request(config, photo), image=image_of(long))
    assert made.video.frames.shape == (9, 64, 96, 3)
    assert not set(pids) & {process.pid for process in group.processes}
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], 30)
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.chaos
def test_a_killed_leader_leaves_no_reservation(group: RankGroup, config: Config) -> None:
    group.close()
    leader = ray.remote(num_cpus=0)(RankGroup)
    first = leader.remote(config)
    ray.get(first.load.remote())
    before = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    ray.kill(first)
    time.sleep(1)
    second = leader.remote(config)
    ray.get(second.load.remote())
    time.sleep(2)
    after = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    assert after <= before + 0.01
    ray.get(second.close.remote())


@pytest.mark.chaos
def test_a_batch_goes_on_after_a_rank_was_killed(
    group: RankGroup, config: Config, photo: Path, tmp_path: Path
) -> None:
    group.close()
    lenient = {name.removeprefix("quality."): value for name, value in LENIENT.items()}
    quality = config.quality.model_copy(update={**lenient, "max_attempts": 1})
    config = config.model_copy(update={"quality": quality})
    jobs = tmp_path / "jobs.jsonl"
    row = {"image": str(photo), "prompt": "push in"}
    lines = [{**row, "id": "a", "num_inference_steps": 400}, {**row, "id": "b"}]
    jobs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    killed = threading.Event()
    status = tmp_path / "out" / "status.json"

    def kill_a_rank() -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end and not killed.is_set():
            time.sleep(0.2)
            if not status.exists() or '"stage":"generate"' not in status.read_text().replace(
                " ", ""
            ):
                continue
            ranks = [
                process
                for process in psutil.Process().children(recursive=True)
                if process.cmdline() and process.cmdline()[0].startswith("ray::Rank")
            ]
            if len(ranks) == 2:
                ranks[0].kill()
                killed.set()

    killer = threading.Thread(target=kill_a_rank, daemon=True)
    killer.start()
    arguments = BatchArguments(str(jobs), str(tmp_path / "out"), config, "nano")
    code = run_batch(arguments, Console(quiet=True))
    killer.join(1)
    assert killed.is_set()
    assert code == 3
    manifest = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    records = {r.id: r for r in map(GenerationRecord.model_validate_json, manifest)}
    assert records["a"].status == "failed"
    assert records["a"].error is not None
    assert "rank" in records["a"].error.message
    assert records["b"].status == "accepted"
