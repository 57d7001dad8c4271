"""The Generator without Serve around it: one clip at a time, whatever became of the caller."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table
from serving_process import picture
from test_jobs import lease, new

from tests.support.tiny_model import LENIENT
from vidgen_ray.config import load_config
from vidgen_ray.errors import ConfigError
from vidgen_ray.generation.attempt import FailedAttempt, GeneratedAttempt
from vidgen_ray.schema import resolve_request
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments import generator as generator_module
from vidgen_ray.serving.deployments.generator import Generator
from vidgen_ray.serving.deployments.tasks import ClipTask, GeneratorResult
from vidgen_ray.serving.queue.store import JobStore

pytestmark = pytest.mark.usefixtures("ray_cluster")  # for the metrics


class Bench:
    """A Generator and jobs for it."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self.url = f"sqlite:///{folder}/jobs.db"
        self.store = JobStore(self.url)
        self.config = load_config("nano", settings)
        self.photo = folder / "photo.png"
        self.photo.write_bytes(picture())
        args = {"config": "nano", "settings": settings, "database": self.url}
        self.generator = Generator(ServingArguments.model_validate(args), self.config)

    def task(self, job_id: str, steps: int, image: Path | None = None) -> ClipTask:
        """A job that is leased."""
        fields = {"id": job_id, "image": str(image or self.photo), "prompt": "push in"}
        request = resolve_request({**fields, "num_inference_steps": steps}, self.config)
        self.store.add(new(job_id, request=request.model_dump_json()), max_queued=9)
        (job,) = lease(self.store, lease_s=60)
        return ClipTask(job_id, job.lease_token or "", 1, job.request, "r1")

    def step(self, job_id: str) -> int:
        """Steps done so far."""
        job = self.store.get(job_id)
        assert job is not None
        return job.step

    async def until_step(self, job_id: str, step: int) -> None:
        """Wait until a step is done."""
        while self.step(job_id) < step:
            await asyncio.sleep(0.01)


@pytest.fixture
def bench(tmp_path: Path, tiny_overrides: dict[str, object]) -> Bench:
    return Bench(tmp_path, {**tiny_overrides, **LENIENT})


def test_the_next_clip_waits_until_a_left_one_has_stopped(bench: Bench) -> None:
    async def scenario() -> GeneratorResult | None:
        first = asyncio.create_task(bench.generator.generate(bench.task("first", 1000)))
        await bench.until_step("first", 3)
        first.cancel()
        second = await bench.generator.generate(bench.task("second", 30))
        stopped_at = bench.step("first")
        assert stopped_at < 900
        with pytest.raises(asyncio.CancelledError):
            await first
        assert bench.step("first") == stopped_at
        return second

    made = asyncio.run(scenario())
    assert made is not None
    assert isinstance(made.attempt, GeneratedAttempt)
    assert made.attempt.generation.video.frames.shape == (9, 64, 96, 3)


def test_a_clip_stops_within_a_step_of_its_cancel(bench: Bench) -> None:
    async def scenario() -> None:
        work = asyncio.create_task(bench.generator.generate(bench.task("a", 1000)))
        await bench.until_step("a", 3)
        bench.store.cancel("a")
        at = bench.step("a")
        assert await work is None
        assert bench.step("a") == at  # a step under a lost lease writes nothing

    start = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - start < 30


def test_what_is_wrong_with_a_clip_is_in_its_record(bench: Bench, tmp_path: Path) -> None:
    task = bench.task("a", 2, image=tmp_path / "gone.png")
    made = asyncio.run(bench.generator.generate(task))
    assert made is not None
    assert isinstance(made.attempt, FailedAttempt)
    assert made.attempt.error.kind == "RequestError"
    other = asyncio.run(bench.generator.generate(bench.task("b", 2)))
    assert other is not None
    assert isinstance(other.attempt, GeneratedAttempt)


def test_a_clip_that_hangs_makes_the_replica_unhealthy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    make = bench.generator._generate

    def hangs(task: ClipTask, left: threading.Event) -> GeneratorResult | None:
        goes_on.wait(60)  # as a kernel that never returns
        return make(task, left)

    async def scenario() -> None:
        work = asyncio.create_task(bench.generator.generate(bench.task("a", 2)))
        while bench.generator._deadline is None:
            await asyncio.sleep(0.01)
        bench.generator.check_health()  # late, but a clip stops itself at a step
        monkeypatch.setattr(generator_module, "_STALLED_S", 0.0)
        with pytest.raises(RuntimeError, match="hangs beyond its time limit"):
            bench.generator.check_health()
        goes_on.set()
        await work
        bench.generator.check_health()

    bench.generator._arguments = bench.generator._arguments.model_copy(
        update={"clip_timeout_s": 0.0}
    )
    monkeypatch.setattr(bench.generator, "_generate", hangs)
    asyncio.run(scenario())


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_ranks_make_clips_and_stop_together(
    tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    bench = Bench(tmp_path, {**tiny_overrides, **LENIENT, "model.gpus_per_clip": 2})

    async def scenario() -> GeneratorResult | None:
        left = asyncio.create_task(bench.generator.generate(bench.task("left", 1000)))
        await bench.until_step("left", 3)
        bench.store.cancel("left")
        assert await left is None
        return await bench.generator.generate(bench.task("whole", 3))

    made = asyncio.run(scenario())
    assert made is not None
    assert isinstance(made.attempt, GeneratedAttempt)
    acceleration = made.attempt.generation.model.acceleration
    assert acceleration is not None
    assert acceleration.ranks == 2
    (group,) = reserved()
    bench.generator.__del__()
    assert group not in reserved()


def test_a_gpu_beside_those_of_the_ranks_is_refused(
    tmp_path: Path, tiny_overrides: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    with pytest.raises(ConfigError, match=r"num_gpus: must be 0 with model\.gpus_per_clip: 2"):
        Bench(tmp_path, {**tiny_overrides, "model.gpus_per_clip": 2})


def reserved() -> list[str]:
    """Placement groups that hold resources."""
    table = placement_group_table()
    return [name for name, group in table.items() if group["state"] != "REMOVED"]
