"""A real PostgreSQL, and real servers, each on folders and ports of its own."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from serving_process import Server, application

from tests.support.local_cluster import free_port
from tests.support.tiny_model import LENIENT
from vidgen_ray.serving.http.keys import new_key

WEBHOOK_SECRET = "whsec_" + "c2VjcmV0" * 5


class PostgreSQL:
    """A PostgreSQL server on a folder of its own, as a user who may run one."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._data = folder / "data"
        self._log = folder / "log"
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self._port = free_port()
        self.url = f"postgresql+psycopg://vidgen@127.0.0.1:{self._port}/postgres"
        if self._as_user:
            shutil.chown(folder, "postgres")
        options = ["--username=vidgen", "--auth=trust", "--no-sync"]
        self._run("initdb", "-D", str(self._data), *options)

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -k {self._data} -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self._data), "-w", "-l", str(self._log), "-o", options, "start"
        )

    def stop(self) -> None:
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._binaries / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=60, cwd="/")


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """A running PostgreSQL. A test that stops it starts it again."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    which = shutil.which("initdb")
    if not found and which is None:
        pytest.skip("needs PostgreSQL's server; on Debian or Ubuntu: apt-get install postgresql")
    binaries = found[-1].parent if found else Path(str(which)).parent
    folder = Path("/tmp") / f"vidgen-postgresql-{os.getpid()}-{time.time_ns()}"
    folder.mkdir()
    server = PostgreSQL(binaries, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _priority_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that a test makes in its own process must not slow the tests that follow."""
    monkeypatch.setattr(os, "nice", lambda _: 0)


@dataclass
class Hook:
    """A receiver of webhooks. It answers `answers` in turn, then 204."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture(scope="session")
def hook() -> Iterator[Hook]:
    """A real HTTP server that keeps what it gets."""
    kept = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(kept.answers.pop(0) if kept.answers else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{listener.server_port}/hook"
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield kept
    listener.shutdown()


@pytest.fixture(scope="session")
def api_keys() -> dict[str, tuple[str, str]]:
    """A key and its hash for each of two owners."""
    return {owner: new_key() for owner in ("desk", "sport")}


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_overrides: dict[str, object],
    tiny_adapter: Path,
    hook: Hook,
    api_keys: dict[str, tuple[str, str]],
) -> Iterator[Server]:
    """A server with the tiny model: `/` is open to this machine, `/desks` needs API keys.

    `/desks` also has a short queue, a short wait, the strict quality gate with two attempts,
    webhooks, and fetches URLs.
    """
    folder = tmp_path_factory.mktemp("server")
    loras = folder / "loras"
    shutil.copytree(tiny_adapter, loras / "press")
    (loras / "not-a-lora.txt").write_text("x")
    keys = folder / "keys.yaml"
    keys.write_text("".join(f"{owner}: {digest}\n" for owner, (_, digest) in api_keys.items()))
    (folder / "secret").write_text(WEBHOOK_SECRET)
    common = {"lora_folder": str(loras), "model_id": "tiny", "max_image_bytes": 300_000}
    # As in a configuration file: the steps come from a profile where the client names one.
    settings = {**tiny_overrides, "profiles.fast.num_inference_steps": 20}
    del settings["generation.num_inference_steps"]
    plain = {"output": str(folder / "open"), "settings": {**settings, **LENIENT}, **common}
    keyed = {
        "output": str(folder / "keyed"),
        "settings": {**settings, "quality.max_attempts": 2, "quality.min_temporal_score": 1.0},
        "api_keys_file": str(keys),
        "max_queued_jobs": 2,
        "max_queued_jobs_per_owner": 2,
        "max_dispatched_jobs": 1,
        "fetch_image_urls": True,
        "wait_timeout_s": 6,
        "webhook_url": hook.url,
        "webhook_hosts": ["hooks.example"],
        "webhook_secret": f"file:{folder}/secret",
        **common,
    }
    applications = [application("vidgen", "/", plain), application("desks", "/desks", keyed)]
    running = Server(folder, applications)
    try:
        running.start()
        running.wait("/desks/health")
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the open application."""
    with httpx.Client(base_url=server.url, timeout=60) as session:
        yield session
