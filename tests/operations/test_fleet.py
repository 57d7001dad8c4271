"""Every node is looked at, and what is wrong with one is said of that one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_cluster import BIN, LocalCluster
from vidgen_ray.operations.fleet import check_collective

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    running = LocalCluster(tmp_path_factory.mktemp("fleet"))
    try:
        yield running.start(num_workers=2)
    finally:
        running.close()


def vidgen(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "vidgen"), *arguments, "--config", "nano"],
        env={**cluster.environment(), "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.thorough
def test_processes_of_one_node_add_up() -> None:
    check = check_collective()
    assert check.ok, check.finding
    assert "all-reduce" in check.finding


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_that_is_well(cluster: LocalCluster, tmp_path: Path) -> None:
    done = vidgen(cluster, "doctor", "--cluster", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("versions", "clock", "gpu", "cache", "weights", "output"):
        assert done.stdout.count(f"  {check} ") == 3, done.stdout
    assert "3 of 3 nodes write to the storage that this machine reads" in done.stdout
    assert list((tmp_path / "out").rglob("doctor*")) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a folder read-only")
def test_a_node_that_cannot_write_is_named(cluster: LocalCluster, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    cluster.refuse_writes("worker-2", output)
    try:
        done = vidgen(cluster, "doctor", "--cluster", "--output", str(output))
    finally:
        cluster.allow_writes("worker-2", output)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "MISSING output" in line]
    assert "Read-only file system" in line
    assert "2 of 3 nodes write" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_prefetch_visits_every_node(cluster: LocalCluster) -> None:
    done = vidgen(cluster, "prefetch", "--address", cluster.address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 3
    missing = ["--set", "model.checkpoint=/no/such/folder"]
    done = vidgen(cluster, "prefetch", "--address", cluster.address, *missing)
    assert done.returncode == 1
    assert done.stdout.count("MISSING") == 3
    assert "model.checkpoint: must be" in done.stdout


def test_prefetch_of_this_machine() -> None:
    command = [sys.executable, "-m", "vidgen_ray", "prefetch", "--config", "nano"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "vidgen_ray/model/nano" in done.stdout


@pytest.mark.thorough
def test_doctor_without_a_cluster_says_so_at_once() -> None:
    command = [sys.executable, "-m", "vidgen_ray", "doctor", "--cluster", "--config", "nano"]
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 2
    assert "ray: cannot connect to 127.0.0.1:1" in done.stderr
    assert "Connection refused" in done.stderr
