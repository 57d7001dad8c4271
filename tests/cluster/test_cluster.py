"""How many workers a cluster has room for, and whether its head is there."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from vidgen_ray.cluster.connect import PoolSize, is_listening, pool_size
from vidgen_ray.config import BatchConfig


@pytest.mark.parametrize(
    ("resources", "settings", "expected"),
    [
        ({"CPU": 16.0, "GPU": 2.0}, {}, PoolSize(1, 2, 2)),
        ({"CPU": 3.0, "GPU": 8.0}, {}, PoolSize(1, 2, 2)),  # the third CPU scores
        ({"CPU": 4.0}, {"num_gpus_per_worker": 0}, PoolSize(1, 3, 3)),
        ({"CPU": 2.0}, {"num_gpus_per_worker": 0}, PoolSize(1, 1, 1)),
        ({}, {"max_workers": 8}, PoolSize(1, 1, 8)),  # nodes are still to come
        ({"CPU": 64.0, "GPU": 8.0}, {"max_workers": 3}, PoolSize(1, 3, 3)),
    ],
)
def test_workers_leave_a_cpu_to_score(
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, float],
    settings: dict[str, object],
    expected: PoolSize,
) -> None:
    # Stands in for clusters that this machine cannot be.
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr("vidgen_ray.cluster.connect._ray_started_here", lambda: False)
    assert pool_size(BatchConfig(**settings), num_clips=100, reserved_cpus=1) == expected


def test_a_head_that_is_busy_is_told_from_one_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:  # accepts, and says nothing
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        assert is_listening(address)
    assert not is_listening(address)


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    home = {**os.environ, "HOME": str(tmp_path)}
    home.pop("RAY_AUTH_MODE", None)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scripts = [sys.executable, "-m", "ray.scripts.scripts"]
    flags = ["--head", "--port", str(port), "--include-dashboard=false", "--block"]
    address = f"127.0.0.1:{port}"
    doctor = [sys.executable, "-m", "vidgen_ray", "doctor", "--cluster", "--config", "nano"]
    doctor += ["--address", address]
    with subprocess.Popen([*scripts, "start", *flags], env=home, cwd=tmp_path) as head:
        try:
            for _ in range(120):
                if is_listening(address):
                    break
                time.sleep(0.5)
            refused = subprocess.run(doctor, env=home, capture_output=True, text=True)
            assert refused.returncode == 2
            assert "set RAY_AUTH_MODE=token" in refused.stderr
            known = {**home, "RAY_AUTH_MODE": "token"}
            found = subprocess.run(doctor, env=known, capture_output=True, text=True)
            assert "the same as here" in found.stdout + found.stderr
        finally:
            head.terminate()
