"""The examples of docs/api.md do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving_process import Server, picture

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(300)]

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def environment(
    server: Server, api_keys: dict[str, tuple[str, str]], tmp_path: Path
) -> dict[str, str]:
    (tmp_path / "photo.png").write_bytes(picture())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    url = f"{server.url}/desks"
    return {**os.environ, "PATH": path, "URL": url, "KEY": api_keys["desk"][0]}


def test_shell(environment: dict[str, str], tmp_path: Path) -> None:
    script = "set -euxo pipefail\n" + "\n".join(SHELL[1:])  # the first one sets URL
    assert len(SHELL) >= 4
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "event: video.completed" in done.stdout
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    assert (tmp_path / "first-kilobyte").stat().st_size == 1024


@pytest.mark.parametrize("script", PYTHON, ids=["openai", "httpx"])
def test_python(environment: dict[str, str], tmp_path: Path, script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs_review" in done.stdout
