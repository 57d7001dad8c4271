"""A Generator begins its next clip while the last one is scored, encoded and stored."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_process import Server, application, picture
from test_api import ended, post
from test_jobs import new

from tests.support.tiny_model import LENIENT
from vidgen_ray.config import load_config
from vidgen_ray.generation.commit import AttemptResult
from vidgen_ray.request import resolve_request
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.dispatcher import Dispatcher
from vidgen_ray.serving.deployments.generator import Generator
from vidgen_ray.serving.deployments.scorer import Scorer
from vidgen_ray.serving.deployments.tasks import ClipTask, GeneratorResult
from vidgen_ray.serving.queue.store import JobStore


class Handle:
    """In place of Serve's handle: `remote` starts the call in this process."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> "asyncio.Task[Any]":
        work: Coroutine[Any, Any, Any] = self._call(*arguments)
        return asyncio.create_task(work)


class Deployment:
    """What the Dispatcher sees of a deployment."""

    def __init__(self, **calls: Any) -> None:
        for name, call in calls.items():
            setattr(self, name, Handle(call))


@pytest.mark.usefixtures("ray_cluster")  # for the metrics
def test_the_next_clip_is_made_while_the_last_one_is_scored(
    tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    settings = {**tiny_overrides, **LENIENT}
    args = {"config": "nano", "settings": settings, "output": str(tmp_path / "out")}
    arguments = ServingArguments.model_validate({**args, "database": f"sqlite:///{tmp_path}/j.db"})
    config = load_config("nano", settings)
    (tmp_path / "photo.png").write_bytes(picture())
    store = JobStore(str(arguments.database))
    fields = {"image": str(tmp_path / "photo.png"), "prompt": "push in", "num_inference_steps": 2}
    for job_id in ("a", "b"):
        request = resolve_request({"id": job_id, **fields}, config).model_dump_json()
        store.add(new(job_id, request=request), max_queued=9)
    order: list[str] = []

    async def scenario() -> None:
        one_at_a_time = asyncio.Lock()  # max_ongoing_requests: 1
        both_made = asyncio.Event()
        generator, scorer = Generator(arguments, config), Scorer(arguments, config.quality)

        async def generate(task: ClipTask) -> GeneratorResult | None:
            async with one_at_a_time:
                made = await generator.generate(task)
            order.append(f"made {task.job_id}")
            if len(order) == 2:
                both_made.set()
            return made

        async def commit_or_retry(made: GeneratorResult) -> AttemptResult | None:
            await both_made.wait()  # never, where the Generator waits for the Scorer
            result = await scorer.commit_or_retry(made)
            order.append("committed")
            return result

        dispatcher = Dispatcher(
            arguments,
            Deployment(generate=generate),  # type: ignore[arg-type]
            Deployment(commit_or_retry=commit_or_retry),  # type: ignore[arg-type]
        )
        async with asyncio.timeout(60):
            while not all(job.has_ended for job in store.get_many(["a", "b"]).values()):
                await asyncio.sleep(0.05)
        await dispatcher.__del__()

    asyncio.run(scenario())
    assert order == ["made a", "made b", "committed", "committed"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_so_it_is_through_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAUSED_STEP_S", "0.05")
    settings = {
        "generation.height": 480,
        "generation.width": 720,
        "generation.num_frames": 33,
        "generation.allow_untrained_shape": True,
        "quality.max_attempts": 1,
    }
    app = application("vidgen", "/", {"settings": settings, "output": str(tmp_path / "out")})
    app["import_path"] = "tests.support.paused_model:build_app"
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    server = Server(tmp_path, [app])
    try:
        server.start()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            video_ids = [post(client, num_inference_steps=2).json()["id"] for _ in range(3)]
            for video_id in video_ids:
                assert ended(client, video_id, 120)["status"] == "completed"
        begun, committed = (
            {entry["video_id"]: entry["timestamp_ns"] for entry in server.entries(message)}
            for message in ("clip started", "clip committed")
        )
        for before, after in pairwise(video_ids):
            assert begun[after] < committed[before]
    finally:
        server.stop()


@pytest.mark.thorough
def test_only_the_generator_needs_torch() -> None:
    code = (
        "import sys\n"
        "from vidgen_ray.serving import app\n"
        "from vidgen_ray.serving.deployments import dispatcher, ingress, scorer\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
