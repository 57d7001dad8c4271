"""`serve run` in a process of its own, on a port and a Ray of its own."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml
from PIL import Image

from tests.support.local_cluster import free_port

T = TypeVar("T")


def picture(width: int = 96, height: int = 64, kind: str = "PNG") -> bytes:
    """A small image file."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def until(condition: Callable[[], T], timeout_s: float = 60, every_s: float = 0.1) -> T:
    """What `condition` gives once it is true."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s} s")


def application(name: str, prefix: str, args: dict[str, Any], **generator: Any) -> dict[str, Any]:
    """An application of a Serve config that asks for no CPUs, so that any number fit."""
    deployments: list[dict[str, Any]] = [
        {"name": "Ingress", "graceful_shutdown_timeout_s": 5},
        {"name": "Dispatcher", "graceful_shutdown_timeout_s": 60},
        {"name": "Generator", "graceful_shutdown_timeout_s": 60, **generator},
        {"name": "Scorer", "graceful_shutdown_timeout_s": 30},
    ]
    for deployment in deployments:
        deployment["ray_actor_options"] = {"num_cpus": 0, "num_gpus": 0}
    one_thread = {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}}
    deployments[0]["ray_actor_options"]["runtime_env"] = one_thread  # as the shipped files have it
    return {
        "name": name,
        "route_prefix": prefix,
        "import_path": "vidgen_ray.serving.app:build_app",
        "args": {"config": "nano", "lease_s": 3, "drain_s": 50, **args},
        "deployments": deployments,
    }


class Server:
    """A server that can be asked, redeployed, hurt and started again."""

    def __init__(self, folder: Path, applications: list[dict[str, Any]], **options: Any) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        self._config = folder / "serve.yaml"
        self._options = options
        self.write(applications)
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, applications: list[dict[str, Any]]) -> None:
        """The config file of the next start or redeploy."""
        tree = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "logging_config": {"encoding": "JSON"},
            "applications": applications,
            **self._options,
        }
        self._config.write_text(yaml.safe_dump(tree))

    def start(self, ready: str | None = "/health") -> "Server":
        """Start, and wait until the application says that it is well."""
        self._launch()
        if ready is not None:
            self.wait(ready)
        return self

    def wait(self, path: str = "/health", timeout_s: float = 240) -> None:
        """Wait until `path` says ok."""

        def is_well() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                # Ray gives its own node 30 s to start, however busy the machine is.
                log = self.log.read_text()[-4000:]
                assert "node timed out during startup" in log, log
                self._launch()
            with contextlib.suppress(httpx.HTTPError, ValueError):
                answer = httpx.get(self.url + path, timeout=5)
                return answer.status_code == 200 and answer.json()["status"] == "ok"
            return False

        until(is_well, timeout_s, 0.3)

    def _launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._serve, "run", str(self._config), "--address", "local"],
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def redeploy(self, applications: list[dict[str, Any]]) -> None:
        """Deploy a new config on the running Ray, as `serve deploy` does."""
        self.write(applications)
        dashboard = re.findall(rb"http://127\.0\.0\.1:\d+", self.log.read_bytes())[-1].decode()
        command = [self._serve, "deploy", str(self._config), "-a", dashboard]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of this server whose title holds `title`, such as `vidgen:Generator`."""
        return [process for process in self._all() if title in _title(process)]

    def kill(self, title: str) -> list[int]:
        """SIGKILL to these processes; their ids."""
        found = self.processes(title)
        assert found, [_title(process) for process in self._all()]
        for process in found:
            process.send_signal(signal.SIGKILL)
        return [process.pid for process in found]

    def kill_everything(self) -> None:
        """SIGKILL to every process of this Ray."""
        doomed = self._all()
        assert self._process is not None
        self._process.kill()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(doomed, timeout=10)

    def stop(self) -> None:
        """End the server in good order, and what is left of it by force."""
        if self._process is None or self._process.poll() is not None:
            return
        left = self._all()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=30)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait()

    def entries(self, message: str) -> list[dict[str, Any]]:
        """What the replicas of the Ray that runs now have logged under this message."""
        assert self._process is not None
        found = []
        pattern = f"session_*_{self._process.pid}/logs/serve/replica_*.log"
        for log in self._ray_folder.glob(pattern):
            for line in log.read_text().splitlines():
                if f'"message": "{message}"' in line:
                    found.append(json.loads(line))
        return found

    def logs(self) -> list[Path]:
        """Every log file of the Ray that runs now, and this server's own."""
        assert self._process is not None
        found = self._ray_folder.glob(f"session_*_{self._process.pid}/logs/**/*")
        return [self.log, *(path for path in found if path.is_file())]

    def _all(self) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    @property
    def _ray_folder(self) -> Path:
        """Where the server's Ray keeps its sessions: RAY_TMPDIR and TMPDIR may move it."""
        from ray._common.utils import get_default_ray_temp_dir

        return Path(get_default_ray_temp_dir())

    @property
    def _serve(self) -> str:
        return str(Path(sys.executable).parent / "serve")

    @property
    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {**ours, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
