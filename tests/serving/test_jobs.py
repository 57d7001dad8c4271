"""The job store keeps what it accepted, and gives each job to one worker at a time."""

import json
import sqlite3
import threading
import time
import uuid
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, text

from vidgen_ray.errors import ConfigError, StoreError
from vidgen_ray.serving.queue.store import (
    IdempotencyConflict,
    JobResult,
    JobStore,
    NewJob,
    OwnerQueueFull,
    QueueFull,
)

LEASE_S = 5.0


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    server = request.getfixturevalue("postgresql")
    name = f"test_{uuid.uuid4().hex[:8]}"
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return str(server.url).removesuffix("postgres") + name


@pytest.fixture
def store(url: str) -> JobStore:
    return JobStore(url, retention_s=3600)


def new(job_id: str, **changes: object) -> NewJob:
    values: dict[str, object] = {
        "id": job_id,
        "owner": "desk",
        "model": "nano",
        "lora": None,
        "request": "{}",
        "http_request_id": "r1",
        "fingerprint": "f",
        "num_steps": 4,
    }
    return NewJob(**{**values, **changes})  # type: ignore[arg-type]


def add(store: JobStore, *job_ids: str, **changes: object) -> None:
    for job_id in job_ids:
        store.add(new(job_id, **changes), max_queued=100)


def lease(store: JobStore, dispatcher: str = "d1", limit: int = 10, lease_s: float = LEASE_S):  # type: ignore[no-untyped-def]
    return store.lease(dispatcher, limit, lease_s, max_tries=3)


def test_jobs_are_leased_oldest_first_and_once(store: JobStore) -> None:
    add(store, "a", "b", "c")
    assert [job.id for job in lease(store, "d1", 2)] == ["a", "b"]
    assert [job.id for job in lease(store, "d2")] == ["c"]
    assert not lease(store, "d2")


def test_a_job_survives_its_process(store: JobStore, url: str) -> None:
    add(store, "a")
    assert JobStore(url).get("a", "desk") == store.get("a", "desk")


