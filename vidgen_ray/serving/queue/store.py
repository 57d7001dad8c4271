"""The durable job store: every state a job can be in, and the leases on it.

SQLite (in WAL mode, one machine) or PostgreSQL, by URL. Every method is one transaction, is safe
from several processes at once, and raises StoreError when the database fails. The rules of leases
are in docs/serving.md.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from vidgen_ray.serving.queue.database import Database, RowTaken
from vidgen_ray.serving.queue.deliveries import Deliveries, announce
from vidgen_ray.serving.queue.tables import dispatchers, jobs

JobStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled"]

ACTIVE: tuple[JobStatus, ...] = ("queued", "in_progress")


class QueueFull(Exception):
    """The queue holds as many jobs as it may."""


class IdempotencyConflict(Exception):
    """The idempotency key was used before, for another request."""


@dataclass(frozen=True)
class NewJob:
    """What a job is when it is accepted; see the columns in `tables.py`."""

    id: str
    owner: str
    model: str
    lora: str | None
    request: str
    http_request_id: str
    fingerprint: str
    num_steps: int
    idempotency_key: str | None = None
    webhook_url: str | None = None


@dataclass(frozen=True)
class Job:
    """A row of the store; see the columns in `tables.py`."""

    id: str
    owner: str
    status: JobStatus
    model: str
    lora: str | None
    request: str
    http_request_id: str
    idempotency_key: str | None
    fingerprint: str
    webhook_url: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    step: int
    num_steps: int
    attempt: int
    tries: int
    lease_token: str | None
    lease_owner: str | None
    lease_expires_at: float | None
    record: str | None
    error_code: str | None
    error_message: str | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status not in ACTIVE


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its record, or the error that a client may see."""

    status: Literal["completed", "failed"]
    record: str | None = None
    error_code: str | None = None
    error_message: str | None = None


