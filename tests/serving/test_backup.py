"""A job store that was copied while it was in use, and put back, loses no job that it knew."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_process import Server, application, until
from test_api import ended, post

from tests.support.tiny_model import LENIENT
from vidgen_ray.video_io import read_video

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


SECRET = "whsec_" + "bmV2ZXIgbG9nZ2Vk" * 2


def test_a_restored_store_goes_on(
    tmp_path: Path, tiny_overrides: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDGEN_WEBHOOK_SECRET", SECRET)
    output = tmp_path / "out"
    args: dict[str, Any] = {"settings": {**tiny_overrides, **LENIENT}, "output": str(output)}
    server = Server(tmp_path, [application("vidgen", "/", args)])
    try:
        server.start()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            done = ended(client, post(client).json()["id"])
            running = post(client, num_inference_steps=400).json()["id"]
            waiting = post(client, num_inference_steps=200).json()["id"]
            until(lambda: client.get(f"/v1/videos/{running}").json()["progress"] > 3)
            backup = tmp_path / "backup.db"
            with (
                contextlib.closing(sqlite3.connect(output / "jobs.db")) as live,
                contextlib.closing(sqlite3.connect(backup)) as copy,
            ):
                live.backup(copy)
            # This clip is committed, but its job is in work as far as the backup knows.
            assert ended(client, running, 120)["status"] == "completed"
            written = (output / f"{running}.mp4").stat().st_mtime_ns
            later = post(client).json()["id"]
            server.kill_everything()
            for path in output.glob("jobs.db*"):
                path.unlink()
            backup.rename(output / "jobs.db")
            server.start()
            assert client.get(f"/v1/videos/{done['id']}").json() == done
            for video_id in (running, waiting):
                assert ended(client, video_id, 180)["status"] == "completed"
                assert len(read_video(output / f"{video_id}.mp4").frames) == 9
            assert (output / f"{running}.mp4").stat().st_mtime_ns == written
            assert client.get(f"/v1/videos/{later}").status_code == 404
        logs = [path for path in server.logs() if SECRET in path.read_text(errors="replace")]
        assert logs == []
    finally:
        server.stop()
