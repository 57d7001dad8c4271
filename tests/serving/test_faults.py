"""Whatever is killed, every accepted job reaches its end, once."""

import asyncio
import contextlib
import sqlite3
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from serving_process import Server, application, until
from test_api import ended, post

from tests.support.tiny_model import LENIENT
from vidgen_ray.video_io import read_video

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

LONG = 400  # steps: some seconds
NUM_CLIENTS = 1000


@pytest.fixture(scope="module")
def applications(
    tmp_path_factory: pytest.TempPathFactory, tiny_overrides: dict[str, object]
) -> list[dict[str, Any]]:
    settings = {**tiny_overrides, **LENIENT}
    output = str(tmp_path_factory.mktemp("faults") / "out")
    return [application("vidgen", "/", {"settings": settings, "output": output}, num_replicas=2)]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, applications: list[dict[str, Any]]
) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("faulty"), applications)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture
def output(applications: list[dict[str, Any]]) -> Path:
    return Path(applications[0]["args"]["output"])


class Poller:
    """A client that polls a job all the time, and notes every answer that is not 200."""

    def __init__(self, url: str, video_id: str) -> None:
        self.problems: list[str] = []
        self.progress: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(f"{url}/v1/videos/{video_id}",))

    def __enter__(self) -> "Poller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, url: str) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stop.wait(0.05):
                try:
                    answer = client.get(url)
                    self.progress.append(answer.json()["progress"])
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.problems.append(f"{type(error).__name__}: {error}")


def start_long(client: httpx.Client, steps: int = LONG) -> str:
    """A job that has made its first steps."""
    video_id: str = post(client, num_inference_steps=steps).raise_for_status().json()["id"]
    until(lambda: client.get(f"/v1/videos/{video_id}").json()["progress"] > 3)
    return video_id


def check_whole(output: Path, video_id: str) -> None:
    """One clip, one record, and nothing left over."""
    assert read_video(str(output / f"{video_id}.mp4")).frames.shape[0] == 9
    names = sorted(path.name for path in output.rglob(f"{video_id}*"))
    assert names == sorted([video_id, *(f"{video_id}{end}" for end in (".jpg", ".json", ".mp4"))])


def maker_of(server: Server, video_id: str) -> int:
    """The process that makes the clip now."""
    entries = [entry for entry in server.entries("clip started") if entry["video_id"] == video_id]
    return max(entries, key=lambda entry: entry["timestamp_ns"])["process"]


def test_a_killed_generator_is_replaced_and_the_clip_made_once(
    server: Server, client: httpx.Client, output: Path
) -> None:
    video_id = start_long(client)
    with Poller(server.url, video_id) as poller:
        pid = maker_of(server, video_id)
        (doomed,) = [process for process in server.processes("Generator") if process.pid == pid]
        doomed.kill()
        job = ended(client, video_id, 120)
    assert job["status"] == "completed"
    assert not poller.problems
    check_whole(output, video_id)
    committed = [
        entry for entry in server.entries("clip committed") if entry["video_id"] == video_id
    ]
    assert len(committed) == 1
    assert maker_of(server, video_id) != pid


def test_a_killed_dispatcher_is_replaced_and_jobs_go_on(
    server: Server, client: httpx.Client, output: Path
) -> None:
    video_ids = [start_long(client), post(client).json()["id"]]
    with Poller(server.url, video_ids[0]) as poller:
        server.kill("vidgen:Dispatcher")
        video_ids.append(post(client).raise_for_status().json()["id"])
        jobs = [ended(client, video_id, 120) for video_id in video_ids]
    assert [job["status"] for job in jobs] == ["completed"] * 3
    assert not poller.problems
    for video_id in video_ids:
        check_whole(output, video_id)


def test_a_killed_ingress_is_replaced_and_jobs_do_not_notice(
    server: Server, client: httpx.Client, output: Path
) -> None:
    video_ids = [start_long(client), post(client).json()["id"]]
    server.kill("vidgen:Ingress")
    server.wait()
    jobs = [ended(client, video_id, 120) for video_id in video_ids]
    assert [job["status"] for job in jobs] == ["completed"] * 2
    for video_id in video_ids:
        check_whole(output, video_id)
        committed = [entry["video_id"] for entry in server.entries("clip committed")]
        assert committed.count(video_id) == 1


def test_a_request_that_kills_its_worker_fails_and_harms_no_other(
    server: Server, client: httpx.Client
) -> None:
    poison = start_long(client, 1000)
    others = [post(client).json()["id"] for _ in range(3)]
    killed: list[int] = []

    def poisoned() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/videos/{poison}").json()
        if job["status"] == "in_progress" and job["progress"] > 0:
            pid = maker_of(server, poison)
            for process in server.processes("vidgen:Generator"):
                if process.pid == pid and pid not in killed:
                    killed.append(pid)
                    process.kill()
        return job if job["status"] not in {"queued", "in_progress"} else None

    job = until(poisoned, 180)
    assert job is not None
    assert (job["status"], job["error"]["code"]) == ("failed", "worker_died")
    assert len(killed) == 3
    assert {ended(client, other, 120)["status"] for other in others} == {"completed"}


