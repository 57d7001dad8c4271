"""Connecting to Ray: a named cluster, or one on this machine that ends with the run."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.data import DataContext

from vidgen_ray.config import BatchConfig, EncodingConfig
from vidgen_ray.errors import ConfigError

_CONNECT_TIMEOUT_S = 10.0
_STARTED_HERE: set[str] = set()  # addresses of the clusters that this process started


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within the context this process is a Ray driver.

    `address` is a cluster's (`auto`, `host:6379`, `ray://…`); None or `local` starts Ray on this
    machine and ends it with the context. An existing connection is used and kept. Raises
    ConfigError.
    """
    if ray.is_initialized():
        yield
        return
    advice = (
        "start a cluster with `ray start --head`, or leave --address and RAY_ADDRESS out to run on "
        "this machine"
    )
    try:
        if address in {None, "local"}:
            # Two logical CPUs at least: a worker holds one while others read, score and save.
            ray.init(
                address="local",
                num_cpus=max(2, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
            _STARTED_HERE.add(ray.get_runtime_context().gcs_address)
        else:
            _connect_tcp(address or "")
            if "RAY_AUTH_MODE" not in os.environ:
                advice = (
                    "something listens there and may want a token, as a Ray started where "
                    "~/.ray/auth_token exists does: set RAY_AUTH_MODE=token"
                )
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"ray: cannot connect to {address or 'local'}: {error}; {advice}"
        ) from None
    # Ray Data would draw its own progress under ours.
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def is_listening(address: str) -> bool:
    """Whether a connection to `host:port` is accepted."""
    try:
        _connect_tcp(address)
    except OSError:
        return False
    return True


def _connect_tcp(address: str) -> None:
    """Raise OSError at once where nothing listens at `host:port`: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()


@contextmanager
def native_log() -> Iterator[Path]:
    """Within the context Ray's C++ core logs to the yielded file instead of stderr.

    Its lines are for Ray's developers, one a second after a process was lost. Python's own stderr
    is unchanged. The file is removed unless the context ends with an error.
    """
    path = Path(tempfile.gettempdir()) / f"vidgen-ray-{os.getpid()}.log"
    sys.stderr.flush()
    terminal, python_stderr = os.dup(2), sys.stderr
    with path.open("wb") as file, os.fdopen(os.dup(terminal), "w", buffering=1) as python_copy:
        os.dup2(file.fileno(), 2)
        sys.stderr = python_copy
        try:
            yield path
        finally:
            sys.stderr = python_stderr
            os.dup2(terminal, 2)
            os.close(terminal)
    path.unlink()


@dataclass(frozen=True)
class PoolSize:
    """How many generation workers: at least, at the start, and at most."""

    least: int
    initial: int
    most: int


def pool_size(
    batch: BatchConfig | EncodingConfig,
    num_clips: int,
    *,
    reserved_cpus: float,
    section: str = "batch",
    gpus_per_clip: int = 1,
) -> PoolSize:
    """Workers for `num_clips` on the cluster as it is now, and as `batch` lets it grow.

    `reserved_cpus` are left to the other stages: workers that took every CPU would deadlock with
    them. Whether a worker's GPUs are on one node shows only when it starts. `section` is the name
    of `batch` in the configuration. Raises ConfigError where workers need GPUs and a Ray started
    on this machine has none.
    """
    resources = ray.cluster_resources()
    num_gpus = batch.num_gpus_per_worker * gpus_per_clip
    spare_cpus = resources.get("CPU", 0) - reserved_cpus
    room = max(0, int(spare_cpus // batch.num_cpus_per_worker))
    if num_gpus:
        room = min(room, int(resources.get("GPU", 0) // num_gpus))
    if resources.get("GPU", 0) < num_gpus and _ray_started_here():
        ranks = f" for each of model.gpus_per_clip: {gpus_per_clip}" if gpus_per_clip > 1 else ""
        raise ConfigError(
            f"{section}.num_gpus_per_worker: {batch.num_gpus_per_worker:g}{ranks}, but this "
            f"machine has {resources.get('GPU', 0):g} GPUs; use --config nano for the small model "
            "on the CPU, or name a cluster with --address"
        )
    most = max(1, min(num_clips, max(batch.max_workers or room, batch.min_workers)))
    return PoolSize(min(batch.min_workers, most), max(1, min(room, most)), most)


def _ray_started_here() -> bool:
    return ray.get_runtime_context().gcs_address in _STARTED_HERE