def test_two_dispatchers_at_once_share_the_jobs(store: JobStore, url: str) -> None:
    add(store, *(f"j{number:02d}" for number in range(30)))
    taken: list[str] = []

    def work(name: str) -> None:
        mine = JobStore(url)
        while jobs := lease(mine, name, 2):
            taken.extend(job.id for job in jobs)

    threads = [threading.Thread(target=work, args=(f"d{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [f"j{number:02d}" for number in range(30)]


def test_steps_show_progress_and_keep_the_lease(store: JobStore) -> None:
    add(store, "a")
    (job,) = lease(store, lease_s=0.3)
    assert job.lease_token
    for step in range(3):
        assert store.step("a", job.lease_token, step, 4, 60)
    time.sleep(0.4)
    now = store.get("a")
    assert now is not None
    assert (now.status, now.step, now.num_steps) == ("in_progress", 2, 4)
    store.renew_all("d1", 60)
    assert not lease(store, "d2")


def test_a_lease_that_ran_out_is_taken_over_and_its_holder_told(store: JobStore) -> None:
    add(store, "a")
    (first,) = lease(store, lease_s=0.05)
    assert first.lease_token
    time.sleep(0.1)
    (second,) = lease(store, "d2")
    assert second.tries == 2
    assert not store.step("a", first.lease_token, 1, 4, LEASE_S)
    assert not store.finish("a", first.lease_token, JobResult("completed"))
    assert second.lease_token
    assert store.finish("a", second.lease_token, JobResult("completed"))


def test_jobs_of_a_silent_dispatcher_are_free_though_a_step_renewed_them(store: JobStore) -> None:
    add(store, "a")
    (job,) = lease(store, "dead")
    assert job.lease_token
    store.step("a", job.lease_token, 1, 4, lease_s=600)
    assert not lease(store, "d2")
    store.forget("dead")
    assert [job.id for job in lease(store, "d2")] == ["a"]


def test_only_the_tries_that_are_blamed_count(store: JobStore) -> None:
    add(store, "a")
    for _ in range(5):
        (job,) = lease(store)
        assert job.tries == 1
        assert store.release("a", job.lease_token, blame=False)
    for tries in (1, 2, 3):
        (job,) = lease(store)
        assert job.tries == tries
        assert store.release("a", job.lease_token, blame=True)
    assert not lease(store)
    ended = store.get("a")
    assert ended is not None
    assert (ended.status, ended.error_code) == ("failed", "worker_died")


def test_a_job_given_back_for_later_waits(store: JobStore) -> None:
    add(store, "a")
    (job,) = lease(store)
    store.release("a", job.lease_token, blame=True, delay_s=0.2)
    assert not lease(store)
    time.sleep(0.25)
    assert lease(store)


def test_cancel_ends_a_job_and_its_lease(store: JobStore) -> None:
    add(store, "a", "b")
    (job,) = lease(store, limit=1)
    assert job.lease_token
    store.step("a", job.lease_token, 1, 4, LEASE_S)
    for job_id in ("a", "b"):
        cancelled = store.cancel(job_id, "desk")
        assert cancelled is not None
        assert cancelled.status == "cancelled"
        assert cancelled.ended_at is not None
    assert not store.step("a", job.lease_token, 2, 4, LEASE_S)
    assert store.renew_all("d1", LEASE_S) == set()
    assert not lease(store, "d2")


def test_cancel_leaves_an_ended_job_as_it_is(store: JobStore) -> None:
    add(store, "a")
    (job,) = lease(store)
    store.finish("a", job.lease_token, JobResult("completed", record="{}"))
    kept = store.cancel("a", "desk")
    assert kept is not None
    assert kept.status == "completed"


def test_the_queue_is_bounded(store: JobStore) -> None:
    for job_id in ("a", "b"):
        store.add(new(job_id), max_queued=2)
    with pytest.raises(QueueFull):
        store.add(new("c"), max_queued=2)
    assert store.get("c") is None
    (job, *_) = lease(store)
    store.step(job.id, job.lease_token, 0, 4, LEASE_S)
    store.add(new("c"), max_queued=2)


def test_the_same_key_gives_the_same_job(store: JobStore) -> None:
    first, is_new = store.add(new("a", idempotency_key="k"), max_queued=1)
    assert is_new
    again, is_new = store.add(new("b", idempotency_key="k"), max_queued=1)
    assert not is_new
    assert again == first
    with pytest.raises(IdempotencyConflict):
        store.add(new("c", idempotency_key="k", fingerprint="other"), max_queued=9)
    other, is_new = store.add(new("d", idempotency_key="k", owner="sport"), max_queued=9)
    assert is_new
    assert other.id == "d"


def test_a_key_used_by_two_at_once_makes_one_job(store: JobStore, url: str) -> None:
    made: list[tuple[str, bool]] = []

    def post(number: int) -> None:
        job, is_new = JobStore(url).add(new(f"j{number}", idempotency_key="k"), max_queued=99)
        made.append((job.id, is_new))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job_id for job_id, _ in made}) == 1
    assert [is_new for _, is_new in made].count(True) == 1


def test_nobody_sees_the_jobs_of_another(store: JobStore) -> None:
    add(store, "a")
    add(store, "b", owner="sport")
    assert store.get("a", "sport") is None
    assert store.cancel("a", "sport") is None
    assert not store.remove("a", "sport")
    jobs, more = store.page("sport", after=None, limit=10, order="desc")
    assert [job.id for job in jobs] == ["b"]
    assert not more
    assert store.page("sport", after="a", limit=10, order="desc") == ([], False)


@pytest.mark.parametrize(("order", "expected"), [("asc", "abcde"), ("desc", "edcba")])
def test_pages_follow_each_other(store: JobStore, order: str, expected: str) -> None:
    add(store, *"abcde")
    seen, after, more = "", None, True
    while more:
        jobs, more = store.page("desk", after=after, limit=2, order=order)  # type: ignore[arg-type]
        seen += "".join(job.id for job in jobs)
        after = jobs[-1].id
    assert seen == expected


@pytest.mark.parametrize(("order", "expected"), [("asc", "abcde"), ("desc", "edcba")])
def test_a_page_follows_a_job_that_was_removed(store: JobStore, order: str, expected: str) -> None:
    add(store, *"abcde")
    seen, after, more = "", None, True
    while more:
        jobs, more = store.page("desk", after=after, limit=2, order=order)  # type: ignore[arg-type]
        for job in jobs:
            store.remove(job.id)
            seen, after = seen + job.id, job.id
    assert seen == expected


def test_ended_jobs_expire(url: str) -> None:
    store = JobStore(url, retention_s=0.05)
    add(store, "a", "b")
    (job,) = lease(store, limit=1)
    store.finish("a", job.lease_token, JobResult("failed", error_code="x", error_message="y"))
    assert store.expired() == []
    time.sleep(0.1)
    assert store.expired() == ["a"]
    assert store.remove("a")
    assert store.get("a") is None


def test_the_end_and_its_webhook_are_one_transaction(store: JobStore) -> None:
    add(store, "a", webhook_url="https://desk.example/hook")
    (job,) = lease(store)
    assert not store.finish("a", "not the token", JobResult("completed"))
    assert store.deliveries.due(10, 60) == []
    store.finish("a", job.lease_token, JobResult("completed"))
    (due,) = store.deliveries.due(10, 60)
    assert json.loads(due.body)["type"] == "video.completed"
    assert json.loads(due.body)["data"] == {"id": "a"}
    assert store.deliveries.due(10, 60) == []
    store.deliveries.retry(due.id, 0)
    (again,) = store.deliveries.due(10, 60)
    assert again.tries == 2
    store.deliveries.end(again.id)
    store.deliveries.retry(due.id, 0)
    assert store.deliveries.due(10, 60) == []


def test_a_dispatcher_without_work_writes_nothing(store: JobStore) -> None:
    add(store, "a")
    (job,) = lease(store, lease_s=60)
    commits: list[object] = []
    note = commits.append
    event.listen(Engine, "commit", note)
    try:
        assert lease(store, lease_s=60) == []
        assert store.deliveries.due(10, 60) == []
        assert commits == []
        store.finish("a", job.lease_token, JobResult("completed"))
        assert len(commits) == 1
    finally:
        event.remove(Engine, "commit", note)


def test_a_locked_database_refuses_writes_and_still_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidgen_ray.serving.queue.sqlite_file._BUSY_TIMEOUT_S", 0.2)
    store = JobStore(f"sqlite:///{tmp_path}/jobs.db")
    add(store, "a")
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked"):
        add(store, "b")
    assert store.get("a") is not None
    other.execute("ROLLBACK")
    add(store, "b")


@pytest.mark.slow
def test_a_stopped_postgresql_is_an_error_until_it_is_back(postgresql, url: str) -> None:  # type: ignore[no-untyped-def]
    if not url.startswith("postgresql"):
        pytest.skip("needs a server")
    store = JobStore(url)
    add(store, "a")
    postgresql.stop()
    try:
        with pytest.raises(StoreError):
            add(store, "b")
    finally:
        postgresql.start()
    assert store.get("a") is not None
    add(store, "b")


@pytest.mark.parametrize("bad", ["jobs.db", "mysql://host/name", "sqlite://"])
def test_another_database_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="database"):
        JobStore(bad)


