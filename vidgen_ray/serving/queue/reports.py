"""What each process last said of its own health, for whoever answers /health."""

import json
import time

from sqlalchemy import delete, insert, select, update

from vidgen_ray.serving.queue.database import Database
from vidgen_ray.serving.queue.tables import reports

_KEPT_S = 86_400.0


class Reports:
    """One row a process. Every method raises StoreError when the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, name: str, report: dict[str, str]) -> None:
        """Replace the report of `name`; that also shows whether the store can be written."""
        now = time.time()
        values = {"report": json.dumps(report), "seen_at": now}
        with self._database.write() as connection:
            known = update(reports).where(reports.c.name == name).values(**values)
            if connection.execute(known).rowcount == 0:
                connection.execute(insert(reports).values(name=name, **values))
                connection.execute(delete(reports).where(reports.c.seen_at < now - _KEPT_S))

    def read(self, prefix: str, within_s: float) -> list[dict[str, str]]:
        """Reports of processes whose name starts with `prefix`, written within `within_s`."""
        recent = reports.c.seen_at >= time.time() - within_s
        query = select(reports.c.report).where(reports.c.name.startswith(prefix), recent)
        with self._database.read() as connection:
            return [json.loads(text) for text in connection.execute(query).scalars()]

    def read_all(self, prefix: str) -> dict[str, tuple[dict[str, str], float]]:
        """Report and time of writing, by name, of processes whose name starts with `prefix`."""
        query = select(reports).where(reports.c.name.startswith(prefix))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {row.name: (json.loads(row.report), row.seen_at) for row in rows}

    def remove(self, name: str) -> None:
        """Forget a process that has ended."""
        with self._database.write() as connection:
            connection.execute(delete(reports).where(reports.c.name == name))
