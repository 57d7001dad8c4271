"""The commands of README.md marked `sh` or `python` work as they stand, on a fresh checkout."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this project whose environment, this one, is installed already."""
    folder = tmp_path_factory.mktemp("clone") / "vidgen_ray"
    ours = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    listed = subprocess.run(ours, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / ".installed").touch()
    return folder


@pytest.fixture(scope="module")
def environment(checkout: Path) -> dict[str, str]:
    """Of a new terminal: without what pytest or a running Ray have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    kept.pop("RAY_ADDRESS", None)
    return {**kept, "PYTHONPATH": str(checkout)}


def run(script: str, checkout: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", f"set -eo pipefail\n{script}"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_make_run_generates_the_sample_clips(checkout: Path, environment: dict[str, str]) -> None:
    assert SHELL[0].startswith("make run")
    run(SHELL[0], checkout, environment)
    num_jobs = len((checkout / "data" / "samples" / "jobs.jsonl").read_text().splitlines())
    assert len(list((checkout / "outputs" / "samples").glob("*.mp4"))) == num_jobs


def test_first_job_single_clip_and_score(checkout: Path, environment: dict[str, str]) -> None:
    first = next(index for index, block in enumerate(SHELL) if "activate" in block)
    said = run("\n".join(SHELL[first:-1]), checkout, environment)
    assert "this machine can make clips" in said
    assert len(list((checkout / "outputs" / "first").glob("*.mp4"))) == 2
    assert (checkout / "outputs" / "first" / "index.html").is_file()
    assert '"verdict": "accepted"' in said


def test_python(checkout: Path, environment: dict[str, str]) -> None:
    assert PYTHON
    for script in PYTHON:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "accepted" in done.stdout


@contextlib.contextmanager
def make_serve(checkout: Path, environment: dict[str, str]) -> Iterator[None]:
    import httpx
    import psutil

    from tests.support.mixed_load import until

    process = subprocess.Popen(
        ["make", "serve"], cwd=checkout, env=environment, start_new_session=True
    )

    def is_well() -> bool:
        assert process.poll() is None, "make serve ended"
        with contextlib.suppress(httpx.HTTPError, ValueError):  # text, while Serve starts
            answer = httpx.get("http://127.0.0.1:8000/health", timeout=5, trust_env=False)
            return bool(answer.json()["status"] == "ok")
        return False

    try:
        until(is_well, 300, "make serve", every_s=1)
        yield
    finally:
        left = psutil.Process(process.pid).children(recursive=True)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with its parent
                each.terminate()
        _, alive = psutil.wait_procs(left, timeout=30)
        for each in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def test_make_serve_answers(checkout: Path, environment: dict[str, str]) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("port 8000, which README.md names, is in use")
    with make_serve(checkout, environment):
        said = run(SHELL[-1], checkout, environment)
    assert '"verdict":"accepted"' in said.replace(" ", "")
