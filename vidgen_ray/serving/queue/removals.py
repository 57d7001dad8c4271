"""Jobs whose files have to go, kept in the transaction that deletes or cancels the job."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from vidgen_ray.serving.queue.database import Database
from vidgen_ray.serving.queue.tables import removals

# Seconds between looks: a Scorer may still be committing the clip when the first one is made.
_LOOK_AGAIN_S = (2, 8, 50, 540, 3000)


@dataclass(frozen=True)
class Removal:
    """Files of `job_id` to remove; the image stays where `keep_upload` is 1."""

    job_id: str
    keep_upload: int
    looks: int
    next_at: float


def schedule_removal(connection: Connection, job_id: str, *, keep_upload: bool) -> None:
    """Have the files of a job removed, in the transaction of `connection`."""
    connection.execute(delete(removals).where(removals.c.job_id == job_id))
    values = {"job_id": job_id, "keep_upload": int(keep_upload), "looks": 0, "next_at": time.time()}
    connection.execute(insert(removals).values(**values))


class Removals:
    """What is to be removed, and when. Every method raises StoreError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, limit: int = 100) -> Sequence[Removal]:
        """Removals whose time has come."""
        due = select(removals).where(removals.c.next_at <= time.time())
        with self._database.read() as connection:
            rows = connection.execute(due.order_by(removals.c.next_at).limit(limit)).all()
        return [Removal(**row._mapping) for row in rows]

    def looked(self, removal: Removal) -> None:
        """The files were removed: look again later, until nothing can write them any more."""
        mine = removals.c.job_id == removal.job_id
        with self._database.write() as connection:
            if removal.looks >= len(_LOOK_AGAIN_S):
                connection.execute(delete(removals).where(mine))
                return
            next_at = time.time() + _LOOK_AGAIN_S[removal.looks]
            values = {"looks": removal.looks + 1, "next_at": next_at}
            connection.execute(update(removals).where(mine).values(**values))

    def postpone(self, removal: Removal, delay_s: float) -> None:
        """The files could not be removed: look again after `delay_s`."""
        mine = update(removals).where(removals.c.job_id == removal.job_id)
        with self._database.write() as connection:
            connection.execute(mine.values(next_at=time.time() + delay_s))
