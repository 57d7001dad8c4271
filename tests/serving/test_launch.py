"""`vidgen serve` ends at once, with one line, when the server could not work."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving_process import application, until

from tests.support.local_cluster import free_port
from vidgen_ray.errors import ConfigError
from vidgen_ray.serving.http.keys import new_key
from vidgen_ray.serving.launch import check


@pytest.fixture
def tree(tmp_path: Path, tiny_overrides: dict[str, object]) -> dict[str, Any]:
    args = {"settings": tiny_overrides, "output": str(tmp_path / "out")}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [application("vidgen", "/", args)],
    }


def write(tmp_path: Path, tree: dict[str, Any]) -> str:
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def args_of(tree: dict[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = tree["applications"][0]["args"]
    return args


def test_a_good_file_passes(tmp_path: Path, tree: dict[str, Any]) -> None:
    check(write(tmp_path, tree))


def test_an_open_network_needs_keys(tmp_path: Path, tree: dict[str, Any]) -> None:
    tree["http_options"]["host"] = "0.0.0.0"
    with pytest.raises(ConfigError, match="there are no API keys"):
        check(write(tmp_path, tree))
    args_of(tree)["api_keys_file"] = str(tmp_path / "keys.yaml")
    with pytest.raises(ConfigError, match="api_keys_file"):
        check(write(tmp_path, tree))
    (tmp_path / "keys.yaml").write_text(f"desk: {new_key()[1]}\n")
    check(write(tmp_path, tree))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outptu", "x"),
        ("webhook_secret", "whsec_x"),
        ("lora_folder", "/dev/null/none"),
        ("config", "none"),
    ],
)
def test_a_wrong_argument_is_named(
    tmp_path: Path, tree: dict[str, Any], field: str, value: str
) -> None:
    args_of(tree)[field] = value
    with pytest.raises(ConfigError, match=field):
        check(write(tmp_path, tree))


@pytest.mark.parametrize("text", ["", "- a", "{", "applications: 5"])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="Serve config file"):
        check(str(path))


def test_a_port_in_use_is_refused_even_where_it_could_be_shared(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as Serve's proxies do
        other.bind(("127.0.0.1", tree["http_options"]["port"]))
        other.listen()
        with pytest.raises(ConfigError, match="is in use"):
            check(write(tmp_path, tree))


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).parent / "vidgen"), "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.thorough
def test_a_mistake_is_one_line_and_a_non_zero_exit(tmp_path: Path, tree: dict[str, Any]) -> None:
    tree["http_options"]["host"] = "0.0.0.0"
    done = run(write(tmp_path, tree), "--address", "local")
    assert done.returncode == 2
    assert done.stderr.count("\n") <= 3
    assert "there are no API keys" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.fixture
def running(tmp_path: Path, tree: dict[str, Any]) -> Iterator[str]:
    command = [str(Path(sys.executable).parent / "vidgen"), "serve", write(tmp_path, tree)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--address", "local"], stdout=log, stderr=log, env=environment
        )
    url = f"http://127.0.0.1:{tree['http_options']['port']}"

    def is_up() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until(is_up, 200, 0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_it_serves_and_request_ids_are_cleaned(running: str, tmp_path: Path) -> None:
    for given, expected in ((b"\xff\xfe", None), (b"desk-1", "desk-1"), (b"x" * 60_000, "x" * 128)):
        answer = httpx.get(f"{running}/health", headers=[(b"x-request-id", given)])
        assert answer.status_code == 200
        assert expected in {None, answer.headers["x-request-id"]}
        assert len(answer.headers["x-request-id"]) <= 128
    second = run(str(tmp_path / "serve.yaml"), "--address", "local")
    assert second.returncode == 2
    assert "is in use" in " ".join(second.stderr.split())


def test_the_folder_of_adapters_is_made_where_it_is_missing(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    args_of(tree)["lora_folder"] = str(tmp_path / "loras")
    check(write(tmp_path, tree))
    assert (tmp_path / "loras").is_dir()
    (tmp_path / "file").touch()
    args_of(tree)["lora_folder"] = str(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"lora_folder: must be a folder.*file"):
        check(write(tmp_path, tree))
