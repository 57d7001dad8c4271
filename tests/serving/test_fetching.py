"""An image that a client names by URL: public addresses, https, bounded, no redirects."""

import asyncio
import datetime
import gzip
import ipaddress
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from serving_process import picture

from vidgen_ray.errors import RequestError
from vidgen_ray.serving.http.image_urls import Address, fetch_image, is_public

PHOTO = picture()
PACKED = gzip.compress(b"\0" * 1_000_000)


def is_loopback(address: Address) -> bool:
    return address.is_loopback


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of `localhost` that signs itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    signed = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    path.write_bytes(secret + signed)
    return path


@pytest.fixture(scope="module")
def site(certificate: Path) -> Iterator[str]:
    """A real https server with a photo, a redirect, an endless file and one that does not come."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("location", "/photo.png")
                self.end_headers()
                return
            if self.path == "/slow":
                time.sleep(3)
            self.send_response(200)
            if self.path == "/packed":
                self.send_header("content-encoding", "gzip")
            self.end_headers()
            if self.path == "/packed":
                self.wfile.write(PACKED)
                return
            for _ in range(1000 if self.path == "/endless" else 1):
                self.wfile.write(PHOTO)

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"https://localhost:{listener.server_port}"
    listener.shutdown()


@pytest.fixture(scope="module")
def trust(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def fetch(url: str, trust: ssl.SSLContext | bool = True, **options: object) -> bytes:
    settings = {"max_bytes": 10_000, "allowed": is_loopback, "verify": trust, **options}
    return asyncio.run(fetch_image(url, **settings))  # type: ignore[arg-type]


def test_fetches_over_https_and_checks_the_name(site: str, trust: ssl.SSLContext) -> None:
    assert fetch(f"{site}/photo.png", trust) == PHOTO
    with pytest.raises(RequestError, match="cannot be fetched"):
        fetch(f"{site.replace('localhost', '127.0.0.1')}/photo.png", trust)


def test_an_unknown_certificate_is_refused(site: str) -> None:
    with pytest.raises(RequestError, match="cannot be fetched"):
        fetch(f"{site}/photo.png")


def test_redirects_are_not_followed(site: str, trust: ssl.SSLContext) -> None:
    with pytest.raises(RequestError, match="redirects are not followed"):
        fetch(f"{site}/moved", trust)


def test_size_and_time_are_bounded(site: str, trust: ssl.SSLContext) -> None:
    with pytest.raises(RequestError, match="at most 10000 bytes"):
        fetch(f"{site}/endless", trust)
    assert fetch(f"{site}/packed", trust) == PACKED  # a bomb stays packed; no picture, so refused
    with pytest.raises(RequestError, match="did not come within"):
        fetch(f"{site}/slow", trust, timeout_s=0.5)


def test_addresses_that_are_not_public_are_refused(site: str, trust: ssl.SSLContext) -> None:
    with pytest.raises(RequestError, match="public internet"):
        fetch(f"{site}/photo.png", trust, allowed=is_public)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public
