"""On three nodes with object stores of their own nothing is lost or doubled, whatever happens."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.soak import Soak, cycle

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a folder read-only"),
]


@pytest.fixture
def soak(tmp_path: Path) -> Iterator[Soak]:
    soak = Soak(tmp_path / "soak", num_clips=60)
    try:
        yield soak
    finally:
        soak.close()


def test_a_batch_of_sixty_and_a_server_survive_every_fault(soak: Soak) -> None:
    soak.start()
    cycle(soak)
    soak.finish()  # raises where a clip or a job is missing, failed, or there twice
    print(soak.table())
    assert len({outcome.fault for outcome in soak.outcomes}) == 5
    assert all(outcome.made_again == 0 for outcome in soak.outcomes)
    assert soak.num_restarts == 1  # after everything was killed, not when a node could not write