class JobStore:
    """One database. Instances are cheap; each process makes its own."""

    def __init__(self, url: str, *, retention_s: float | None = None) -> None:
        """`url` is SQLAlchemy's, `retention_s` how long an ended job stays; None is for ever.

        Makes the tables where they are missing. Raises ConfigError and StoreError.
        """
        self._retention_s = retention_s
        self._database = Database(url)
        self.deliveries = Deliveries(self._database)

    def add(self, job: NewJob, max_queued: int) -> tuple[Job, bool]:
        """Keep a job, and say whether it is new: the same idempotency key gives the first one.

        Raises QueueFull when `max_queued` jobs are queued, and IdempotencyConflict.
        """
        try:
            with self._database.write() as connection:
                before = _same_key(connection, job)
                if before:
                    return before, False
                queued = select(func.count()).where(jobs.c.status == "queued")
                if (connection.scalar(queued) or 0) >= max_queued:
                    raise QueueFull
                values = {**vars(job), "status": "queued", "created_at": time.time()}
                counters = {"step": 0, "attempt": 1, "tries": 0}
                statement = insert(jobs).values(**values, **counters).returning(jobs)
                return _job(connection.execute(statement).one()), True
        except RowTaken:
            # Another request with this key was faster.
            with self._database.write() as connection:
                before = _same_key(connection, job)
            if before is None:
                raise IdempotencyConflict from None
            return before, False

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """The job, None when there is none; with `owner`, only one of theirs."""
        with self._database.read() as connection:
            row = connection.execute(select(jobs).where(_is(job_id, owner))).one_or_none()
        return _job(row) if row else None

    def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """The jobs that exist, by id."""
        with self._database.read() as connection:
            rows = connection.execute(select(jobs).where(jobs.c.id.in_(job_ids))).all()
        return {row.id: _job(row) for row in rows}

    def page(
        self, owner: str, *, after: str | None, limit: int, order: Literal["asc", "desc"]
    ) -> tuple[list[Job], bool]:
        """A page of the owner's jobs by age, and whether there are more. `after` is an id.

        Raises LookupError when the owner has no job `after`.
        """
        age = (jobs.c.created_at, jobs.c.id)
        query = select(jobs).where(jobs.c.owner == owner).limit(limit + 1)
        query = query.order_by(*(key.desc() if order == "desc" else key.asc() for key in age))
        with self._database.read() as connection:
            if after is not None:
                mark = connection.execute(select(*age).where(_is(after, owner))).one_or_none()
                if mark is None:
                    raise LookupError(after)
                older = or_(age[0] < mark[0], and_(age[0] == mark[0], age[1] < mark[1]))
                newer = or_(age[0] > mark[0], and_(age[0] == mark[0], age[1] > mark[1]))
                query = query.where(older if order == "desc" else newer)
            page = [_job(row) for row in connection.execute(query).all()]
        return page[:limit], len(page) > limit

    def count(self) -> dict[str, int]:
        """How many jobs have which status."""
        with self._database.read() as connection:
            query = select(jobs.c.status, func.count()).group_by(jobs.c.status)
            return {row[0]: row[1] for row in connection.execute(query).all()}

    def oldest_wait_s(self) -> float:
        """How long the oldest queued job has waited, in seconds; 0 when none waits."""
        with self._database.read() as connection:
            query = select(func.min(jobs.c.created_at)).where(jobs.c.status == "queued")
            oldest = connection.execute(query).scalar()
            return max(0.0, time.time() - oldest) if oldest is not None else 0.0

    def mean_clip_s(self, last: int = 20) -> float | None:
        """Mean seconds from start to end of the last completed jobs."""
        done = select(jobs.c.started_at, jobs.c.ended_at).where(jobs.c.status == "completed")
        with self._database.read() as connection:
            rows = connection.execute(done.order_by(jobs.c.ended_at.desc()).limit(last)).all()
        times = [row.ended_at - row.started_at for row in rows if row.started_at]
        return sum(times) / len(times) if times else None

    def cancel(self, job_id: str, owner: str | None = None) -> Job | None:
        """End an active job as `cancelled`; an ended one stays. None: there is no such job."""
        ended = {"status": "cancelled", **self._ended()}
        with self._database.write() as connection:
            active = and_(_is(job_id, owner), jobs.c.status.in_(ACTIVE))
            connection.execute(update(jobs).where(active).values(**ended))
            row = connection.execute(select(jobs).where(_is(job_id, owner))).one_or_none()
        return _job(row) if row else None

    def remove(self, job_id: str, owner: str | None = None) -> bool:
        """Remove a job, active or not. Says whether there was one."""
        with self._database.write() as connection:
            return connection.execute(delete(jobs).where(_is(job_id, owner))).rowcount > 0

    def expired(self, limit: int = 100) -> Sequence[str]:
        """Ids of ended jobs whose time is over."""
        with self._database.read() as connection:
            query = select(jobs.c.id).where(jobs.c.expires_at < time.time()).limit(limit)
            return connection.execute(query).scalars().all()

    # What dispatchers and generators do.

    def lease(self, dispatcher: str, limit: int, lease_s: float, max_tries: int) -> Sequence[Job]:
        """Lease up to `limit` free jobs, oldest first. A free job without tries left fails."""
        now = time.time()
        free = _free(now, lease_s)
        if limit <= 0 or not self._any(free):  # an idle dispatcher writes nothing
            return []
        with self._database.write() as connection:
            # Committed first: whoever meets the leased rows must find their dispatcher alive.
            self._seen(connection, dispatcher, now)
        with self._database.write() as connection:
            self._give_up(connection, and_(free, jobs.c.tries >= max_tries))
            oldest = select(jobs.c.id).where(free).order_by(jobs.c.created_at, jobs.c.id)
            oldest = oldest.limit(limit).with_for_update(skip_locked=True)
            lease = {
                "status": "queued",
                "step": 0,
                "tries": jobs.c.tries + 1,
                "lease_token": uuid.uuid4().hex,
                "lease_owner": dispatcher,
                "lease_expires_at": now + lease_s,
            }
            chosen = connection.execute(oldest).scalars().all()
            statement = update(jobs).where(jobs.c.id.in_(chosen)).values(**lease).returning(jobs)
            leased = [_job(row) for row in connection.execute(statement).all()]
        return sorted(leased, key=lambda job: (job.created_at, job.id))

    def renew_all(self, dispatcher: str, lease_s: float) -> set[str]:
        """Say that the dispatcher lives, and renew its leases: ids of the jobs it still holds."""
        now = time.time()
        with self._database.write() as connection:
            self._seen(connection, dispatcher, now)
            held = and_(jobs.c.lease_owner == dispatcher, jobs.c.lease_token.is_not(None))
            statement = update(jobs).where(held).values(lease_expires_at=now + lease_s)
            return set(connection.execute(statement.returning(jobs.c.id)).scalars())

    def forget(self, dispatcher: str) -> None:
        """Say that the dispatcher has ended: its jobs are free at once."""
        with self._database.write() as connection:
            connection.execute(delete(dispatchers).where(dispatchers.c.id == dispatcher))

    def step(self, job_id: str, token: str, step: int, num_steps: int, lease_s: float) -> bool:
        """Note that `step` of `num_steps` is done, and renew the lease.

        False: the lease is lost, because the job was cancelled, removed or given to another. Step 0
        is the start of an attempt.
        """
        now = time.time()
        values = {
            "status": "in_progress",
            "step": step,
            "num_steps": num_steps,
            "started_at": func.coalesce(jobs.c.started_at, now),
            "lease_expires_at": now + lease_s,
        }
        return self._update(_holds(job_id, token), values)

    def next_attempt(self, job_id: str, token: str) -> bool:
        """Note that the quality gate wants another attempt. False: the lease is lost."""
        return self._update(_holds(job_id, token), {"attempt": jobs.c.attempt + 1, "step": 0})

    def release(self, job_id: str, token: str, *, blame: bool, delay_s: float = 0) -> bool:
        """Give a job back, to be leased again after `delay_s`. With `blame` the try counts."""
        values = {
            "status": "queued",
            "step": 0,
            "tries": jobs.c.tries if blame else jobs.c.tries - 1,
            "lease_token": None,
            "lease_owner": None,
            "lease_expires_at": time.time() + delay_s if delay_s else None,
        }
        return self._update(_holds(job_id, token), values)

    def finish(self, job_id: str, token: str, outcome: Outcome) -> bool:
        """End a job, with its webhook where it has one. False: the lease is lost."""
        with self._database.write() as connection:
            values = {**vars(outcome), **self._ended()}
            statement = update(jobs).where(_holds(job_id, token)).values(**values).returning(jobs)
            row = connection.execute(statement).one_or_none()
            if row:
                _announce(connection, row)
        return row is not None

    def _any(self, condition: ColumnElement[bool]) -> bool:
        with self._database.read() as connection:
            return (
                connection.execute(select(jobs.c.id).where(condition).limit(1)).first() is not None
            )

    def _seen(self, connection: Connection, dispatcher: str, now: float) -> None:
        known = update(dispatchers).where(dispatchers.c.id == dispatcher).values(seen_at=now)
        if connection.execute(known).rowcount == 0:
            connection.execute(insert(dispatchers).values(id=dispatcher, seen_at=now))
            connection.execute(delete(dispatchers).where(dispatchers.c.seen_at < now - 86_400))

    def _give_up(self, connection: Connection, worn_out: ColumnElement[bool]) -> None:
        values = {
            "status": "failed",
            "error_code": "worker_died",
            "error_message": "the worker was lost at every try; try again, or ask the operator",
            **self._ended(),
        }
        rows = connection.execute(update(jobs).where(worn_out).values(**values).returning(jobs))
        for row in rows.all():
            _announce(connection, row)

    def _ended(self) -> dict[str, Any]:
        now = time.time()
        expires_at = None if self._retention_s is None else now + self._retention_s
        no_lease = {"lease_token": None, "lease_owner": None, "lease_expires_at": None}
        return {"ended_at": now, "expires_at": expires_at, **no_lease}

    def _update(self, condition: ColumnElement[bool], values: dict[str, Any]) -> bool:
        with self._database.write() as connection:
            return connection.execute(update(jobs).where(condition).values(**values)).rowcount > 0


