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
    func,
    insert,
    select,
    update,
)

from vidgen_ray.serving.queue.conditions import (
    ACTIVE,
    holds_lease,
    in_turns,
    is_free,
    is_job,
)
from vidgen_ray.serving.queue.database import Database, RowTaken
from vidgen_ray.serving.queue.deliveries import Deliveries, announce
from vidgen_ray.serving.queue.removals import Removals, schedule_removal
from vidgen_ray.serving.queue.reports import Reports
from vidgen_ray.serving.queue.tables import dispatchers, jobs

JobStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


class QueueFull(Exception):
    """The queue holds as many jobs as it may."""


class OwnerQueueFull(QueueFull):
    """The queue has room, but the owner has used their share of it."""


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
class JobResult:
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
        self.removals = Removals(self._database)
        self.reports = Reports(self._database)

    def add(
        self, job: NewJob, max_queued: int, max_queued_per_owner: int | None = None
    ) -> tuple[Job, bool]:
        """Keep a job, and say whether it is new: the same idempotency key gives the first one.

        Raises QueueFull when `max_queued` jobs are queued, OwnerQueueFull when the owner has
        `max_queued_per_owner` of them, and IdempotencyConflict.
        """
        try:
            with self._database.write() as connection:
                before = _same_key(connection, job)
                if before:
                    return before, False
                _check_room(connection, job.owner, max_queued, max_queued_per_owner)
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
            row = connection.execute(select(jobs).where(is_job(job_id, owner))).one_or_none()
        return _job(row) if row else None

    def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """The jobs that exist, by id."""
        with self._database.read() as connection:
            rows = connection.execute(select(jobs).where(jobs.c.id.in_(job_ids))).all()
        return {row.id: _job(row) for row in rows}

    def existing(self, job_ids: Sequence[str]) -> set[str]:
        """Those of `job_ids` that are jobs."""
        with self._database.read() as connection:
            query = select(jobs.c.id).where(jobs.c.id.in_(job_ids))
            return set(connection.execute(query).scalars())

    def page(
        self, owner: str, *, after: str | None, limit: int, order: Literal["asc", "desc"]
    ) -> tuple[list[Job], bool]:
        """A page of the owner's jobs by id, which sorts by age, and whether there are more.

        `after` is the id that the page follows; a job of that id need not exist any more.
        """
        query = select(jobs).where(jobs.c.owner == owner).limit(limit + 1)
        query = query.order_by(jobs.c.id.desc() if order == "desc" else jobs.c.id)
        if after is not None:
            query = query.where(jobs.c.id < after if order == "desc" else jobs.c.id > after)
        with self._database.read() as connection:
            page = [_job(row) for row in connection.execute(query).all()]
        return page[:limit], len(page) > limit

    def count(self, owner: str | None = None) -> dict[str, int]:
        """How many jobs are `queued` and `in_progress`, of all owners or of one."""
        mine: ColumnElement[bool] = jobs.c.status.in_(ACTIVE)
        if owner is not None:
            mine = and_(mine, jobs.c.owner == owner)
        with self._database.read() as connection:
            query = select(jobs.c.status, func.count()).where(mine).group_by(jobs.c.status)
            return {row[0]: row[1] for row in connection.execute(query).all()}

    def oldest_wait_s(self) -> float:
        """How long the oldest queued job has waited, in seconds; 0 when none waits."""
        with self._database.read() as connection:
            query = select(func.min(jobs.c.created_at)).where(jobs.c.status == "queued")
            oldest = connection.execute(query).scalar()
            return max(0.0, time.time() - oldest) if oldest is not None else 0.0

    def seconds_per_clip(self, last: int = 20) -> float | None:
        """Seconds between the ends of the last completed jobs; the mean duration when it is less.

        None while nothing was completed.
        """
        done = select(jobs.c.started_at, jobs.c.ended_at).where(jobs.c.status == "completed")
        with self._database.read() as connection:
            rows = connection.execute(done.order_by(jobs.c.ended_at.desc()).limit(last)).all()
        times = [max(0.0, row.ended_at - row.started_at) for row in rows if row.started_at]
        if not times:
            return None
        mean_s: float = sum(times) / len(times)
        # Several Generators end clips more often than one clip takes; an idle hour counts as none.
        span_s: float = max(0.0, rows[0].ended_at - rows[-1].ended_at)
        return min(mean_s, span_s / (len(rows) - 1)) if len(rows) > 1 else mean_s

    def cancel(self, job_id: str, owner: str | None = None) -> Job | None:
        """End an active job as `cancelled`; an ended one stays. None: there is no such job.

        Its idempotency key is free again, and what its workers still write is removed later.
        """
        ended = {"status": "cancelled", "idempotency_key": None, **self._ended()}
        with self._database.write() as connection:
            active = and_(is_job(job_id, owner), jobs.c.status.in_(ACTIVE))
            if connection.execute(update(jobs).where(active).values(**ended)).rowcount:
                schedule_removal(connection, job_id, keep_upload=True)
            row = connection.execute(select(jobs).where(is_job(job_id, owner))).one_or_none()
        return _job(row) if row else None

    def remove(self, job_id: str, owner: str | None = None) -> bool:
        """Remove a job, active or not; its files are removed later. False: there was none."""
        with self._database.write() as connection:
            existed = connection.execute(delete(jobs).where(is_job(job_id, owner))).rowcount > 0
            if existed:
                schedule_removal(connection, job_id, keep_upload=False)
        return existed

    def expired(self, limit: int = 20) -> Sequence[str]:
        """Ids of ended jobs whose time is over."""
        with self._database.read() as connection:
            query = select(jobs.c.id).where(jobs.c.expires_at < time.time()).limit(limit)
            return connection.execute(query).scalars().all()

    # What dispatchers and generators do.

    def lease(self, dispatcher: str, limit: int, lease_s: float, max_tries: int) -> Sequence[Job]:
        """Lease up to `limit` free jobs; owners take turns, each with their oldest job first.

        A free job without tries left fails.
        """
        now = time.time()
        free = is_free(now, lease_s)
        if limit <= 0 or not self._any(free):  # an idle dispatcher writes nothing
            return []
        with self._database.write() as connection:
            # Committed first: whoever meets the leased rows must find their dispatcher alive. After
            # the clock has jumped its own leases look as if they had run out.
            self._renew(connection, dispatcher, now, lease_s)
        with self._database.write() as connection:
            self._give_up(connection, and_(free, jobs.c.tries >= max_tries))
            next_ids = connection.execute(in_turns(free, limit)).scalars().all()
            # Locked in a statement of its own: PostgreSQL locks no rows of a window function.
            still_free = select(jobs.c.id).where(free, jobs.c.id.in_(next_ids))
            still_free = still_free.with_for_update(skip_locked=True)
            lease = {
                "status": "queued",
                "step": 0,
                "tries": jobs.c.tries + 1,
                "lease_token": uuid.uuid4().hex,
                "lease_owner": dispatcher,
                "lease_expires_at": now + lease_s,
            }
            chosen = connection.execute(still_free).scalars().all()
            statement = update(jobs).where(jobs.c.id.in_(chosen)).values(**lease).returning(jobs)
            leased = [_job(row) for row in connection.execute(statement).all()]
        return sorted(leased, key=lambda job: next_ids.index(job.id))

    def renew_all(self, dispatcher: str, lease_s: float) -> set[str]:
        """Say that the dispatcher lives, and renew its leases: ids of the jobs it still holds."""
        with self._database.write() as connection:
            return self._renew(connection, dispatcher, time.time(), lease_s)

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
        return self._update(holds_lease(job_id, token), values)

    def holds_lease(self, job_id: str, token: str) -> bool:
        """Whether `token` is still the job's lease: it was not cancelled, removed or released."""
        return self._any(holds_lease(job_id, token))

    def next_attempt(self, job_id: str, token: str) -> bool:
        """Note that the quality gate wants another attempt. False: the lease is lost."""
        return self._update(holds_lease(job_id, token), {"attempt": jobs.c.attempt + 1, "step": 0})

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
        return self._update(holds_lease(job_id, token), values)

    def finish(self, job_id: str, token: str, outcome: JobResult) -> bool:
        """End a job, with its webhook where it has one. False: the lease is lost."""
        with self._database.write() as connection:
            values = {**vars(outcome), **self._ended()}
            statement = (
                update(jobs).where(holds_lease(job_id, token)).values(**values).returning(jobs)
            )
            row = connection.execute(statement).one_or_none()
            if row:
                _announce(connection, row)
        return row is not None

    def _any(self, condition: ColumnElement[bool]) -> bool:
        with self._database.read() as connection:
            return (
                connection.execute(select(jobs.c.id).where(condition).limit(1)).first() is not None
            )

    def _renew(
        self, connection: Connection, dispatcher: str, now: float, lease_s: float
    ) -> set[str]:
        self._seen(connection, dispatcher, now)
        held = and_(jobs.c.lease_owner == dispatcher, jobs.c.lease_token.is_not(None))
        statement = update(jobs).where(held).values(lease_expires_at=now + lease_s)
        return set(connection.execute(statement.returning(jobs.c.id)).scalars())

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


def _check_room(
    connection: Connection, owner: str, max_queued: int, max_queued_per_owner: int | None
) -> None:
    queued = select(func.count()).where(jobs.c.status == "queued")
    if (connection.scalar(queued) or 0) >= max_queued:
        raise QueueFull
    if max_queued_per_owner is None:
        return
    if (connection.scalar(queued.where(jobs.c.owner == owner)) or 0) >= max_queued_per_owner:
        raise OwnerQueueFull


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
