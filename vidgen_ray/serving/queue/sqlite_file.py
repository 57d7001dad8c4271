"""Connections to a SQLite file that notice when the file was removed or replaced."""

import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError

_BUSY_TIMEOUT_S = 5.0


def sqlite_engine(url: URL) -> Engine:
    """An engine for the file of `url`, which is created here and never again.

    SQLite itself would go on writing into a removed file, and every job would be lost at the end
    of the process. Raises OSError.
    """
    assert url.database is not None
    path = Path(url.database).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    address = f"file:{quote(str(path))}?mode=rw"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, uri=True, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)

    engine = create_engine(url, creator=connect, pool_size=5, max_overflow=40)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def check(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get("file") != _identity(path):
            raise DisconnectionError  # the pool connects again, to the file that is there now

    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino
