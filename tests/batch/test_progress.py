"""A run gives up on a Ray that is gone, and waits for one that is busy."""

import io
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from rich.console import Console

from vidgen_ray.batch import progress
from vidgen_ray.batch.progress import RunProgress
from vidgen_ray.generation.artifacts import ArtifactStore


class Ended(BaseException):
    """Stands in for the end of this process."""


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunProgress:
    """A run whose board has not answered for a minute, as if Ray's processes had no CPU."""

    def no_answer(*_: object, **__: object) -> None:
        raise ray.exceptions.GetTimeoutError

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(ray, "get", no_answer)
    monkeypatch.setattr(os, "_exit", end)
    run = RunProgress(
        ArtifactStore(str(tmp_path / "out")),
        Console(file=io.StringIO()),
        run_id="run",
        config_name="nano",
        ids=["a"],
        records={},
        min_temporal_score=0.6,
    )
    run._board = SimpleNamespace(activities=SimpleNamespace(remote=lambda: None))
    run._heard = time.monotonic() - 60
    return run


def test_a_busy_head_is_waited_for_and_one_that_is_gone_is_not(silent: RunProgress) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        silent._head = f"127.0.0.1:{head.getsockname()[1]}"
        silent._read_board()
    with pytest.raises(Ended):
        silent._read_board()


def test_patience_ends(silent: RunProgress) -> None:
    silent._heard = time.monotonic() - progress._NO_ANSWER_S - 1
    with socket.create_server(("127.0.0.1", 0)) as head:
        silent._head = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(Ended):
            silent._read_board()
