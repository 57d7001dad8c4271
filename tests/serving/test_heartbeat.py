"""A silent Generator is killed, and no other."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from serving_process import until

from vidgen_ray.serving.deployments import heartbeat
from vidgen_ray.serving.deployments.heartbeat import Heartbeat, HeartbeatMonitor
from vidgen_ray.serving.queue.store import JobStore

pytestmark = pytest.mark.usefixtures("ray_cluster")

_names = (f"replica-{number}" for number in itertools.count())


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def store(url: str) -> JobStore:
    return JobStore(url)


def start(url: str, every_s: float) -> Any:
    """An actor that sends heartbeats, and works as long as it is asked to."""

    class Replica:  # here, so that it is pickled by value
        def __init__(self) -> None:
            heartbeat._EVERY_S = every_s
            self._heartbeat = Heartbeat(JobStore(url).reports)

        def work(self, seconds: float) -> str:
            threading.Event().wait(seconds)
            return "done"

        def stop(self) -> None:
            self._heartbeat.stop()

    replica = ray.remote(Replica).options(name=next(_names), num_cpus=0).remote()
    ray.get(replica.work.remote(0))
    return replica


def beats(store: JobStore) -> dict[str, tuple[dict[str, str], float]]:
    return store.reports.read_all("generator-")


def test_a_silent_generator_is_killed_and_a_slow_step_is_not(
    url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_SILENT_S", 1.0)
    slow, silent = start(url, 0.05), start(url, 3600)
    until(lambda: len(beats(store)) == 2)
    slow_step, lost_step = slow.work.remote(4), silent.work.remote(60)
    monitor = HeartbeatMonitor(store.reports, check_every_s=0.25)
    for checks in range(8):
        assert len(beats(store)) == (2 if checks <= 4 else 1)
        time.sleep(0.25)
        monitor.check()
    with pytest.raises(RayActorError):
        ray.get(lost_step, timeout=20)
    assert ray.get(slow_step, timeout=20) == "done"
    ray.get(slow.stop.remote())
    assert beats(store) == {}


def test_nobody_is_killed_after_the_store_was_away(
    url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_SILENT_S", 1.0)
    replica = start(url, 3600)
    until(lambda: beats(store))
    monitor = HeartbeatMonitor(store.reports, check_every_s=0.25)
    for _ in range(2):
        for _ in range(4):
            monitor.check()
        monitor.reset()
    assert ray.get(replica.work.remote(0), timeout=20) == "done"


def test_a_replica_of_another_cluster_is_left_alone(store: JobStore) -> None:
    report = {"actor": "elsewhere", "namespace": "serve"}
    store.reports.write("generator-elsewhere", report)
    monitor = HeartbeatMonitor(store.reports, check_every_s=30)
    for _ in range(5):
        monitor.check()
    assert [found for found, _ in beats(store).values()] == [report]
