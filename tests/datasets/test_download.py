"""Files arrive whole, go on where they broke off, and are what their checksums say."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from vidgen_ray.datasets import download
from vidgen_ray.datasets.download import fetch, list_files, read_checksums
from vidgen_ray.errors import DatasetError


class Handler(SimpleHTTPRequestHandler):
    """Serves files by ranges, and breaks off after `budget` bytes where one is set."""

    budget: int | None = None
    ranges = True
    served = 0

    def send_head(self) -> None:  # type: ignore[override]
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        wanted = self.headers.get("Range")
        if wanted and self.ranges:
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        body = data[first : last + 1]
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", hashlib.md5(data).hexdigest())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if Handler.budget is not None:
            body, Handler.budget = body[: Handler.budget], max(0, Handler.budget - len(body))
        Handler.served += len(body)
        self.wfile.write(body)
        if len(body) < last + 1 - first:
            self.close_connection = True

    do_GET = send_head  # type: ignore[assignment]  # noqa: N815
    do_HEAD = send_head  # type: ignore[assignment]  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    for number, name in enumerate(("training", "validation")):
        noise = np.random.default_rng(number).bytes(300_000)
        (folder / f"vatex_{name}_v1.0.json").write_bytes(noise)
    (folder / "vatex_public_test_english_v1.1.json").write_bytes(b"[]")
    return folder


@pytest.fixture
def url(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, "budget", None)
    monkeypatch.setattr(Handler, "ranges", True)
    monkeypatch.setattr(Handler, "served", 0)
    monkeypatch.setattr(download, "_CHUNK_BYTES", 50_000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(mirror)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch_all(source: str, output: Path, limit: int | None = None) -> list[bool]:
    return [fetch(file, output).is_new for file in list_files("vatex", source, limit)]


def test_files_arrive_whole_and_once(url: str, mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert fetch_all(url, output) == [True, True, True]
    for path in mirror.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert read_checksums(output / "SHA256SUMS")[path.name] == digest
    served = Handler.served
    assert fetch_all(url, output) == [False, False, False]
    assert Handler.served == served
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["SHA256SUMS", *(path.name for path in mirror.iterdir())]
    )


def test_a_download_that_broke_off_goes_on(url: str, mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    Handler.budget = 210_000
    with pytest.raises(DatasetError, match="run the same command again"):
        fetch_all(url, output)
    assert not list(output.glob("*.json"))
    Handler.budget, Handler.served = None, 0
    assert fetch_all(url, output) == [True, True, True]
    assert Handler.served == 600_002 - 200_000  # the four whole parts are not asked for again
    name = "vatex_training_v1.0.json"
    assert (output / name).read_bytes() == (mirror / name).read_bytes()


def test_parts_of_two_versions_are_never_joined(url: str, mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    Handler.budget = 210_000
    with pytest.raises(DatasetError):
        fetch_all(url, output)
    Handler.budget = None
    path = mirror / "vatex_training_v1.0.json"
    path.write_bytes(np.random.default_rng(9).bytes(300_000))
    fetch_all(url, output)
    assert (output / path.name).read_bytes() == path.read_bytes()


def test_a_server_without_ranges_will_do(url: str, mirror: Path, tmp_path: Path) -> None:
    Handler.ranges = False
    assert fetch_all(url, tmp_path / "out") == [True, True, True]
    name = "vatex_training_v1.0.json"
    assert (tmp_path / "out" / name).read_bytes() == (mirror / name).read_bytes()


def test_what_is_not_as_published_is_refused(url: str, mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    name = "vatex_validation_v1.0.json"
    (mirror / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(DatasetError, match=f"{name} has the SHA-256"):
        fetch_all(url, output)
    assert not (output / name).exists()
    assert not list(output.glob("*.partial"))
    digest = hashlib.sha256((mirror / name).read_bytes()).hexdigest()
    (mirror / "SHA256SUMS").write_text(f"{digest} *{name}\n")
    (output / "SHA256SUMS").unlink()
    fetch_all(url, output)
    assert (output / name).exists()
    (output / name).write_bytes(b"?" * 300_000)  # of the right size, but not the file
    with pytest.raises(DatasetError, match="remove the file"):
        fetch_all(url, output)


def test_a_limit_takes_that_many_videos_out_of_an_archive(
    url: str, mirror: Path, tmp_path: Path
) -> None:
    videos = {f"MSRVTT/videos/all/video{n}.mp4": bytes([n]) * 100_000 for n in range(8)}
    with zipfile.ZipFile(mirror / "MSRVTT.zip", "w") as archive:
        archive.writestr("MSRVTT/annotation/MSR_VTT.json", '{"annotations": []}')
        for name, data in videos.items():
            archive.writestr(name, data)
    output = tmp_path / "out"
    for file in list_files("msr-vtt", url, 2):
        fetch(file, output)
    found = [str(path.relative_to(output)) for path in output.rglob("*.*")]
    first_two = sorted(videos)[:2]
    assert sorted(found) == ["MSRVTT/annotation/MSR_VTT.json", *first_two]
    assert (output / first_two[1]).read_bytes() == videos[first_two[1]]
    (whole,) = list_files("msr-vtt", url, None)
    assert fetch(whole, tmp_path / "whole").size_bytes == (mirror / "MSRVTT.zip").stat().st_size


def test_a_folder_at_any_address_will_do(mirror: Path, tmp_path: Path) -> None:
    (mirror / "videos").mkdir()
    for number in range(3):
        (mirror / f"videos/{number}.mp4").write_bytes(b"x" * number)
    assert fetch_all(str(mirror), tmp_path / "out", limit=1) == [True] * 4
    assert [path.name for path in (tmp_path / "out/videos").iterdir()] == ["0.mp4"]


def test_what_is_not_offered_is_said(url: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Ask for the annotation files"):
        list_files("panda70m", None, None)
    with pytest.raises(DatasetError, match="cannot be read: FileNotFoundError"):
        list_files("msr-vtt", url, None)
    with pytest.raises(
        DatasetError, match=r"cannot reach 127\.0\.0\.1:9 .*local copy with --source"
    ):
        list_files("vatex", "http://127.0.0.1:9", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="offers no files"):
        list_files("vatex", str(tmp_path / "empty"), None)


class Hub(Handler):
    """The part of a model hub's interface that downloading a data set takes."""

    def send_head(self) -> None:  # type: ignore[override]
        path, _, _ = self.path.partition("?")
        files = {
            str(file.relative_to(self.directory)): file.stat().st_size
            for file in sorted(Path(self.directory).rglob("*.*"))
        }
        if path == "/api/datasets/desk/clips":
            self.answer({"id": "desk/clips", "sha": "c" * 40, "siblings": []})
        elif path.startswith("/api/datasets/desk/clips/tree/"):
            entries = [
                {"type": "file", "oid": "0" * 40, "size": size, "path": name}
                for name, size in files.items()
            ]
            self.answer(entries)
        elif path.startswith("/datasets/desk/clips/resolve/main/"):
            self.path = path.removeprefix("/datasets/desk/clips/resolve/main")
            super().send_head()
        else:
            self.send_error(404)

    def answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = send_head  # type: ignore[assignment]  # noqa: N815
    do_HEAD = send_head  # type: ignore[assignment]  # noqa: N815

    def translate_path(self, path: str) -> str:
        return str(Path(self.directory) / path.lstrip("/"))


def test_a_hub_id_is_a_source(tmp_path: Path) -> None:
    repository = tmp_path / "hub"
    (repository / "videos").mkdir(parents=True)
    (repository / "annotations.json").write_text("[]")
    for number in range(3):
        (repository / f"videos/{number}.mp4").write_bytes(bytes(1000))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(repository)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    words = ["dataset", "download", "msr-vtt", "--source", "desk/clips", "--limit", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "vidgen_ray", *words, "--output", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    fetched = read_checksums(tmp_path / "out/SHA256SUMS")
    assert sorted(fetched) == ["annotations.json", "videos/0.mp4", "videos/1.mp4"]
