"""The nginx configuration is one, and ends slow, endless and oversized requests."""

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
from benchmarks.local_cluster import free_port

CONFIG = Path(__file__).parents[2] / "deploy/nginx/vidgen.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx; apt-get install nginx-light")


@pytest.fixture
def seen() -> Iterator[tuple[int, list[str | None]]]:
    """A server behind nginx: its port, and the request ids that it got."""
    ids: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            ids.append(self.headers["x-request-id"])
            self.rfile.read(int(self.headers["content-length"] or 0))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, ids
    server.shutdown()


@pytest.fixture
def port(tmp_path: Path, seen: tuple[int, list[str | None]]) -> Iterator[int]:
    """nginx with our file, without TLS and with short time limits."""
    port = free_port()
    ours = CONFIG.read_text()
    ours = "\n".join(line for line in ours.splitlines() if "ssl_certificate" not in line)
    for old, new in {
        "listen 8443 ssl": f"listen 127.0.0.1:{port}",
        "server 127.0.0.1:8000": f"server 127.0.0.1:{seen[0]}",
        "client_header_timeout 10s": "client_header_timeout 1s",
        "client_body_timeout 15s": "client_body_timeout 1s",
    }.items():
        assert old in ours
        ours = ours.replace(old, new)
    paths = "\n".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; daemon off;\n"
        f"events {{}}\nhttp {{ access_log off; {paths}\n{ours}\n}}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", str(config), "-p", str(tmp_path)])
    for _ in range(100):
        time.sleep(0.05)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield port
    process.terminate()
    process.wait(10)


def ended_within(port: int, head: bytes, seconds: float) -> bytes:
    """What nginx answers to bytes that do not go on."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(head)
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        return answer


def test_slow_and_oversized_requests_end(port: int) -> None:
    assert b"200" not in ended_within(port, b"POST / HTTP/1.1\r\nhost: x\r\n", 8)
    body = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc"
    assert b"204" not in ended_within(port, body, 8)
    large = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
    assert b" 413 " in ended_within(port, large, 8)
    long = b"POST / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 60_000 + b"\r\n\r\n"
    assert b" 400 " in ended_within(port, long, 8)


def test_only_clean_request_ids_pass(port: int, seen: tuple[int, list[str | None]]) -> None:
    for value in (b"desk-1", b"\xff\xfe", b"x" * 200):
        headers = [(b"x-request-id", value)]
        assert httpx.post(f"http://127.0.0.1:{port}/", headers=headers).status_code == 204
    assert seen[1] == ["desk-1", None, None]
