"""A hub that fails is one line with what to do, and no matter where the cache is complete."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vidgen_ray.config import ModelConfig
from vidgen_ray.errors import ConfigError

REPO = "desk/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Start = Callable[..., int]


class Answers(BaseHTTPRequestHandler):
    """Every request gets the server's one status; `code` is the hub's name for the reason."""

    status, code = 200, ""

    def answer(self) -> None:
        self.send_response(self.status)
        if self.code:
            self.send_header("X-Error-Code", self.code)
            self.send_header("X-Error-Message", f"{self.code} of {REPO}")
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_CONNECT = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server that answers with one status; its port."""
    servers = []

    def begin(status: int, code: str = "", certificate: Path | None = None) -> int:
        handler = type("Handler", (Answers,), {"status": status, "code": code})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Point the hub's client, in this process, at an endpoint and an empty cache."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name in ("HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def point(endpoint: str, **proxies: str) -> None:
        for name, value in proxies.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # between its retries
        _http.close_session()

    yield point
    _http.close_session()


def fill_cache(cache: Path, checkpoint: Path, *, without: str | None = None) -> None:
    """The cache as a download leaves it, at `main` and at its commit; `without` one file."""
    repository = cache / f"models--{REPO.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)
    if without:
        (repository / "snapshots" / COMMIT / without).unlink()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refused(expected: str, model: ModelConfig | None = None) -> None:
    from vidgen_ray.model.checkpoint import open_checkpoint

    with pytest.raises(ConfigError) as error:
        open_checkpoint(model or ModelConfig(checkpoint=REPO))
    assert "\n" not in str(error.value)
    assert expected in str(error.value), error.value


def self_signed(folder: Path) -> Path:
    """A key and a certificate that nobody signed, in one file."""
    path = folder / "server.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=hub -out - -keyout -"
    path.write_bytes(subprocess.run(command.split(), check=True, capture_output=True).stdout)
    return path


@pytest.mark.parametrize("cached", [False, True], ids=["nothing cached", "all cached"])
@pytest.mark.parametrize(
    "failure",
    ["proxy", "dead proxy", "socks", "tls", "dns", "gated", "no repo", "revision", "rate"],
)
def test_a_failing_hub(
    failure: str,
    cached: bool,
    start: Start,
    hub_is: Callable[..., None],
    tmp_path: Path,
    tiny_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vidgen_ray.model.checkpoint import open_checkpoint

    if failure == "proxy":
        hub_is("https://hub.invalid", HTTPS_PROXY=f"http://127.0.0.1:{start(407)}")
        advice = "check HTTPS_PROXY"
    elif failure == "dead proxy":
        hub_is("https://hub.invalid", HTTPS_PROXY=f"http://127.0.0.1:{free_port()}")
        advice = "check the name and the network"
    elif failure == "socks":
        hub_is("https://hub.invalid", ALL_PROXY="socks5://127.0.0.1:1")
        advice = "pip install socksio"
    elif failure == "tls":
        hub_is(f"https://127.0.0.1:{start(200, certificate=self_signed(tmp_path))}")
        advice = "set SSL_CERT_FILE"
    elif failure == "dns":
        hub_is("https://hub.invalid")
        advice = "check the name and the network"
    else:
        status, code, advice = {
            "gated": (403, "GatedRepo", "accept its terms on the hub and set HF_TOKEN"),
            "no repo": (404, "RepoNotFound", "a private repository needs HF_TOKEN"),
            "revision": (404, "RevisionNotFound", "check model.revision"),
            "rate": (429, "", "try later, or set HF_TOKEN"),
        }[failure]
        hub_is(f"http://127.0.0.1:{start(status, code)}")
    if not cached:
        refused(advice)
        return
    fill_cache(tmp_path / "hub", tiny_folder)
    checkpoint = open_checkpoint(ModelConfig(checkpoint=REPO))
    assert checkpoint.fingerprint == f"{REPO}@{COMMIT}"


def test_a_pinned_commit_that_is_complete_needs_no_network(
    hub_is: Callable[..., None], tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vidgen_ray.model.checkpoint import open_checkpoint

    hub_is("https://hub.invalid", HTTPS_PROXY="http://127.0.0.1:1")
    fill_cache(tmp_path / "hub", tiny_folder)
    checkpoint = open_checkpoint(ModelConfig(checkpoint=REPO, revision=COMMIT))
    assert checkpoint.hub_commit == COMMIT
    assert not caplog.records


@pytest.mark.parametrize(
    "missing", ["vae/diffusion_pytorch_model.safetensors", "transformer/config.json"]
)
def test_a_cache_without_one_file_is_not_there(
    missing: str,
    hub_is: Callable[..., None],
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    from vidgen_ray.operations.doctor import check_weights

    hub_is("https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fill_cache(tmp_path / "hub", tiny_folder, without=missing)
    refused(missing.split("/")[0])
    assert check_weights(ModelConfig(checkpoint=REPO)).ok is None


def test_the_former_cache_variable_of_transformers_is_honoured(
    hub_is: Callable[..., None], tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidgen_ray.model.checkpoint import open_checkpoint

    hub_is("https://hub.invalid")
    fill_cache(tmp_path / "former", tiny_folder)
    monkeypatch.setenv("TRANSFORMERS_CACHE", str(tmp_path / "former"))
    model = ModelConfig(checkpoint=REPO, revision=COMMIT)
    assert (tmp_path / "former") in open_checkpoint(model).folder.parents
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    refused("is not in the local cache", model)
