"""Following jobs: one look at the store for all who wait, however many they are."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator

from vidgen_ray.distributed.serving.jobs import Job, JobStore
from vidgen_ray.errors import StoreError

logger = logging.getLogger("ray.serve")

_INTERVAL_S = 0.1


class Watch:
    """Tells its followers of changes to jobs. The store is asked while there are any."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._followers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._latest: dict[str, Job | None] = {}
        self._task: asyncio.Task[None] | None = None

    async def follow(self, job: Job) -> AsyncGenerator[Job | None]:
        """The job now, then at every change, up to its end; None when it was removed."""
        changed = asyncio.Event()
        self._followers[job.id].add(changed)
        self._latest.pop(job.id, None)  # the next look tells everybody, so nothing is missed
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        seen: Job | None = job
        try:
            yield seen
            while seen is not None and not seen.has_ended:
                await changed.wait()
                changed.clear()
                latest = self._latest.get(job.id, seen)
                if _visible(latest) != _visible(seen):
                    seen = latest
                    yield seen
        finally:
            followers = self._followers[job.id]
            followers.discard(changed)
            if not followers:
                del self._followers[job.id]
                self._latest.pop(job.id, None)

    async def until_end(self, job: Job) -> Job | None:
        """The job when it has ended, None when it was removed."""
        async with contextlib.aclosing(self.follow(job)) as changes:
            latest: Job | None = job
            async for change in changes:
                latest = change
        return latest

    async def _look(self) -> None:
        while self._followers:
            followed = list(self._followers)
            try:
                jobs = await asyncio.to_thread(self._store.get_many, followed)
            except StoreError as error:
                logger.error("%s", error)
                await asyncio.sleep(10 * _INTERVAL_S)
                continue
            for job_id in followed:
                if job_id not in self._followers:
                    continue
                latest = jobs.get(job_id)
                known = job_id in self._latest
                if not known or _visible(self._latest[job_id]) != _visible(latest):
                    self._latest[job_id] = latest
                    for changed in self._followers[job_id]:
                        changed.set()
            await asyncio.sleep(_INTERVAL_S)


def _visible(job: Job | None) -> tuple[str, int, int, int] | None:
    """What a follower sees of a job; leases are renewed all the time."""
    return (job.status, job.step, job.num_steps, job.attempt) if job else None
