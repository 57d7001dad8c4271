"""Conditions of queries for jobs: of an owner, under a lease, free to be leased, next in turn."""

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, literal, or_, select

from vidgen_ray.serving.queue.tables import dispatchers, jobs

ACTIVE = ("queued", "in_progress")
_FAR_AHEAD_S = 600.0  # no lease ends and no Dispatcher was seen so far ahead of a right clock


def is_job(job_id: str, owner: str | None) -> ColumnElement[bool]:
    """The job of this id; with `owner`, only when it is theirs."""
    return (
        jobs.c.id == job_id if owner is None else and_(jobs.c.id == job_id, jobs.c.owner == owner)
    )


def holds_lease(job_id: str, token: str) -> ColumnElement[bool]:
    """The job of this id, while `token` is its lease."""
    return and_(jobs.c.id == job_id, jobs.c.lease_token == token)


def is_free(now: float, lease_s: float) -> ColumnElement[bool]:
    """Active jobs that nobody has leased, whose lease ran out, or whose Dispatcher is silent."""
    # Times far ahead are from before the clock was set back; nobody would wait for them in vain.
    alive = exists(literal(1)).where(
        dispatchers.c.id == jobs.c.lease_owner,
        dispatchers.c.seen_at.between(now - lease_s, now + _FAR_AHEAD_S),
    )
    orphaned = and_(jobs.c.lease_token.is_not(None), ~alive)
    ends_at = jobs.c.lease_expires_at
    lapsed = or_(ends_at.is_(None), ends_at < now, ends_at > now + max(_FAR_AHEAD_S, 2 * lease_s))
    return and_(jobs.c.status.in_(ACTIVE), or_(lapsed, orphaned))


def in_turns(free: ColumnElement[bool], limit: int) -> Select[Any]:
    """Ids of free jobs: each owner's oldest first, and first of all owners with the least in work.

    With one owner that is the oldest first.
    """
    held = (
        select(jobs.c.owner, func.count().label("num_held"))
        .where(jobs.c.status.in_(ACTIVE), ~free)
        .group_by(jobs.c.owner)
        .subquery()
    )
    place = func.row_number().over(
        partition_by=jobs.c.owner, order_by=(jobs.c.created_at, jobs.c.id)
    )
    turns = (
        select(jobs.c.id, jobs.c.created_at, place.label("place"), held.c.num_held)
        .outerjoin(held, held.c.owner == jobs.c.owner)
        .where(free)
        .subquery()
    )
    turn = turns.c.place + func.coalesce(turns.c.num_held, 0)
    return select(turns.c.id).order_by(turn, turns.c.created_at, turns.c.id).limit(limit)
