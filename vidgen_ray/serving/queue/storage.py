"""Whether the job store and the output can be written: asked for /health, and before dispatch."""

import asyncio
import logging
import os
import uuid
from collections.abc import Callable

from vidgen_ray.errors import ArtifactError, StoreError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.queue.store import JobStore

logger = logging.getLogger("ray.serve")

MIN_FREE_BYTES = 64_000_000
_CLIP_BYTES = 8_000_000  # a small file may still fit where a clip does not
_TIMEOUT_S = 15.0


class Storage:
    """Both of them, as one process of the service sees them."""

    def __init__(self, store: JobStore, artifacts: ArtifactStore, process: str) -> None:
        """`process` is the name under which this process reports to the store."""
        self._store = store
        self._artifacts = artifacts
        self._process = process
        self._clip_failed = False

    def output_failed(self) -> None:
        """A clip could not be written: from now on a file of its size must fit."""
        self._clip_failed = True

    async def problems(self, report: dict[str, str]) -> dict[str, str]:
        """What cannot be written now, by `output` and `database`; also stores `report`.

        The log says more than a client may see.
        """
        found = {
            "output": await _failure_of(self._write_output, "output"),
            "database": await _failure_of(
                lambda: self._store.reports.write(self._process, report), "database"
            ),
        }
        return {name: problem for name, problem in found.items() if problem}

    def _write_output(self) -> None:
        name = f".vidgen/probe-{uuid.uuid4().hex}"
        data = os.urandom(_CLIP_BYTES if self._clip_failed else 64)
        try:
            self._artifacts.write(name, data)
            if self._artifacts.read(name) != data:
                raise ArtifactError("output: what was written could not be read back")
        finally:
            self._artifacts.remove_file(name)
        folder = self._artifacts.local_path("")
        if folder is not None:
            stat = os.statvfs(folder)
            free = stat.f_bavail * stat.f_frsize
            if free < MIN_FREE_BYTES:
                raise ArtifactError(
                    f"output: must have {MIN_FREE_BYTES} bytes free, got {free}; make room"
                )
        self._clip_failed = False


async def _failure_of(write: Callable[[], None], name: str) -> str | None:
    """None when `write` worked, otherwise what a client may read."""
    try:
        await asyncio.wait_for(asyncio.to_thread(write), _TIMEOUT_S)
    except TimeoutError:
        logger.error("%s: did not answer within %g s", name, _TIMEOUT_S)
        return f"{name}: does not answer"
    except (ArtifactError, StoreError, OSError) as error:
        logger.error("%s", error)
        return f"{name}: cannot be written; the log says why"
    return None
