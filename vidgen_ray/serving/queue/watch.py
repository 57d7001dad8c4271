"""Reads of jobs for polls and event streams, shared by all that come at the same time."""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator

from vidgen_ray.errors import StoreError
from vidgen_ray.serving.queue.store import Job, JobStore

logger = logging.getLogger("ray.serve")

_READINGS_APART_S = 0.02  # a crowd of polls shares fifty readings a second
_INTERVAL_S = 0.1
_WOKEN_AT_ONCE = 10
_WAKING_PAUSE_S = 0.02
_RETRY_S = 1.0
_REPEAT_S = 15.0  # so that no proxy closes a connection as idle


class Watch:
    """Jobs for polls, and their changes for followers. Nothing is cached: a poll that comes while
    the store is being read waits for the next read.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._asked: dict[str, asyncio.Future[Job | None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._read_at = 0.0
        self._followers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._following: asyncio.Task[None] | None = None

    async def look(self, job_id: str) -> Job | None:
        """The job as it is in the store; None when there is none. Raises StoreError."""
        future = self._asked.get(job_id)
        if future is None:
            future = self._asked[job_id] = asyncio.get_running_loop().create_future()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(future)

    async def follow(self, job: Job) -> AsyncGenerator[Job | None]:
        """The job now, at every change and every 15 s, up to its end; None when it was removed."""
        changed = asyncio.Event()
        changed.set()  # `job` may be old already
        self._followers[job.id].add(changed)
        if self._following is None or self._following.done():
            self._following = asyncio.create_task(self._tick())
        seen: Job | None = job
        try:
            yield seen
            while seen is not None and not seen.has_ended:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REPEAT_S):  # cheaper than `wait_for`, by a task
                        await changed.wait()
                due = not changed.is_set()
                changed.clear()
                with contextlib.suppress(StoreError):
                    latest = await self.look(job.id)
                    if due or _visible(latest) != _visible(seen):
                        seen = latest
                        yield seen
        finally:
            self._followers[job.id].discard(changed)
            if not self._followers[job.id]:
                del self._followers[job.id]

    async def until_end(self, job: Job) -> Job | None:
        """The job when it has ended, None when it was removed."""
        async with contextlib.aclosing(self.follow(job)) as changes:
            latest: Job | None = job
            async for change in changes:
                latest = change
        return latest

    async def _read(self) -> None:
        while self._asked:
            await asyncio.sleep(self._read_at + _READINGS_APART_S - time.monotonic())
            self._read_at = time.monotonic()
            asked, self._asked = self._asked, {}
            try:
                jobs = await asyncio.to_thread(self._store.get_many, list(asked))
            except StoreError as error:
                for future in asked.values():
                    future.set_exception(error)
                continue
            for job_id, future in asked.items():
                future.set_result(jobs.get(job_id))

    async def _tick(self) -> None:
        """Wake the followers of jobs that have changed."""
        known: dict[str, tuple[str, int, int, int] | None] = {}
        while self._followers:
            try:
                jobs = await asyncio.to_thread(self._store.get_many, list(self._followers))
            except StoreError as error:
                logger.error("%s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            now = {job_id: _visible(jobs.get(job_id)) for job_id in self._followers}
            waking = [
                changed
                for job_id, state in now.items()
                if job_id not in known or known[job_id] != state
                for changed in self._followers[job_id]
            ]
            known = now
            # Few at a time, so that polls are answered in between.
            for start in range(0, len(waking), _WOKEN_AT_ONCE):
                for changed in waking[start : start + _WOKEN_AT_ONCE]:
                    changed.set()
                await asyncio.sleep(_WAKING_PAUSE_S)
            await asyncio.sleep(_INTERVAL_S)


def _visible(job: Job | None) -> tuple[str, int, int, int] | None:
    """What a follower sees of a job; leases are renewed all the time."""
    return (job.status, job.step, job.num_steps, job.attempt) if job else None
