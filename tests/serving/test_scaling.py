"""Queued jobs bring replicas, idleness lets them go; an open address needs keys."""

import contextlib
import time
from pathlib import Path

import httpx
import pytest
from serving_process import Server, application, until
from test_api import ended, post

from tests.support.local_cluster import free_port
from tests.support.tiny_model import LENIENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_from_zero_to_two_and_back(tmp_path: Path, tiny_overrides: dict[str, object]) -> None:
    scaling = {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0,
        "downscale_delay_s": 3,
        "downscale_to_zero_delay_s": 3,
        "metrics_interval_s": 1,
        "look_back_period_s": 2,
    }
    args = {"settings": {**tiny_overrides, **LENIENT}, "output": str(tmp_path / "out")}
    app = application("vidgen", "/", args, autoscaling_config=scaling)
    server = Server(tmp_path, [app])
    try:
        server.start()
        with httpx.Client(base_url=server.url, timeout=60) as client:

            def replicas() -> int:
                health = client.get("/health").json()
                return int(health["deployments"]["Generator"]["replicas"].get("RUNNING", 0))

            assert replicas() == 0
            video_ids = [post(client, num_inference_steps=1000).json()["id"] for _ in range(6)]
            until(lambda: replicas() == 2, 120)
            for video_id in video_ids[2:]:
                client.post(f"/v1/videos/{video_id}/cancel").raise_for_status()
            for video_id in video_ids[:2]:
                assert ended(client, video_id, 120)["status"] == "completed"
            until(lambda: replicas() == 0, 60)
            assert ended(client, post(client).json()["id"], 120)["status"] == "completed"
    finally:
        server.stop()


def test_it_does_not_open_to_a_network_without_keys(
    tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    args = {"settings": tiny_overrides, "output": str(tmp_path / "out")}
    port = free_port()
    options = {"host": "0.0.0.0", "port": port}
    server = Server(tmp_path, [application("vidgen", "/", args)], http_options=options)
    try:
        server.start(ready=None)
        until(lambda: "is open to the network" in server.log.read_text(), 120)
        for _ in range(5):
            with contextlib.suppress(httpx.HTTPError):
                assert httpx.get(f"http://127.0.0.1:{port}/v1/videos").status_code != 200
            time.sleep(0.5)
    finally:
        server.stop()
