"""Webhooks that are still to be delivered, kept in the transaction that ends their job."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from vidgen_ray.serving.queue.database import Database
from vidgen_ray.serving.queue.tables import deliveries


@dataclass(frozen=True)
class Delivery:
    """A webhook to send: `tries` were made already."""

    id: str
    job_id: str
    url: str
    body: str
    tries: int
    next_at: int


def announce(
    connection: Connection, job_id: str, status: str, url: str, ended_at: float | None
) -> None:
    """Keep the news of a job's end for `url`, in the transaction of `connection`."""
    event_id = f"evt_{uuid.uuid4().hex}"
    body = {
        "id": event_id,
        "object": "event",
        "type": f"video.{status}",
        "created_at": int(ended_at or time.time()),
        "data": {"id": job_id},
    }
    values = {"job_id": job_id, "url": url, "body": json.dumps(body)}
    connection.execute(insert(deliveries).values(id=event_id, tries=0, next_at=0, **values))


class Deliveries:
    """What is to be sent, and when. Every method raises StoreError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """Webhooks whose time has come. They are not due again for `wait_s`, or until `retry`."""
        now = int(time.time())
        due = select(deliveries.c.id).where(deliveries.c.next_at <= now)
        with self._database.read() as connection:
            if connection.execute(due.limit(1)).first() is None:
                return []
        due = due.order_by(deliveries.c.next_at).limit(limit).with_for_update(skip_locked=True)
        with self._database.write() as connection:
            chosen = connection.execute(due).scalars().all()
            statement = update(deliveries).where(deliveries.c.id.in_(chosen))
            statement = statement.values(
                tries=deliveries.c.tries + 1, next_at=now + int(wait_s) + 1
            )
            rows = connection.execute(statement.returning(deliveries)).all()
        return [Delivery(**row._mapping) for row in rows]

    def retry(self, delivery_id: str, delay_s: float) -> None:
        """Make a webhook due again after `delay_s`."""
        next_at = int(time.time() + delay_s)
        with self._database.write() as connection:
            chosen = update(deliveries).where(deliveries.c.id == delivery_id)
            connection.execute(chosen.values(next_at=next_at))

    def end(self, delivery_id: str) -> None:
        """Forget a webhook: it was delivered, or given up."""
        with self._database.write() as connection:
            connection.execute(delete(deliveries).where(deliveries.c.id == delivery_id))
