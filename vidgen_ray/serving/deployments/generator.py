"""The deployment that holds the model: one clip at a time, whatever Serve's clients do."""

import asyncio
import gc
import threading
import time

from vidgen_ray.config import Config
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.priority import step_aside
from vidgen_ray.serving.deployments.tasks import ClipTask, Made

_STALLED_S = 120.0


class Generator:
    """One model on one device. Weights are loaded before the replica counts as ready."""

    def __init__(self, arguments: ServingArguments, config: Config) -> None:
        step_aside()
        # Imports torch, which takes seconds and which only a replica needs. All of it stays, so
        # that looking for garbage meanwhile would only take longer.
        gc.disable()
        from vidgen_ray.serving.deployments.clip_maker import ClipMaker

        self._clip_timeout_s = arguments.clip_timeout_s
        self._maker = ClipMaker(arguments, config)
        gc.enable()
        # Serve does not stop a thread whose caller left: the next clip must wait for it here.
        self._lock = threading.Lock()
        self._deadline: float | None = None

    def __del__(self) -> None:
        """Serve calls this once no clip is being made; ranks would outlive the replica."""
        if hasattr(self, "_maker"):
            self._maker.close()

    async def generate(self, task: ClipTask) -> Made | None:
        """Make one attempt. None: the lease was lost, nobody wants the clip any more."""
        left = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(self._work, task, left))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread ends after its step; until then this replica is not free.
            left.set()
            await asyncio.wait([work])
            raise

    def check_health(self) -> None:
        """Ask for another process when a clip hangs beyond its time limit."""
        deadline = self._deadline
        if deadline is not None and time.monotonic() > deadline + _STALLED_S:
            raise RuntimeError("a clip hangs beyond its time limit")

    def _work(self, task: ClipTask, left: threading.Event) -> Made | None:
        with self._lock:
            self._deadline = time.monotonic() + self._clip_timeout_s
            try:
                return self._maker.make(task, left)
            finally:
                self._deadline = None
