"""The tables of the database, its versions, and its connections.

A writer takes the write lock before it reads (BEGIN IMMEDIATE) and waits for other writers, in any process. Readers see
what was committed before they began (WAL) and wait for nobody. A process that is killed leaves the last commit.

Relies on: SQLAlchemy, a requirement of the host; its recipe for SQLite transactions that include schema changes
(isolation_level None, and an explicit BEGIN).
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, String, Table, create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from .errors import StoreError

_WAIT = 30.0  # seconds, for the write lock
_WRITES = "guidekit_writes"

_metadata = MetaData()
IMAGES = Table(
    "images",
    _metadata,
    Column("id", String, primary_key=True),
    Column("width", Integer),
    Column("height", Integer),
    Column("latent", String),
    Column("positive", String),
    Column("negative", String),
    Column("label", Integer),
    Column("tag", String),
    Column("pair", String),
    Column("shown", Float),
    Column("voted", Float),
    Column("workflow", String),
    Column("workflow_id", String),
    Column("node", String),
    Column("place", Integer),  # in the batch that it was shown in
    Column("bytes", Integer),  # of its image and latent
    Column("model_name", String),
    Column("recipe", String),  # JSON
)
LORAS = Table("loras", _metadata, Column("image", String, primary_key=True), Column("name", String, primary_key=True))
WORKFLOWS = Table("workflows", _metadata, Column("name", String, primary_key=True), Column("json", LargeBinary))

# STEPS[n] are the statements from version n to version n + 1. A released step never changes.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE images (
            id TEXT PRIMARY KEY NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
            latent TEXT, positive TEXT, negative TEXT,
            label INTEGER NOT NULL CHECK (label IN (-1, 0, 1)), tag TEXT NOT NULL, pair TEXT,
            shown REAL NOT NULL, voted REAL, workflow TEXT, workflow_id TEXT NOT NULL, node TEXT NOT NULL,
            place INTEGER NOT NULL, bytes INTEGER NOT NULL, model_name TEXT NOT NULL, recipe TEXT NOT NULL)""",
        "CREATE INDEX images_by_label ON images (label, shown)",
        "CREATE INDEX images_by_node ON images (workflow_id, node, shown)",
        """CREATE TABLE loras (image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE, name TEXT NOT NULL,
            PRIMARY KEY (image, name)) WITHOUT ROWID""",
        "CREATE TABLE workflows (name TEXT PRIMARY KEY NOT NULL, json BLOB NOT NULL)",
    ),
)


class Database:
    """The database at a path, which is created or brought up to date. All methods raise StoreError."""

    def __init__(self, path: Path, steps: Sequence[Sequence[str]] = STEPS):
        self._path = path
        with self._sentences():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(path)
            self._migrate(steps)
            self._identity = _identity(path)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        with self._sentences(), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction under the write lock: all changes of the block are committed, or none."""
        with self._sentences(), self._engine.execution_options(**{_WRITES: True}).begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def is_current(self) -> bool:
        """Whether the file at the path is still the one that was opened."""
        try:
            return _identity(self._path) == self._identity
        except OSError:
            return False

    def _migrate(self, steps: Sequence[Sequence[str]]) -> None:
        with self._engine.begin() as connection:
            if _version(connection) == len(steps):
                return
        with self._engine.execution_options(**{_WRITES: True}).begin() as connection:
            version = _version(connection)  # another process may have been faster
            if version > len(steps):
                raise StoreError(
                    f"{self._path.name} was written by a newer Guidekit (version {version} of its tables, this one "
                    f"knows {len(steps)}). Update the pack; the votes are as they were."
                )
            for step in steps[version:]:
                for statement in step:
                    connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"PRAGMA user_version = {len(steps)}")

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise StoreError(f"{_reason(str(error.orig), self._path)} What was there is as it was.") from error
        except OSError as error:
            raise StoreError(
                f"The votes cannot be saved in {self._path.parent}: {error.strerror or error}. What was there is as it "
                "was."
            ) from error


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def _version(connection: Connection) -> int:
    return connection.exec_driver_sql("PRAGMA user_version").scalar_one()


def _reason(said: str, path: Path) -> str:
    if "locked" in said:
        return f"The votes are being written by another process for more than {_WAIT:g} s. Try again."
    if "malformed" in said or "not a database" in said:
        return f"{path} is damaged ({said}). Move it away to start anew, or put back a copy."
    if "full" in said or "disk I/O" in said or "too large" in said:
        return f"The votes cannot be saved in {path.parent}: {said}. Make room on the disk."
    return f"The votes cannot be saved in {path}: {said}."


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _WAIT}, max_overflow=-1)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}").close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
