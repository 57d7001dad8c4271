"""No webhook address harms another delivery: checked when given, and isolated when sent."""

import asyncio
import time
from pathlib import Path

import pytest
from conftest import WEBHOOK_SECRET, Hook
from pydantic import ValidationError
from test_jobs import add, lease

from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.queue.background import BackgroundTasks
from vidgen_ray.serving.queue.store import JobResult, JobStore
from vidgen_ray.serving.queue.webhooks import WebhookSender
from vidgen_ray.serving.webhook_url import check_webhook_url

BAD_URLS = [
    "https://hooks.example/\x7fa",
    "https://hooks.example/a\nb",
    "https://hooks.example:99999/",
    "https://hooks.example:0/",
    "https://hooks.example:x/",
    "https://user:pass@hooks.example/",
    "https://user@hooks.example/",
    "https://hooks.example\\@other.example/",
    "https:///path",
    "https://hooks.example/" + "a" * 2000,
    "https://hooks.example/\u00e9",
    "https://[::1/",
    "ftp://hooks.example/",
    "hooks.example",
    "",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_webhook_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        check_webhook_url(url)
    with pytest.raises(ValidationError, match="webhook_url"):
        ServingArguments.model_validate({"webhook_url": url})


@pytest.mark.parametrize("url", ["https://hooks.example/a?b=c", "https://HOOKS.example:8443"])
def test_a_good_one_gives_its_host(url: str) -> None:
    assert check_webhook_url(url) == "hooks.example"


def end_with_webhook(store: JobStore, job_id: str, url: str) -> None:
    add(store, job_id, webhook_url=url)
    (job,) = lease(store)
    store.finish(job_id, job.lease_token, JobResult("completed"))


def test_a_stored_bad_url_or_a_slow_receiver_stops_no_other_webhook(
    tmp_path: Path, hook: Hook
) -> None:
    hook.received.clear()
    hook.answers.clear()
    store = JobStore(f"sqlite:///{tmp_path}/jobs.db")

    async def scenario() -> float:
        # Accepts connections and never answers.
        silent = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        for index, url in enumerate(BAD_URLS[:4]):  # as if they had been stored unchecked
            end_with_webhook(store, f"bad{index}", url)
        for index in range(12):
            end_with_webhook(store, f"slow{index}", f"http://127.0.0.1:{port}/")
        end_with_webhook(store, "good", hook.url)
        sender = WebhookSender(store.deliveries, WEBHOOK_SECRET)
        tasks = BackgroundTasks()
        tasks.start("webhooks", sender.run)
        begun = time.monotonic()
        async with asyncio.timeout(8):
            while not any(b'"good"' in body for _, body in hook.received):
                await asyncio.sleep(0.05)
        assert tasks.report() == {"webhooks": "running"}
        tasks.stop()
        silent.close()
        return time.monotonic() - begun

    assert asyncio.run(scenario()) < 5


def test_a_failed_background_task_is_reported_and_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vidgen_ray.serving.queue.background._RESTART_AFTER_S", 0.01)
    runs: list[int] = []

    async def fails_once() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("x")
        await asyncio.sleep(60)

    async def scenario() -> dict[str, str]:
        tasks = BackgroundTasks()
        tasks.start("sweep", fails_once)
        async with asyncio.timeout(5):
            while len(runs) < 2:
                await asyncio.sleep(0.01)
        report = tasks.report()
        assert tasks.are_running
        tasks.stop()
        return report

    assert asyncio.run(scenario()) == {"sweep": "failed (RuntimeError); it was started again"}
