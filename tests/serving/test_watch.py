"""Polls and followers share what is read of the store, and what they see is never old."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from vidgen_ray.serving.queue.store import Job, JobStore, NewJob
from vidgen_ray.serving.queue.watch import Watch


class CountingStore(JobStore):
    """A job store that counts its readings."""

    num_readings = 0

    def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]:
        self.num_readings += 1
        return super().get_many(job_ids)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    store = CountingStore(f"sqlite:///{tmp_path}/jobs.db")
    store.add(NewJob("video_1", "desk", "nano", None, "{}", "r1", "f", 4), max_queued=10)
    return store


def test_a_crowd_of_polls_shares_a_few_readings(store: CountingStore) -> None:
    async def crowd() -> float:
        watch = Watch(store)

        async def poll(index: int) -> None:
            await asyncio.sleep(index / 1000)
            assert await watch.look("video_1") is not None

        start = time.monotonic()
        await asyncio.gather(*(poll(index) for index in range(300)))
        return time.monotonic() - start

    seconds = asyncio.run(crowd())
    assert store.num_readings <= 50 * seconds + 2


def test_a_poll_sees_what_was_written_just_before(store: CountingStore) -> None:
    async def look_twice() -> tuple[Job | None, Job | None]:
        watch = Watch(store)
        before = await watch.look("video_1")
        store.cancel("video_1")
        return before, await watch.look("video_1")

    before, after = asyncio.run(look_twice())
    assert before is not None
    assert after is not None
    assert (before.status, after.status) == ("queued", "cancelled")


def test_every_follower_of_a_crowd_hears_of_the_end(store: CountingStore) -> None:
    async def crowd() -> list[Job | None]:
        watch = Watch(store)
        job = await watch.look("video_1")
        assert job is not None
        following = [asyncio.create_task(watch.until_end(job)) for _ in range(100)]
        await asyncio.sleep(0.3)
        store.cancel("video_1")
        return await asyncio.wait_for(asyncio.gather(*following), 10)

    ends = asyncio.run(crowd())
    assert [job.status for job in ends if job] == ["cancelled"] * 100


def test_a_crowd_is_told_in_parts_so_that_others_are_answered_meanwhile(
    store: CountingStore,
) -> None:
    async def crowd() -> list[float]:
        watch = Watch(store)
        job = await watch.look("video_1")
        assert job is not None
        told: list[float] = []

        async def follow() -> None:
            async for change in watch.follow(job):
                if change is not None and change.has_ended:
                    told.append(time.monotonic())

        following = [asyncio.create_task(follow()) for _ in range(100)]
        await asyncio.sleep(0.3)
        store.cancel("video_1")
        await asyncio.wait_for(asyncio.gather(*following), 10)
        return told

    told = asyncio.run(crowd())
    assert max(told) - min(told) > 0.1
