"""What a hostile page or client sends, against the application in this process."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_process import client_of, make_context
from serving_process import picture
from test_jobs import add, lease, new

from vidgen_ray.serving.http import cluster_metrics
from vidgen_ray.serving.http.context import Context
from vidgen_ray.serving.http.keys import new_key
from vidgen_ray.serving.http.proxy import CleanRequestId, clean
from vidgen_ray.serving.queue.store import JobResult


def ask(
    context: Context, work: Callable[[httpx.AsyncClient], Awaitable[Any]], **options: Any
) -> Any:
    async def run() -> Any:
        async with client_of(context, **options) as client:
            return await work(client)

    return asyncio.run(run())


def status(context: Context, method: str = "GET", path: str = "/v1/videos", **headers: str) -> int:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = ask(context, lambda client: client.request(method, path, headers=names))
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.status_code >= 400:
        assert answer.json()["error"]["code"]
    return int(answer.status_code)


@pytest.fixture
def keyless(tmp_path: Path) -> Context:
    return make_context(tmp_path)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("10.0.0.5:8000", 403),
        ("localhost@evil.example:x", 403),
        ("", 403),
    ],
)
def test_without_keys_only_names_of_this_machine_are_answered(
    keyless: Context, host: str, expected: int
) -> None:
    assert status(keyless, host=host) == expected


def test_allowed_hosts_are_answered_too(tmp_path: Path) -> None:
    context = make_context(tmp_path, allowed_hosts=["video.desk.example"])
    assert status(context, host="video.desk.example:8000") == 200
    assert status(context, host="localhost") == 200
    assert status(context, host="other.example") == 403


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_a_foreign_page_gets_nothing(
    keyless: Context, method: str, headers: dict[str, str]
) -> None:
    assert status(keyless, method, **headers) == 403


def test_own_pages_links_and_configured_origins_work(tmp_path: Path) -> None:
    context = make_context(tmp_path, allowed_origins=["https://cms.example"])
    assert status(context, origin="http://127.0.0.1:8000") == 200
    assert status(context, origin="https://cms.example", sec_fetch_site="cross-site") == 200
    navigation = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert status(context, path="/docs", **navigation) == 200
    assert status(context, "POST", **navigation) == 403


def test_cors_is_off_unless_configured(tmp_path: Path) -> None:
    headers = {"Origin": "https://cms.example", "Access-Control-Request-Method": "POST"}

    def preflight(context: Context) -> httpx.Response:
        answer: httpx.Response = ask(
            context, lambda client: client.options("/v1/videos", headers=headers)
        )
        return answer

    assert "access-control-allow-origin" not in preflight(make_context(tmp_path / "a")).headers
    open_to = make_context(tmp_path / "b", allowed_origins=["https://cms.example"])
    assert preflight(open_to).headers["access-control-allow-origin"] == "https://cms.example"


def test_a_trailing_slash_needs_no_redirect(keyless: Context) -> None:
    assert status(keyless, path="/v1/videos/") == 200
    assert status(keyless, path="/health/") == 200


def test_health_answers_head_and_the_docs_load_nothing_from_elsewhere(keyless: Context) -> None:
    assert status(keyless, "HEAD", "/health") == 200
    page = ask(keyless, lambda client: client.get("/docs")).text
    assert "/v1/videos/{video_id}/cancel" in page
    assert "http://" not in page
    assert "https://" not in page


def test_readiness_is_503_until_the_service_is_ok(keyless: Context) -> None:
    assert status(keyless, path="/health") == 200
    for path in ("/health?strict=1", "/health/ready"):
        answer = ask(keyless, lambda client, path=path: client.get(path))
        assert (answer.status_code, answer.json()["status"]) == (503, "starting")


def test_one_unreadable_row_is_reported_for_that_job_alone(keyless: Context) -> None:
    add(keyless.store, "good", owner="", request=json.dumps(GOOD))
    add(keyless.store, "bad", owner="", request="{")
    add(keyless.store, "worse", owner="", request=json.dumps(GOOD))
    for job in lease(keyless.store):
        if job.id == "worse":
            keyless.store.finish(job.id, job.lease_token, JobResult("completed", record="[]"))
    jobs = ask(keyless, lambda client: client.get("/v1/videos")).json()["data"]
    errors = {job["id"]: job["error"] and job["error"]["code"] for job in jobs}
    assert errors == {"good": None, "bad": "unreadable_job", "worse": "unreadable_job"}
    assert status(keyless, path="/v1/videos/bad") == 200
    assert status(keyless, path="/v1/videos/worse/content") == 410


GOOD = {
    "id": "good",
    "image": "a.png",
    "prompt": "p",
    "seed": 1,
    "num_frames": 9,
    "height": 64,
    "width": 96,
    "fps": 8,
    "num_inference_steps": 2,
    "guidance_scale": 6.0,
    "mode": "baseline",
}


def test_an_owner_sees_the_metrics_of_their_own_queue_alone(tmp_path: Path) -> None:
    (desk, desk_hash), (ops, ops_hash) = new_key(), new_key()
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"desk: {desk_hash}\nops: {ops_hash}\n")
    context = make_context(tmp_path, api_keys_file=str(keys), operators=["ops"])
    context.store.add(new("a"), max_queued=9)
    context.store.add(new("b", owner="sport"), max_queued=9)

    def page(key: str) -> str:
        headers = {"Authorization": f"Bearer {key}"}
        text: str = ask(context, lambda client: client.get("/metrics", headers=headers)).text
        return text

    assert 'vidgen_owner_queue_length{state="queued"} 1' in page(desk)
    context.metrics.page = _all_metrics  # type: ignore[method-assign]
    assert page(ops) == "ray_vidgen_queue_length 2\n"


async def _all_metrics() -> str:
    return "ray_vidgen_queue_length 2\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"desk-1", [b"desk-1"]),
        (b"\xff\xfe\xe9", []),
        (b"a b\tc\x7f\xe9d", [b"abcd"]),
        (b"x" * 60_000, [b"x" * 128]),
    ],
)
def test_request_ids_are_cleaned_before_serve_reads_them(
    given: bytes, expected: list[bytes]
) -> None:
    seen: list[bytes] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")

    scope = {"type": "http", "headers": [(b"x-request-id", given), (b"x-request-id", b"second")]}
    asyncio.run(CleanRequestId(app)(scope, None, None))  # type: ignore[arg-type]
    assert seen == (expected or [b"second"])
    assert clean(given.decode("latin-1")) == b"".join(expected).decode()


def test_scrapes_that_come_together_share_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []

    async def gather() -> str:
        gathered.append(1)
        await asyncio.sleep(0.05)
        if len(gathered) == 1:
            raise RuntimeError("no node answers")
        return "page"

    monkeypatch.setattr(cluster_metrics, "_gather", gather)

    async def scenario() -> None:
        metrics = cluster_metrics.MetricsPage(max_age_s=0.3)
        with pytest.raises(RuntimeError):
            await metrics.page()
        assert await asyncio.gather(*(metrics.page() for _ in range(20))) == ["page"] * 20
        assert len(gathered) == 2  # a failure is not kept
        await asyncio.sleep(0.35)
        await metrics.page()
        assert len(gathered) == 3

    asyncio.run(scenario())


def test_a_client_that_leaves_does_not_cancel_the_wait_of_another_with_its_key(
    tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    context = make_context(tmp_path, settings=tiny_overrides)
    headers = {"Idempotency-Key": "k"}

    async def generate(client: httpx.AsyncClient) -> httpx.Response:
        files = {"image": ("a.png", picture())}
        data = {"prompt": "push in", "seed": "1"}
        return await client.post("/generate-video", data=data, files=files, headers=headers)

    async def scenario() -> httpx.Response:
        async with client_of(context, timeout=60) as client:
            first = asyncio.create_task(generate(client))
            while not context.store.count():
                await asyncio.sleep(0.05)
            second = asyncio.create_task(generate(client))
            await asyncio.sleep(0.5)
            first.cancel()
            await asyncio.sleep(0.5)
            assert context.store.count() == {"queued": 1}
            (job,) = lease(context.store)
            context.store.finish(job.id, job.lease_token, JobResult("failed", None, "timeout", "x"))
            return await second

    answer = asyncio.run(scenario())
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
