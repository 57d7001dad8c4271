"""A store or output that fails is named, nothing is generated in vain, and nothing is lost."""

import asyncio
import contextlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from in_process import client_of, make_context
from test_dispatcher import Deployment
from test_jobs import add, lease, new

from vidgen_ray.errors import ArtifactError, StoreError
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments import dispatcher as dispatcher_module
from vidgen_ray.serving.deployments.dispatcher import Dispatcher
from vidgen_ray.serving.http.context import Context
from vidgen_ray.serving.queue import storage
from vidgen_ray.serving.queue.store import JobStore


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(f"sqlite:///{tmp_path}/jobs.db")


def test_a_removed_sqlite_file_refuses_jobs_until_it_is_back(
    store: JobStore, tmp_path: Path
) -> None:
    add(store, "a")
    aside = tmp_path / "aside"
    aside.mkdir()
    for path in tmp_path.glob("jobs.db*"):
        path.rename(aside / path.name)
    for _ in range(2):
        with pytest.raises(StoreError, match="its file is there"):
            add(store, "lost")
        with pytest.raises(StoreError):
            store.get("a")
    assert not (tmp_path / "jobs.db").exists()
    for path in aside.glob("jobs.db*"):
        path.rename(tmp_path / path.name)
    add(store, "b")
    assert store.existing(["a", "b", "lost"]) == {"a", "b"}


def test_a_replaced_sqlite_file_is_the_one_that_is_used(store: JobStore, tmp_path: Path) -> None:
    add(store, "a")
    with store._database.write() as connection:
        connection.exec_driver_sql("SELECT 1")
    other = JobStore(f"sqlite:///{tmp_path}/other.db")
    add(other, "z")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (tmp_path / f"jobs.db{suffix}").unlink()
            shutil.copy(tmp_path / f"other.db{suffix}", tmp_path / f"jobs.db{suffix}")
    assert store.existing(["a", "z"]) == {"z"}
    add(store, "b")
    assert JobStore(f"sqlite:///{tmp_path}/jobs.db").existing(["b", "z"]) == {"b", "z"}


@pytest.fixture
def context(tmp_path: Path, tiny_overrides: dict[str, object]) -> Context:
    return make_context(tmp_path, settings=tiny_overrides)


def problems(context: Context) -> list[str]:
    """What /health names after one round of probes."""

    async def probe() -> list[str]:
        context.health._storage_problems = await context.health._storage.problems({})
        counts = context.health._counts()
        context.health.health = context.health._judged({}, counts, context.health._reports())
        async with client_of(context) as client:
            answer = (await client.get("/health")).json()
        found: list[str] = answer["problems"]
        return found

    return asyncio.run(probe())


def test_health_names_what_fails(context: Context, tmp_path: Path) -> None:
    assert problems(context) == []
    output = tmp_path / "out"
    output.rename(tmp_path / "gone")
    output.write_text("no folder")
    assert problems(context) == ["output: cannot be written; the log says why"]
    output.unlink()
    (tmp_path / "gone").rename(output)
    assert problems(context) == []
    (tmp_path / "jobs.db").rename(tmp_path / "aside.db")
    (problem,) = problems(context)
    assert problem == "database: cannot be written; the log says why"
    (tmp_path / "aside.db").rename(tmp_path / "jobs.db")
    assert problems(context) == []


