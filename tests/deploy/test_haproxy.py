"""The HAProxy configuration is one, and ends slow, endless and oversized requests."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.local_cluster import free_port

CONFIG = Path(__file__).parents[2] / "deploy/haproxy/vidgen.cfg"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
CLIP_S = 3.0

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="needs haproxy; apt-get install haproxy")


@pytest.fixture
def seen() -> Iterator[tuple[int, list[str | None]]]:
    """A server behind HAProxy: its port, and the request ids that it got."""
    ids: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            ids.append(self.headers["x-request-id"])
            self.rfile.read(int(self.headers["content-length"] or 0))
            if self.path == "/generate-video":
                time.sleep(CLIP_S)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # requests that HAProxy has ended

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, ids
    server.shutdown()


@pytest.fixture
def config(tmp_path: Path, seen: tuple[int, list[str | None]]) -> tuple[Path, int]:
    """Our file without TLS, with short time limits, on a port of its own."""
    port = free_port()
    ours = CONFIG.read_text()
    for old, new in {
        "bind :8443 ssl crt /etc/haproxy/vidgen.pem alpn h2,http/1.1": f"bind 127.0.0.1:{port}",
        "server head 127.0.0.1:8000": f"server head 127.0.0.1:{seen[0]}",
        "timeout http-request 10s": "timeout http-request 1s",
        "timeout client 15s": "timeout client 1s",
        "timeout server 60s": "timeout server 2s",
        "wait-for-body time 10s": "wait-for-body time 1s",
    }.items():
        assert old in ours
        ours = ours.replace(old, new)
    path = tmp_path / "haproxy.cfg"
    path.write_text(ours)
    return path, port


@pytest.fixture
def port(config: tuple[Path, int]) -> Iterator[int]:
    assert HAPROXY is not None
    process = subprocess.Popen([HAPROXY, "-db", "-q", "-f", str(config[0])])
    for _ in range(100):
        time.sleep(0.05)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", config[1])) == 0:
                break
    yield config[1]
    process.terminate()
    process.wait(10)


def ended_within(port: int, head: bytes, seconds: float) -> bytes:
    """What HAProxy answers to bytes that do not go on."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(head)
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        return answer


def test_haproxy_accepts_the_file(tmp_path: Path) -> None:
    assert HAPROXY is not None
    pem = tmp_path / "vidgen.pem"
    names = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "crt"), "-subj", "/CN=x"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    subprocess.run(new, check=True, capture_output=True)
    pem.write_text((tmp_path / "crt").read_text() + (tmp_path / "key").read_text())
    path = tmp_path / "haproxy.cfg"
    path.write_text(CONFIG.read_text().replace("/etc/haproxy/vidgen.pem", str(pem)))
    command = [HAPROXY, "-c", "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()


def test_slow_and_oversized_requests_end(port: int) -> None:
    assert b" 408 " in ended_within(port, b"POST / HTTP/1.1\r\nhost: x\r\n", 8)
    start = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: "
    assert b" 408 " in ended_within(port, start + b"100\r\n\r\nabc", 8)
    past_the_buffer = start + b"1000000\r\n\r\n" + b"y" * 200_000
    assert b" 504 " in ended_within(port, past_the_buffer, 8)
    assert b" 413 " in ended_within(port, start + b"99999999\r\n\r\n", 8)
    long = b"POST / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 60_000 + b"\r\n\r\n"
    assert b" 400 " in ended_within(port, long, 8)


def test_who_waits_for_a_clip_is_not_slow(port: int) -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}/generate-video", content=b"y" * 500_000)
    assert answer.status_code == 204


def test_only_clean_request_ids_pass(port: int, seen: tuple[int, list[str | None]]) -> None:
    for value in (b"desk-1", b"\xff\xfe", b"x" * 200):
        headers = [(b"x-request-id", value)]
        assert httpx.post(f"http://127.0.0.1:{port}/", headers=headers).status_code == 204
    assert seen[1] == ["desk-1", None, None]


def test_too_many_requests_of_an_address_get_429(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        codes = [client.post("/").status_code for _ in range(260)]
    assert set(codes[:200]) == {204}
    assert codes[-1] == 429
