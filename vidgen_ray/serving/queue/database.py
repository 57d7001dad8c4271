"""The connection to the job store's database: SQLite (in WAL mode, one machine) or PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from vidgen_ray.errors import ConfigError, StoreError
from vidgen_ray.serving.queue.sqlite_file import sqlite_engine
from vidgen_ray.serving.queue.tables import metadata

_TABLES_LOCK = 0x76696467


class RowTaken(Exception):
    """A row with this key is there already."""


class Database:
    """One database by URL. What fails in it raises StoreError, a key that is taken RowTaken."""

    def __init__(self, url: str) -> None:
        """`url` is SQLAlchemy's. Makes the tables where they are missing.

        Raises ConfigError and StoreError.
        """
        parsed = _parse(url)
        try:
            self._writes, self._reads = _engines(parsed)
        except ImportError as error:
            raise ConfigError(
                f"database: {parsed.drivername} needs a package: {error}; "
                "pip install 'vidgen-ray[postgresql]'"
            ) from None
        self._make_tables(parsed)

    def _make_tables(self, parsed: URL) -> None:
        with self.write() as connection:
            if parsed.get_backend_name() == "postgresql":
                # Two processes that make the tables at once would run into each other.
                connection.execute(select(func.pg_advisory_xact_lock(_TABLES_LOCK)))
            metadata.create_all(connection)
            for table in metadata.sorted_tables:  # of a database that an older version made
                for index in table.indexes:
                    index.create(connection, checkfirst=True)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed at the end."""
        with _as_store_error(), self._writes.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that never waits for a writer."""
        with _as_store_error(), self._reads.connect() as connection:
            yield connection


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            "database: must be a URL such as sqlite:////srv/vidgen/jobs.db or "
            "postgresql+psycopg://user@host/name"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "postgresql" and parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend not in {"sqlite", "postgresql"} or (backend == "sqlite" and not parsed.database):
        raise ConfigError(
            f"database: must be a SQLite file or PostgreSQL, got {parsed.render_as_string()!r}"
        )
    return parsed


def _engines(url: URL) -> tuple[Engine, Engine]:
    """One engine that writes, one that reads without a transaction."""
    if url.get_backend_name() == "postgresql":
        try:
            writes = create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=20)
        except NoSuchModuleError as error:
            raise ConfigError(f"database: {error}") from None
        return writes, writes.execution_options(isolation_level="AUTOCOMMIT")
    with _as_store_error():
        writes, reads = sqlite_engine(url), sqlite_engine(url)
    # A transaction that reads first and writes later could not wait for another writer.
    event.listen(writes, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return writes, reads


@contextmanager
def _as_store_error() -> Iterator[None]:
    """Turn what the database raises into one StoreError."""
    try:
        yield
    except IntegrityError:
        raise RowTaken from None
    except (SQLAlchemyError, OSError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise StoreError(
            f"database: cannot be used: {reason}; check that it runs or that its file is there, "
            "and its free space"
        ) from error
