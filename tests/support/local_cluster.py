"""A Ray cluster of several nodes on one machine, to be hurt: each node has its own processes,
object store and, as root, its own view of the file system."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

BIN = Path(sys.executable).parent
_START_TIMEOUT_S = 300.0


@dataclass
class Node:
    """A node's `ray start --block`, and the processes that it has started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    options: list[str]

    def kill(self) -> None:
        """SIGKILL to the raylet first, then to all that it leaves behind."""
        processes = self.processes()
        for process in sorted(processes, key=lambda each: "raylet" not in _name(each)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(processes, timeout=10)

    def processes(self) -> list[psutil.Process]:
        """Every process of this node that lives."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


@dataclass
class LocalCluster:
    """A head that takes no tasks and any number of workers. `folder` holds logs."""

    folder: Path
    object_store_bytes: int = 150_000_000
    metrics_report_interval_ms: int = 2000
    port: int = field(default_factory=lambda: free_port())
    dashboard_port: int = field(default_factory=lambda: free_port())
    head: Node | None = None
    workers: dict[str, Node] = field(default_factory=dict)
    temp_dir: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="r-")))

    @property
    def address(self) -> str:
        """For `--address` and RAY_ADDRESS."""
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        """The Jobs and Serve API."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self, num_workers: int) -> "LocalCluster":
        """Start the head and so many workers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ["--head", f"--port={self.port}", "--num-cpus=0", "--dashboard-host=127.0.0.1"]
        options += [f"--dashboard-port={self.dashboard_port}", f"--temp-dir={self.temp_dir}"]
        options += [f"--ray-client-server-port={free_port()}", "--include-log-monitor=false"]
        self.head = self._start("head", options)
        self._wait(1)
        for number in range(num_workers):
            self.add(f"worker-{number + 1}")  # two at once may choose the same ports
        return self

    def add(self, name: str, *, num_cpus: int = 4, wait: bool = True) -> Node:
        """Start one more worker; its node has the resource `name`."""
        options = [f"--address={self.address}", f"--num-cpus={num_cpus}"]
        options += [f"--resources={json.dumps({name: 1})}"]
        self.workers[name] = self._start(name, options)
        if wait:
            self._wait(1 + len(self.workers))
        return self.workers[name]

    def kill(self, name: str) -> None:
        """SIGKILL to everything of a worker."""
        self.workers.pop(name).kill()

    def drain(self, name: str, deadline_s: int = 60) -> None:
        """Tell Ray that a worker will go, as a spot instance's notice does, then let it go."""
        node_id = self._node_id(name)
        self._ray(
            *("drain-node", "--address", self.address, "--node-id", node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"),
            *("--deadline-remaining-seconds", str(deadline_s)),
        )

    def refuse_writes(self, name: str, path: Path) -> None:
        """Make `path` read-only for the processes of one worker alone. Needs root."""
        self._within(name, "mount", "--bind", str(path), str(path))
        self._within(name, "mount", "-o", "remount,ro,bind", str(path))

    def allow_writes(self, name: str, path: Path) -> None:
        """End `refuse_writes`."""
        self._within(name, "umount", "--lazy", str(path))

    def kill_everything(self) -> None:
        """SIGKILL to every node, as a power failure does."""
        for node in [*self.workers.values(), *([self.head] if self.head else [])]:
            node.kill()
        self.workers.clear()
        self.head = None

    def close(self) -> None:
        """End everything and remove what Ray wrote."""
        self.kill_everything()
        shutil.rmtree(self.temp_dir, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """For processes that are to use this cluster."""
        ours = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {
            **ours,
            "RAY_AUTH_MODE": "disabled",
            "RAY_metrics_report_interval_ms": str(self.metrics_report_interval_ms),
            "RAY_worker_niceness": "0",
            "RAY_ENABLE_AUTO_CONNECT": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def _start(self, name: str, options: list[str]) -> Node:
        log = self.folder / f"{name}.log"
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
        command += [f"--object-store-memory={self.object_store_bytes}"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        if os.geteuid() == 0 and shutil.which("unshare"):
            command = ["unshare", "--mount", "--propagation", "private", *command]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=self.environment(), start_new_session=True
            )
        return Node(name, process, log, options)

    def _within(self, name: str, *command: str) -> None:
        pid = self.workers[name].process.pid
        subprocess.run(["nsenter", "--target", str(pid), "--mount", *command], check=True)

    def _wait(self, num_nodes: int) -> None:
        end = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < end:
            if len(self.nodes()) >= num_nodes:
                return
            self._start_again()
            time.sleep(0.5)
        raise TimeoutError(f"{num_nodes} nodes did not start; see {self.folder}/*.log")

    def _start_again(self) -> None:
        """Start workers that gave up: Ray allows a node 30 s, too few on a busy machine."""
        for name, node in self.workers.items():
            if node.process.poll() is not None:
                self.workers[name] = self._start(name, node.options)

    def nodes(self) -> dict[str, dict[str, float]]:
        """Resources of the nodes that live, by id; none when the head does not answer."""
        url = f"{self.dashboard}/api/v0/nodes"
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = httpx.get(url, params={"detail": 1}, timeout=5, trust_env=False)
            nodes = answer.raise_for_status().json()["data"]["result"]["result"]
            return {
                node["node_id"]: node["resources_total"]
                for node in nodes
                if node["state"] == "ALIVE"
            }
        return {}

    def _node_id(self, name: str) -> str:
        return next(node_id for node_id, resources in self.nodes().items() if name in resources)

    def _ray(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(BIN / "ray"), *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout


def end_in_order() -> None:
    """Let SIGTERM end this program as an error does, so that its cluster is ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