def test_health_names_a_nearly_full_disk_and_a_broken_keys_file(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MIN_FREE_BYTES", 1 << 60)
    context.keys_file.problem = "api_keys_file: x"
    assert problems(context) == [
        "output: cannot be written; the log says why",
        "api_keys_file: cannot be used; the keys read before stay valid",
    ]


def test_health_shows_the_tasks_of_the_dispatcher(context: Context) -> None:
    context.store.reports.write("dispatcher-1", {"sweep": "failed (X); it was started again"})
    assert problems(context) == ["dispatcher.sweep: failed (X); it was started again"]


@pytest.mark.usefixtures("ray_cluster")  # for the metrics
def test_dispatch_pauses_while_clips_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_PROBE_S", 0.2)
    args = {"config": "nano", "output": str(tmp_path / "out"), "lease_s": 1, "max_tries": 2}
    arguments = ServingArguments.model_validate({**args, "database": f"sqlite:///{tmp_path}/j.db"})
    store = JobStore(str(arguments.database))
    for number in range(3):
        store.add(new(f"j{number}"), max_queued=9)
    is_full = threading.Event()
    is_full.set()
    generated: list[str] = []
    write = storage.ArtifactStore.write

    def full(self: Any, name: str, data: bytes) -> None:
        if is_full.is_set() and len(data) > 1000:  # small files still fit
            raise ArtifactError("output: no space left")
        write(self, name, data)

    monkeypatch.setattr(storage.ArtifactStore, "write", full)

    async def generate(task: Any) -> Any:
        generated.append(task.job_id)
        return task.job_id

    async def commit(_: Any) -> Any:
        if is_full.is_set():
            raise ArtifactError("output: no space left")
        raise asyncio.CancelledError

    async def scenario() -> int:
        deployments = [Deployment(generate=generate), Deployment(commit_or_retry=commit)]
        dispatcher = Dispatcher(arguments, *deployments)  # type: ignore[arg-type]
        await asyncio.sleep(5)
        while_full = len(generated)
        assert {job.status for job in store.get_many(["j0", "j1", "j2"]).values()} == {"queued"}
        assert {job.tries for job in store.get_many(["j0", "j1", "j2"]).values()} == {0}
        is_full.clear()
        async with asyncio.timeout(20):
            while len(generated) == while_full:
                await asyncio.sleep(0.1)
        await dispatcher.__del__()
        return while_full

    # Each was tried once before it was known; without the pause each is made three times a second.
    assert asyncio.run(scenario()) <= 6


@pytest.mark.usefixtures("ray_cluster")  # for the metrics
def test_a_job_whose_end_could_not_be_stored_is_made_once_the_store_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"config": "nano", "output": str(tmp_path / "out"), "lease_s": 1}
    arguments = ServingArguments.model_validate({**args, "database": f"sqlite:///{tmp_path}/j.db"})
    store = JobStore(str(arguments.database))
    store.add(new("a"), max_queued=9)
    generated: list[str] = []

    async def generate(task: Any) -> Any:
        generated.append(task.job_id)
        if len(generated) == 1:
            (tmp_path / "j.db").rename(tmp_path / "aside.db")
            raise StoreError("database: away")
        return None

    async def scenario() -> None:
        dispatcher = Dispatcher(arguments, Deployment(generate=generate), Deployment())  # type: ignore[arg-type]
        while not generated:
            await asyncio.sleep(0.05)
        await asyncio.sleep(2)
        (tmp_path / "aside.db").rename(tmp_path / "j.db")
        async with asyncio.timeout(25):
            while len(generated) < 2:
                await asyncio.sleep(0.1)
        await dispatcher.__del__()

    asyncio.run(scenario())


@pytest.mark.slow
def test_ended_jobs_slow_nothing_that_a_request_waits_for(store: JobStore) -> None:
    columns = "id owner status model request http_request_id fingerprint created_at started_at"
    names = f"{columns} ended_at expires_at step num_steps attempt tries".split()
    now = time.time()
    rows = [
        (
            f"video_{number:032x}",
            "desk",
            "completed",
            "nano",
            "{}" * 200,
            "r",
            "f",
            *(now - 100_000 + number + extra for extra in (0, 1, 2, 10**7)),
            4,
            4,
            1,
            1,
        )
        for number in range(100_000)
    ]
    with store._database.write() as connection:
        marks = ",".join("?" * len(names))
        sql = f"INSERT INTO vidgen_jobs ({','.join(names)}) VALUES ({marks})"
        connection.exec_driver_sql(sql, rows)
    add(store, "queued")
    for name, ask in {
        "seconds_per_clip": store.seconds_per_clip,
        "expired": store.expired,
        "count": store.count,
        "count of an owner": lambda: store.count("desk"),
        "oldest_wait_s": store.oldest_wait_s,
        "renew_all": lambda: store.renew_all("d1", 5),
        "lease": lambda: lease(store),
        "page": lambda: store.page("desk", after=None, limit=20, order="desc"),
        "add": lambda: store.add(new(f"n{time.time_ns()}"), max_queued=99, max_queued_per_owner=99),
    }.items():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            ask()
            times.append(time.perf_counter() - start)
        print(f"{name}: {1000 * min(times):.2f} ms")
        assert min(times) < 0.03, name
