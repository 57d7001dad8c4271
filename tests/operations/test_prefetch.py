"""The weights of a hub are fetched once, at the commit that is pinned, and then work offline."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

REPO = "desk/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The hub's protocol over a folder: facts of a commit, its tree, and its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: Counter[str] = Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        of_file = f"/{REPO}/resolve/{COMMIT}/"
        headers = {"X-Repo-Commit": COMMIT, "content-type": "application/json"}
        if path == f"/api/models/{REPO}/revision/{COMMIT}":
            names = [{"rfilename": name} for name in self.names()]
            body = json.dumps({"id": REPO, "sha": COMMIT, "siblings": names}).encode()
        elif path.startswith(f"/api/models/{REPO}/tree/{COMMIT}"):
            body = json.dumps([self.entry(name) for name in self.names()]).encode()
        elif path.startswith(of_file) and path.removeprefix(of_file) in self.names():
            name = path.removeprefix(of_file)
            body = (self.folder / name).read_bytes()
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            self.fetched[name] += with_body
        else:
            request.send_error(404)
            return
        request.send_response(200)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if with_body:
            request.wfile.write(body)

    def names(self) -> list[str]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)

    def entry(self, name: str) -> dict[str, object]:
        data = (self.folder / name).read_bytes()
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "path": name, "size": len(data), "oid": oid}


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[Hub]:
    hub = Hub(tiny_folder)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def prefetch(hub: Hub, cache: Path, *, offline: bool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vidgen_ray", "prefetch", "--config", "nano"]
    command += ["--set", f"model.checkpoint={REPO}", "--set", f"model.revision={COMMIT}"]
    environment = {**os.environ, "HF_HOME": str(cache), "HF_ENDPOINT": hub.url}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_weights_come_from_the_hub_once_and_are_there_without_it(hub: Hub, tmp_path: Path) -> None:
    nothing = prefetch(hub, tmp_path, offline=True)
    assert nothing.returncode == 2
    assert "is not in the local cache" in nothing.stderr

    done = prefetch(hub, tmp_path, offline=False)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.split(": ")[1].rpartition(",")[0])
    assert folder.name == COMMIT
    assert tmp_path in folder.parents
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    assert hub.fetched["transformer/diffusion_pytorch_model.safetensors"] == 1

    fetched = Counter(hub.fetched)
    again = prefetch(hub, tmp_path, offline=True)
    assert again.returncode == 0, again.stderr
    assert str(folder) in again.stdout
    assert hub.fetched == fetched
    assert set(fetched.values()) == {1}