def _is(job_id: str, owner: str | None) -> ColumnElement[bool]:
    return (
        jobs.c.id == job_id if owner is None else and_(jobs.c.id == job_id, jobs.c.owner == owner)
    )


def _holds(job_id: str, token: str) -> ColumnElement[bool]:
    return and_(jobs.c.id == job_id, jobs.c.lease_token == token)


def _free(now: float, lease_s: float) -> ColumnElement[bool]:
    alive = exists(literal(1)).where(
        dispatchers.c.id == jobs.c.lease_owner, dispatchers.c.seen_at >= now - lease_s
    )
    orphaned = and_(jobs.c.lease_token.is_not(None), ~alive)
    lapsed = or_(jobs.c.lease_expires_at.is_(None), jobs.c.lease_expires_at < now)
    return and_(jobs.c.status.in_(ACTIVE), or_(lapsed, orphaned))


def _same_key(connection: Connection, job: NewJob) -> Job | None:
    if job.idempotency_key is None:
        return None
    same = and_(jobs.c.owner == job.owner, jobs.c.idempotency_key == job.idempotency_key)
    row = connection.execute(select(jobs).where(same)).one_or_none()
    if row is None:
        return None
    if row.fingerprint != job.fingerprint:
        raise IdempotencyConflict
    return _job(row)


def _announce(connection: Connection, row: Any) -> None:
    if row.webhook_url is not None:
        announce(connection, row.id, row.status, row.webhook_url, row.ended_at)


def _job(row: Any) -> Job:
    return Job(**row._mapping)
