"""As on a cluster: jobs in PostgreSQL, clips in S3."""

from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from serving_process import Server, application
from test_api import ended, post

from tests.support.tiny_model import LENIENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_clip_with_postgresql_and_s3(
    s3_bucket: str, postgresql: Any, tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    args = {
        "settings": {**tiny_overrides, **LENIENT},
        "output": f"s3://{s3_bucket}/clips",
        "database": postgresql.url,
    }
    server = Server(tmp_path, [application("vidgen", "/", args)])
    try:
        server.start()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            job = ended(client, post(client).raise_for_status().json()["id"])
            assert job["status"] == "completed"
            whole = client.get(job["url"])
            assert whole.content[4:8] == b"ftyp"
            part = client.get(job["url"], headers={"Range": "bytes=4-7"})
            assert (part.status_code, part.content) == (206, b"ftyp")
            s3 = fsspec.filesystem("s3", skip_instance_cache=True)
            assert any(job["id"] in name for name in s3.find(f"{s3_bucket}/clips"))
            client.delete(f"/v1/videos/{job['id']}").raise_for_status()
            s3.invalidate_cache()
            assert not any(job["id"] in name for name in s3.find(f"{s3_bucket}/clips"))
    finally:
        server.stop()
