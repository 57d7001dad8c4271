"""With API keys: who may ask, whose jobs are seen, the bounded queue, retries and webhooks."""

import json
import time
from collections.abc import Iterator

import httpx
import pytest
import standardwebhooks
from conftest import WEBHOOK_SECRET, Hook
from serving_process import Server, until
from test_api import SLOW, ended, post, problem

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(300)]


def client_of(server: Server, key: str | None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=f"{server.url}/desks", headers=headers, timeout=60)


@pytest.fixture
def desk(server: Server, api_keys: dict[str, tuple[str, str]]) -> Iterator[httpx.Client]:
    with client_of(server, api_keys["desk"][0]) as client:
        yield client


@pytest.fixture
def sport(server: Server, api_keys: dict[str, tuple[str, str]]) -> Iterator[httpx.Client]:
    with client_of(server, api_keys["sport"][0]) as client:
        yield client


ROUTES = [
    ("POST", "/v1/videos"),
    ("POST", "/generate-video"),
    ("GET", "/v1/videos"),
    ("GET", "/v1/videos/video_1"),
    ("GET", "/v1/videos/video_1/content"),
    ("GET", "/v1/videos/video_1/events"),
    ("POST", "/v1/videos/video_1/cancel"),
    ("DELETE", "/v1/videos/video_1"),
    ("GET", "/artifacts/video_1.mp4"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_needs_a_key(server: Server, method: str, path: str) -> None:
    with client_of(server, None) as client:
        answer = client.request(method, path)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    with client_of(server, "vg_wrong") as client:
        problem(client.request(method, path), 401, "unauthorized")


def test_health_needs_none(server: Server) -> None:
    with client_of(server, None) as client:
        assert client.get("/health").status_code == 200


@pytest.mark.thorough
def test_a_clip_that_outlasts_the_wait_is_cancelled(desk: httpx.Client) -> None:
    answer = post(desk, "/generate-video", num_inference_steps=SLOW)
    assert "use /v1/videos" in problem(answer, 504, "timeout")["message"]
    (job,) = desk.get("/v1/videos", params={"limit": 1}).json()["data"]
    assert job["status"] == "cancelled"


def test_nobody_reaches_the_jobs_of_another(desk: httpx.Client, sport: httpx.Client) -> None:
    job = ended(desk, post(desk).json()["id"])
    path = f"/v1/videos/{job['id']}"
    for answer in (
        sport.get(path),
        sport.get(f"{path}/content"),
        sport.get(f"{path}/events"),
        sport.post(f"{path}/cancel"),
        sport.delete(path),
        sport.get(job["url"]),
    ):
        problem(answer, 404, "not_found")
    listed = sport.get("/v1/videos", params={"limit": 100}).json()["data"]
    assert job["id"] not in [other["id"] for other in listed]
    assert desk.get(path).json() == job


def test_a_rejected_clip_is_made_again_and_the_best_one_kept(desk: httpx.Client) -> None:
    job = ended(desk, post(desk, seed=7).json()["id"])
    assert job["status"] == "completed"
    assert job["verdict"] == "needs_review"
    assert job["reasons"]
    assert [attempt["attempt"] for attempt in job["attempts"]] == [1, 2]
    assert job["attempts"][0]["seed"] == 7
    kept = {attempt["seed"]: attempt["temporal_score"] for attempt in job["attempts"]}
    assert kept[job["seed"]] == job["temporal_score"]


def test_a_full_queue_answers_429_and_keeps_nothing(desk: httpx.Client) -> None:
    running = post(desk, num_inference_steps=SLOW).json()["id"]
    until(lambda: desk.get(f"/v1/videos/{running}").json()["status"] == "in_progress")
    headers = {"Idempotency-Key": f"k{time.time_ns()}"}
    kept = [post(desk, num_inference_steps=1).json()["id"]]
    kept.append(post(desk, num_inference_steps=1, headers=headers).json()["id"])
    full = post(desk, prompt="too much")
    problem(full, 429, "queue_full")
    assert 1 <= int(full.headers["retry-after"]) <= 300
    assert post(desk, num_inference_steps=1, headers=headers).json()["id"] == kept[1]
    other = {"Idempotency-Key": f"k{time.time_ns()}"}
    problem(post(desk, prompt="too much", headers=other), 429, "queue_full")
    assert desk.get("/health").status_code == 200
    listed = desk.get("/v1/videos", params={"limit": 100}).json()["data"]
    assert "too much" not in [job["prompt"] for job in listed]
    desk.post(f"/v1/videos/{running}/cancel").raise_for_status()
    assert {ended(desk, job_id)["status"] for job_id in kept} == {"completed"}


def test_a_queued_job_is_cancelled_without_a_gpu(desk: httpx.Client) -> None:
    running = post(desk, num_inference_steps=SLOW).json()["id"]
    waiting = post(desk).json()["id"]
    assert desk.post(f"/v1/videos/{waiting}/cancel").json()["status"] == "cancelled"
    desk.post(f"/v1/videos/{running}/cancel").raise_for_status()
    job = desk.get(f"/v1/videos/{waiting}").json()
    assert (job["status"], job["started_at"]) == ("cancelled", None)


class TestWebhooks:
    def test_the_end_is_told_signed_and_again_until_it_is_heard(
        self, desk: httpx.Client, hook: Hook
    ) -> None:
        hook.received.clear()
        hook.answers[:] = [500]
        job_id = post(desk, num_inference_steps=1).json()["id"]

        def mine() -> list[tuple[dict[str, str], bytes]]:
            return [item for item in hook.received if job_id.encode() in item[1]]

        until(lambda: len(mine()) == 2, 40)
        (first, body), (second, again) = mine()
        assert first["webhook-id"] == second["webhook-id"]
        assert body == again
        told = standardwebhooks.Webhook(WEBHOOK_SECRET).verify(body, second)
        assert told["type"] == "video.completed"
        assert told["data"] == {"id": job_id}
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(WEBHOOK_SECRET).verify(body + b" ", second)

    def test_openais_client_takes_the_signature(self, desk: httpx.Client, hook: Hook) -> None:
        hook.received.clear()
        job_id = post(desk, num_inference_steps=1).json()["id"]
        until(lambda: any(job_id.encode() in body for _, body in hook.received), 40)
        headers, body = next(item for item in hook.received if job_id.encode() in item[1])
        from openai import OpenAI

        client = OpenAI(api_key="x", webhook_secret=WEBHOOK_SECRET)
        client.webhooks.verify_signature(body, headers)
        assert json.loads(body)["data"]["id"] == job_id

    @pytest.mark.parametrize(
        "url", ["http://hooks.example/a", "https://other.example/", "https://127.0.0.1/", "x"]
    )
    def test_only_hosts_of_the_operator_are_called(self, desk: httpx.Client, url: str) -> None:
        error = problem(post(desk, webhook_url=url), 422, "invalid_request")
        assert error["param"] == "webhook_url"

    def test_a_host_of_the_operator_is_taken(self, desk: httpx.Client) -> None:
        job = post(desk, webhook_url="https://hooks.example/a", num_inference_steps=1)
        assert job.status_code == 200


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/a.png",
        "https://127.0.0.1/a.png",
        "https://localhost/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a.png",
        "https://user:pass@example.com/a.png",
        "ftp://example.com/a.png",
    ],
)
def test_urls_lead_to_the_open_internet_alone(desk: httpx.Client, address: str) -> None:
    body = {"prompt": "p", "input_reference": {"image_url": address}}
    error = problem(desk.post("/v1/videos", json=body), 422, "invalid_request")
    assert error["param"] == "input_reference"


def test_keys_are_not_in_the_output(server: Server, api_keys: dict[str, tuple[str, str]]) -> None:
    kept = server.log.read_text() + (server.folder / "keys.yaml").read_text()
    for secret, _ in api_keys.values():
        assert secret not in kept
