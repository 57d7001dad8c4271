"""Stopped processes, a removed database, revoked keys and hostile requests, while jobs run."""

import random
import signal
import string
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_process import Server, application, picture, until
from test_api import ended, post

from tests.support.tiny_model import LENIENT
from vidgen_ray.serving.http.keys import new_key

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

LONG = 300
NUM_HOSTILE = 2000
_CHECKS = {  # as the shipped files have them
    "Ingress": {"health_check_period_s": 1, "health_check_timeout_s": 3},
    "Dispatcher": {"health_check_period_s": 2, "health_check_timeout_s": 5},
    "Generator": {"health_check_period_s": 5, "health_check_timeout_s": 12},
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A keys file, and the keys of its owners desk and sport."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    (desk, desk_hash), (sport, sport_hash) = new_key(), new_key()
    path.write_text(f"desk: {desk_hash}\nsport: {sport_hash}\n")
    return path, desk, sport


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_overrides: dict[str, object],
    keys: tuple[Path, str, str],
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bad-day")
    args = {
        "settings": {**tiny_overrides, **LENIENT},
        "output": str(folder / "out"),
        "api_keys_file": str(keys[0]),
        "max_queued_jobs": 4000,
    }
    app = application("vidgen", "/", args)
    for deployment in app["deployments"]:
        deployment |= _CHECKS.get(deployment["name"], {})
    running = Server(folder, [app])
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture
def desk(server: Server, keys: tuple[Path, str, str]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {keys[1]}"}
    with httpx.Client(base_url=server.url, timeout=60, headers=headers) as client:
        yield client


def is_answering(client: httpx.Client) -> bool:
    try:
        return client.get("/health", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_stopped_ingress_is_replaced(server: Server, desk: httpx.Client) -> None:
    (ingress,) = server.processes("vidgen:Ingress")
    ingress.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    until(lambda: is_answering(desk), 60, 0.2)
    print(f"a stopped Ingress was replaced after {time.monotonic() - start:.1f} s")
    # The stopped one may be there for a while yet: only SIGKILL ends it.
    assert any(process.pid != ingress.pid for process in server.processes("vidgen:Ingress"))


def test_the_job_of_a_stopped_generator_is_generated_by_another(
    server: Server, desk: httpx.Client
) -> None:
    job = post(desk, num_inference_steps=LONG).json()["id"]
    until(lambda: desk.get(f"/v1/videos/{job}").json()["progress"] > 2)
    (generator,) = server.processes("vidgen:Generator")
    generator.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    until(lambda: desk.get(f"/v1/videos/{job}").json()["status"] == "queued", 60, 0.2)
    print(f"the job of a stopped Generator was free after {time.monotonic() - start:.1f} s")
    until(lambda: not generator.is_running(), 30, 0.2)
    print(f"the stopped Generator was gone after {time.monotonic() - start:.1f} s")
    until(lambda: desk.get(f"/v1/videos/{job}").json()["progress"] > 2, 60, 0.2)
    again_s = time.monotonic() - start
    print(f"its job was generated again after {again_s:.1f} s")
    assert again_s < 60
    assert ended(desk, job, 240)["status"] == "completed"


def test_a_removed_database_loses_and_doubles_nothing(server: Server, desk: httpx.Client) -> None:
    before = [post(desk).json()["id"] for _ in range(3)]
    output = server.folder / "out"
    aside = server.folder / "aside"
    aside.mkdir()
    for path in output.glob("jobs.db*"):
        path.rename(aside / path.name)
    answers = [post(desk) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {503}
    until(lambda: any("database" in p for p in desk.get("/health").json()["problems"]), 30)
    for path in aside.glob("jobs.db*"):
        path.rename(output / path.name)
    after = post(desk).raise_for_status().json()["id"]
    for job in (*before, after):
        assert ended(desk, job, 120)["status"] == "completed"
    until(lambda: desk.get("/health").json()["problems"] == [], 60)


def test_a_revoked_key_stops_within_five_seconds_under_load(
    server: Server, desk: httpx.Client, keys: tuple[Path, str, str]
) -> None:
    path, _, sport = keys
    ends = threading.Event()
    codes: list[tuple[float, int]] = []

    def poll() -> None:
        headers = {"Authorization": f"Bearer {sport}"}
        with httpx.Client(base_url=server.url, timeout=30, headers=headers) as client:
            while not ends.is_set():
                code = client.get("/v1/videos").status_code
                codes.append((time.monotonic(), code))

    threads = [threading.Thread(target=poll) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:1]))
    revoked_at = time.monotonic()
    time.sleep(6)
    ends.set()
    for thread in threads:
        thread.join()
    assert {code for _, code in codes} == {200, 401}
    last = max(at for at, code in codes if code == 200)
    print(f"the revoked key worked for {last - revoked_at:.1f} s")
    assert last - revoked_at < 5
    assert desk.get("/v1/videos").status_code == 200


def test_a_clip_deleted_while_it_is_committed_leaves_nothing(
    server: Server, desk: httpx.Client
) -> None:
    random.seed(7)
    deleted = []
    for _ in range(20):
        job = post(desk, num_inference_steps=2).json()["id"]
        time.sleep(random.uniform(0, 2.5))
        desk.delete(f"/v1/videos/{job}").raise_for_status()
        deleted.append(job)

    def left() -> list[str]:
        names = [str(path) for path in (server.folder / "out").rglob("*") if path.is_file()]
        return [name for name in names if any(job in name for job in deleted)]

    until(lambda: not left(), 60, 1)
    time.sleep(12)
    assert left() == []


def hostile(number: int) -> tuple[str, str, dict[str, Any]]:
    """A request that nobody means well by: method, path and arguments for httpx."""
    chaos = random.Random(number)
    letters = string.printable + "\u00e9\u4e2d\x00\x7f"
    junk = "".join(chaos.choices(letters, k=chaos.randint(0, 200)))
    cut = picture()[: chaos.randint(0, 99)]
    path = chaos.choice(["/v1/videos", "/generate-video", "/v1/videos/x", "/artifacts/x.mp4"])
    path = chaos.choice([path, path + "/", f"/v1/videos/{'%2e%2e%2f' * 4}etc", "/v1/models/%00"])
    method = chaos.choice(["GET", "DELETE", "PUT", "HEAD", "OPTIONS"])
    parses = chaos.random() < 0.6  # most of them reach the parsers of bodies
    if parses:
        method, path = "POST", chaos.choice(["/v1/videos", "/generate-video", "/v1/videos/sync"])
    fields = {
        chaos.choice(["prompt", "seed", "lora", "fields", "size", "webhook_url", "x", "seconds"]): (
            chaos.choice([junk, "[" * 5000, "-1", "1e999", '{"a":' * 900, "https://h:99999/"])
        )
    }
    bodies: list[dict[str, Any]] = [
        {"json": {**fields, "input_reference": {"image_url": junk}}},
        {"content": b"{" * chaos.randint(0, 9000), "headers": {"content-type": "application/json"}},
        {
            "data": fields,
            "files": {"input_reference": ("a.png", cut)},
        },
        {"data": fields, "files": {"input_reference": ("a.png", junk.encode("utf-8", "replace"))}},
        {"content": junk.encode(), "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"headers": {"range": f"bytes={chaos.randint(-9, 9)}-", "x-request-id": "y" * 3000}},
        {"headers": {"origin": "https://evil.example"}, "params": {"limit": junk, "after": junk}},
    ]
    return method, path, chaos.choice(bodies[:5] if parses else bodies)


def test_hostile_requests_get_no_5xx_and_stop_nobody(server: Server, desk: httpx.Client) -> None:
    good = post(desk, num_inference_steps=LONG).json()["id"]
    codes: dict[int, int] = {}
    for number in range(NUM_HOSTILE):
        method, path, arguments = hostile(number)
        try:
            code = desk.request(method, path, **arguments).status_code
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
            continue  # httpx does not send it
        codes[code] = codes.get(code, 0) + 1
        assert code < 500 or code == 503, (method, path, arguments)
    print(codes)
    assert ended(desk, good, 240)["status"] == "completed"
    assert desk.get("/health").json()["problems"] == []