def test_the_oldest_wait_is_that_of_the_first_queued_job(store: JobStore) -> None:
    assert store.oldest_wait_s() == 0
    add(store, "a")
    time.sleep(0.2)
    add(store, "b")
    assert store.oldest_wait_s() >= 0.2
    for job in lease(store):  # a lease alone is still a wait
        assert store.oldest_wait_s() > 0
        assert store.step(job.id, job.lease_token, 0, 4, LEASE_S)
    assert store.oldest_wait_s() == 0


def test_owners_take_turns(store: JobStore) -> None:
    add(store, *(f"desk{number}" for number in range(4)))
    add(store, "sport0", "sport1", owner="sport")
    add(store, "foto0", owner="foto")
    first = [job.id for job in lease(store, limit=4)]
    assert first == ["desk0", "sport0", "foto0", "desk1"]
    # Who has less in work comes first, however long the others have waited.
    assert [job.id for job in lease(store, limit=3)] == ["sport1", "desk2", "desk3"]


def test_no_owner_fills_the_queue_for_all(store: JobStore) -> None:
    for number in range(3):
        store.add(new(f"desk{number}"), max_queued=4, max_queued_per_owner=3)
    with pytest.raises(OwnerQueueFull):
        store.add(new("desk3"), max_queued=4, max_queued_per_owner=3)
    store.add(new("sport0", owner="sport"), max_queued=4, max_queued_per_owner=3)
    with pytest.raises(QueueFull):
        store.add(new("sport1", owner="sport"), max_queued=4, max_queued_per_owner=3)
    assert store.count() == {"queued": 4}
    assert store.count("desk") == {"queued": 3}


def test_a_cancelled_job_frees_its_idempotency_key(store: JobStore) -> None:
    store.add(new("a", idempotency_key="k"), max_queued=9)
    store.cancel("a")
    job, is_new = store.add(new("b", idempotency_key="k"), max_queued=9)
    assert (job.id, is_new) == ("b", True)


def test_the_pace_is_that_of_all_generators_together(store: JobStore) -> None:
    assert store.seconds_per_clip() is None
    add(store, "a", "b", "c")
    for job in lease(store):
        store.step(job.id, job.lease_token, 0, 4, LEASE_S)
    time.sleep(0.3)
    for job_id in "abc":
        job = store.get(job_id)
        assert job is not None
        assert job.lease_token
        store.finish(job_id, job.lease_token, JobResult("completed"))
        time.sleep(0.05)
    pace_s = store.seconds_per_clip()
    assert pace_s is not None
    assert 0.04 < pace_s < 0.25


@pytest.mark.parametrize("jump_s", [-3600, 3600])
def test_leases_outlive_a_jump_of_the_clock(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    add(store, "a")
    for job in lease(store):
        assert job.lease_token
        store.step(job.id, job.lease_token, 0, 4, LEASE_S)
    now = time.time
    monkeypatch.setattr("vidgen_ray.serving.queue.store.time.time", lambda: now() + jump_s)
    assert lease(store) == []  # its own leases are valid, whatever the clock says
    assert store.oldest_wait_s() >= 0


def test_a_job_is_not_forgotten_when_the_clock_is_set_back(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "lost", "delayed")
    for job in lease(store):
        assert job.lease_token
        store.step(job.id, job.lease_token, 0, 4, LEASE_S)
        if job.id == "delayed":
            store.release("delayed", job.lease_token, blame=False, delay_s=5)
    now = time.time
    monkeypatch.setattr("vidgen_ray.serving.queue.store.time.time", lambda: now() - 3600)
    # The dispatcher d1 has died: its leases are said to end in an hour.
    assert {job.id for job in lease(store, "d2")} == {"lost", "delayed"}
