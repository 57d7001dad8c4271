"""How many workers a cluster has room for, and whether its head is there."""

import socket

import pytest
import ray

from vidgen_ray.config import BatchConfig
from vidgen_ray.distributed.cluster import PoolSize, is_listening, pool_size


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
    monkeypatch.setattr("vidgen_ray.distributed.cluster._ray_is_ours", lambda: False)
    assert pool_size(BatchConfig(**settings), num_clips=100, reserved_cpus=1) == expected


def test_a_head_that_is_busy_is_told_from_one_that_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:  # accepts, and says nothing
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        assert is_listening(address)
    assert not is_listening(address)
