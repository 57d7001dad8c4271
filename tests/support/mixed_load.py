"""Clips of a batch and of a server on a local cluster, counted: none lost, none doubled."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.local_cluster import BIN, LocalCluster, free_port
from tests.support.tiny_model import PHOTO, ROOT


def until(condition: Callable[[], Any], timeout_s: float, what: str, every_s: float = 0.2) -> float:
    """Wait until `condition` is true; how long it took, in seconds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() > start + timeout_s:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(every_s)
    return time.monotonic() - start


@dataclass
class BatchRun:
    """`vidgen batch` over `num_clips` rows, and what it leaves."""

    cluster: LocalCluster
    folder: Path
    num_clips: int
    settings: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "batch.log"
        rows = [
            {"id": f"clip-{number:03}", "image": str(PHOTO), "prompt": "slow push in"}
            for number in range(self.num_clips)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "jobs.jsonl").write_text(lines)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def start(self, *options: str) -> "BatchRun":
        """Start the driver, on the cluster's head."""
        sets = [f"--set={name}={json.dumps(value)}" for name, value in self.settings.items()]
        command = [str(BIN / "vidgen"), "batch", str(self.folder / "jobs.jsonl"), "--config=nano"]
        command += [f"--output={self.output}", f"--address={self.cluster.address}", *options]
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, *sets], stdout=file, stderr=file, env=self.cluster.environment()
            )
        return self

    def wait(self, timeout_s: float = 600) -> int:
        """The driver's exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to the driver."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def num_done(self) -> int:
        """Committed clips."""
        return len(list(self.output.glob("clip-*.json")))

    def written(self) -> dict[str, int]:
        """Modification times of committed clips, by name: a clip done twice has changed."""
        clips = (path.with_suffix(".mp4") for path in self.output.glob("clip-*.json"))
        return {path.stem: path.stat().st_mtime_ns for path in clips if path.exists()}

    def status(self) -> dict[str, Any]:
        """`status.json`; empty before it is there."""
        with contextlib.suppress(OSError, ValueError):
            tree: dict[str, Any] = json.loads((self.output / "status.json").read_text())
            return tree
        return {}

    def check(self) -> None:
        """Every id has one accepted record with its clip, and nothing else is there."""
        lines = (self.output / "manifest.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        wanted = [f"clip-{number:03}" for number in range(self.num_clips)]
        assert [record["id"] for record in records] == wanted
        for record in records:
            assert record["status"] == "accepted", record
            path = self.output / record["artifact"]["filename"]
            assert path.stat().st_size == record["artifact"]["size_bytes"], record["id"]
        assert {path.stem for path in self.output.glob("*.mp4")} == set(wanted)


@dataclass
class Service:
    """The application on the cluster's Ray Serve, and the jobs that were posted to it."""

    cluster: LocalCluster
    folder: Path
    settings: dict[str, Any]
    num_generators: int = 1
    port: int = field(default_factory=free_port)
    accepted: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def deploy(self, timeout_s: float = 300) -> float:
        """Deploy and wait until it is well; how long that took, in seconds."""
        start = time.monotonic()
        self.output.mkdir(parents=True, exist_ok=True)
        config = self.folder / "serve.yaml"
        config.write_text(yaml.safe_dump(self._config()))
        done = subprocess.run(
            [str(BIN / "serve"), "deploy", str(config), "-a", self.cluster.dashboard],
            env=self.cluster.environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        until(self.is_well, timeout_s, "the service")
        return time.monotonic() - start

    def is_well(self) -> bool:
        """Whether `/health` says ok."""
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = httpx.get(f"{self.url}/health", timeout=5, trust_env=False)
            return bool(answer.json()["status"] == "ok")
        return False

    def post(self, **fields: Any) -> bool:
        """Ask for a clip; whether it was accepted."""
        data = {"prompt": "slow push in", **{name: str(value) for name, value in fields.items()}}
        files = {"input_reference": PHOTO.read_bytes()}
        try:
            answer = httpx.post(
                f"{self.url}/v1/videos", data=data, files=files, timeout=20, trust_env=False
            )
        except httpx.HTTPError:
            return False
        if answer.is_success:
            self.accepted.append(answer.json()["id"])
        return answer.is_success

    def job(self, video_id: str) -> dict[str, Any]:
        """A job as its client sees it; empty while the service does not answer."""
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = httpx.get(f"{self.url}/v1/videos/{video_id}", timeout=20, trust_env=False)
            tree: dict[str, Any] = answer.json() if answer.is_success else {}
            return tree
        return {}

    def num_open(self) -> int:
        """Accepted jobs that have not ended."""
        ends = {"completed", "failed", "cancelled"}
        return sum(self.job(video_id).get("status") not in ends for video_id in self.accepted)

    def check(self) -> None:
        """Every accepted job is completed, with one clip and one record."""
        for video_id in self.accepted:
            assert self.job(video_id).get("status") == "completed", self.job(video_id)
            names = sorted(path.name for path in self.output.glob(f"{video_id}*.*"))
            assert names == [f"{video_id}.json", f"{video_id}.mp4"], names
        assert len(set(self.accepted)) == len(self.accepted)

    def _config(self) -> dict[str, Any]:
        tree: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "serve_nano.yaml").read_text())
        tree["http_options"]["port"] = self.port
        (app,) = tree["applications"]
        app["args"] = {
            "config": "nano",
            "settings": self.settings,
            "output": str(self.output),
            "lease_s": 5,
            "max_tries": 10,
            "drain_s": 50,
        }
        for deployment in app["deployments"]:
            deployment["graceful_shutdown_timeout_s"] = 60
            deployment["ray_actor_options"] = {"num_cpus": 0.1, "num_gpus": 0}
            if deployment["name"] in {"Ingress", "Dispatcher"}:
                deployment["ray_actor_options"]["num_cpus"] = 0
            if deployment["name"] == "Generator":
                deployment["num_replicas"] = self.num_generators
        return tree