def test_nothing_is_accepted_while_the_store_cannot_be_written(
    server: Server, client: httpx.Client, output: Path
) -> None:
    known = ended(client, post(client).json()["id"])
    num_uploads = len(list((output / "uploads").iterdir()))
    lock = sqlite3.connect(output / "jobs.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        refused = post(client)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "unavailable"
        assert client.get(f"/v1/videos/{known['id']}").json() == known
        assert client.get("/health").status_code == 200
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert len(list((output / "uploads").iterdir())) == num_uploads
    assert client.get("/v1/videos").json()["data"][0]["id"] == known["id"]
    assert ended(client, post(client).json()["id"])["status"] == "completed"


def test_nothing_is_accepted_while_images_cannot_be_kept(
    server: Server, client: httpx.Client, output: Path
) -> None:
    newest = client.get("/v1/videos").json()["data"][0]["id"]
    (output / "uploads").rename(output / "away")
    (output / "uploads").write_text("a file where the folder was")
    try:
        assert post(client).status_code == 503
    finally:
        (output / "uploads").unlink()
        (output / "away").rename(output / "uploads")
    assert client.get("/v1/videos").json()["data"][0]["id"] == newest
    assert ended(client, post(client).json()["id"])["status"] == "completed"


def test_a_redeploy_under_load_loses_and_doubles_nothing(
    server: Server, client: httpx.Client, applications: list[dict[str, Any]], output: Path
) -> None:
    video_ids: list[str] = []
    refused: list[str] = []
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as mine:
            while not stop.wait(0.4):
                try:
                    answer = post(mine, num_inference_steps=60)
                    video_ids.append(answer.raise_for_status().json()["id"])
                except httpx.HTTPError as error:
                    refused.append(str(error))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        until(lambda: len(video_ids) >= 4)
        old = {process.pid for process in server.processes("ServeReplica:vidgen")}
        args = {**applications[0]["args"], "max_queued_jobs": 99}
        server.redeploy([{**applications[0], "args": args}])
        until(lambda: client.get("/health").json()["queue"]["capacity"] == 99, 120)
        until(lambda: not old & {p.pid for p in server.processes("ServeReplica:vidgen")}, 120)
    finally:
        stop.set()
        thread.join()
    server.wait()
    assert not refused
    jobs = [ended(client, video_id, 180) for video_id in video_ids]
    assert {job["status"] for job in jobs} == {"completed"}
    committed = Counter(entry["video_id"] for entry in server.entries("clip committed"))
    assert {committed[video_id] for video_id in video_ids} == {1}
    for video_id in video_ids:
        check_whole(output, video_id)


def test_a_thousand_clients_wait_for_one_clip(server: Server, client: httpx.Client) -> None:
    video_id = start_long(client, 1000)
    answers = asyncio.run(crowd(server.url, video_id, NUM_CLIENTS))
    polls = sorted(answers["polls"])
    p99 = statistics.quantiles(polls, n=100)[98]
    print(f"{len(polls)} polls, median {statistics.median(polls):.3f} s, p99 {p99:.3f} s")
    assert answers["problems"] == []
    assert answers["ends"] == NUM_CLIENTS


def test_after_the_whole_of_ray_was_killed_every_job_ends(
    server: Server, client: httpx.Client, output: Path
) -> None:
    video_ids = [start_long(client), *(post(client).json()["id"] for _ in range(3))]
    waiting = threading.Thread(target=lambda: leave(client))
    waiting.start()
    until(lambda: client.get("/v1/videos").json()["data"][0]["prompt"] == "waits")
    video_ids.append(client.get("/v1/videos").json()["data"][0]["id"])
    server.kill_everything()
    waiting.join()
    with pytest.raises(httpx.TransportError):
        client.get("/health")
    server.start()
    jobs = [ended(client, video_id, 180) for video_id in video_ids]
    assert {job["status"] for job in jobs} == {"completed"}
    for video_id in video_ids:
        check_whole(output, video_id)


def leave(client: httpx.Client) -> None:
    with contextlib.suppress(httpx.HTTPError):
        post(client, "/generate-video", prompt="waits")


async def crowd(url: str, video_id: str, number: int) -> dict[str, Any]:
    """Half of them poll once a second, half follow the events, until the job has ended."""
    polls: list[float] = []
    problems: list[str] = []
    path = f"{url}/v1/videos/{video_id}"
    ends = 0

    async def poll(session: aiohttp.ClientSession, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while True:
            start = time.perf_counter()
            async with session.get(path) as answer:
                job = await answer.json()
                assert answer.status == 200, job
            spent = time.perf_counter() - start
            polls.append(spent)
            if job["status"] not in {"queued", "in_progress"}:
                assert job["status"] == "completed", job
                return
            await asyncio.sleep(max(0.0, 1 - spent))

    async def follow(session: aiohttp.ClientSession, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        async with session.get(f"{path}/events") as answer:
            last = b""
            async for line in answer.content:
                last = line if line.startswith(b"event:") else last
        assert last.strip() == b"event: video.completed", last

    async def guarded(work: Callable[..., Any], session: aiohttp.ClientSession, at: float) -> None:
        nonlocal ends
        try:
            await work(session, at)
            ends += 1
        except Exception as error:
            problems.append(f"{work.__name__}: {type(error).__name__}: {error}")

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        works = [poll if index % 2 else follow for index in range(number)]
        spread = [index / number for index in range(number)]
        await asyncio.gather(
            *(guarded(work, session, at) for work, at in zip(works, spread, strict=True))
        )
    return {"polls": polls, "problems": problems, "ends": ends}
