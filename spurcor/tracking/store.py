"""MLflow's sqlite store: made whole, made anew where a kill left a part, moved with its folder.

MLflow creates a store by dozens of migrations that are no transaction: what is killed among them
can neither be used nor created again. So a store is made beside its place and copied there by
sqlite, which is one transaction, also for those that have the file open.
"""

import contextlib
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

BUSY_SECONDS = 20.0
# Tables with rows in a store that nobody has used, and how many there are.
UNUSED = {"alembic_version": 1, "experiments": 1, "workspaces": 1}
ARTIFACTS = "mlflow-artifacts"  # a folder of the outputs folder


def database_of(uri: str) -> Path | None:
    """The file of a sqlite store; None for other stores, and for one in memory."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return None if name in (None, "", ":memory:") else Path(name)


def make(database: Path, artifacts: Path) -> None:
    """Make a store that is missing or was left unfinished, or bring an older one up to date.

    The caller holds a lock. What is in an older store is kept, and a copy of the file beside it.
    """
    version = _version(database)
    if version == _head():
        return
    _remove_unfinished(database)  # of a process that was killed
    # Another name each time: MLflow keeps connections to the files that it has opened.
    beside = database.with_name(f".{database.name}.{uuid.uuid4().hex}.new")
    try:
        with _open(database) as store:
            before = _changes(store)
            kept = not _unused(database)
            if kept:
                _copy(database, beside)
            _migrate(beside, artifacts)
            if kept:
                _copy(database, database.with_name(f"{database.name}.{version or 'before'}"))
            if _changes(store) != before:
                raise sqlite3.OperationalError("database is locked: another process writes to it")
        _copy(beside, database)
    finally:
        _remove_unfinished(database)


def _head() -> str | None:
    """The version of a store that MLflow has nothing to do on."""
    import mlflow
    from alembic.script import ScriptDirectory

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    return ScriptDirectory(str(migrations)).get_current_head()


def _migrate(database: Path, artifacts: Path) -> None:
    """Let MLflow make, or bring up to date, a file that nobody else uses."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    def hasten(connection: sqlite3.Connection, _: object) -> None:
        """What a crash may destroy need not be on the disk after each of a thousand statements."""
        (place,) = connection.execute("SELECT file FROM pragma_database_list").fetchone()
        if Path(place).name == database.name:
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hasten)
    try:
        made = SqlAlchemyStore(f"sqlite:///{database}", artifacts.as_uri())  # type: ignore[no-untyped-call]
        made.engine.dispose()
    finally:
        event.remove(Engine, "connect", hasten)


@contextlib.contextmanager
def _open(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
        yield connection


def _changes(store: sqlite3.Connection) -> int:
    """A number that is another once somebody else has written to the store."""
    return int(store.execute("PRAGMA data_version").fetchone()[0])


def _version(database: Path) -> str | None:
    if "alembic_version" not in _tables(database):
        return None
    with _open(database) as store:
        row = store.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def _tables(database: Path) -> list[str]:
    if not database.exists():
        return []
    with _open(database) as store:
        found = store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [name for (name,) in found]


def _unused(database: Path) -> bool:
    """Whether nothing is lost with a store: it holds what MLflow itself begins with, or a part."""
    tables = _tables(database)
    with _open(database) as store:
        for name in tables:
            (rows,) = store.execute(f'SELECT count(*) FROM "{name}"').fetchone()
            if rows > UNUSED.get(name.removeprefix("_alembic_tmp_"), 0):
                return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Give one database the content of another, whole or not at all."""
    with _open(source) as origin, _open(target) as copy:
        origin.backup(copy)


def _remove_unfinished(database: Path) -> None:
    for path in database.parent.glob(f".{database.name}.*.new*"):
        path.unlink(missing_ok=True)


# --- a folder that was moved ----------------------------------------------------------------------


def follow(database: Path, outputs: Path) -> None:
    """Let a store in an outputs folder that was moved, or copied, name places in the new one.

    MLflow keeps the places of artifacts as absolute addresses.
    """
    here = (outputs / ARTIFACTS).as_uri()
    known = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
    with _open(database) as store:
        for (old,) in store.execute(known, (f"file:///%/{ARTIFACTS}",)).fetchall():
            if old != here and not _same(old, here):
                _replace(store, old, here)
        store.commit()


def _same(old: str, here: str) -> bool:
    """Whether two addresses are one folder, which is seen under two names."""
    paths = [Path(unquote(urlparse(uri).path)).parent for uri in (old, here)]
    return paths[0].exists() and paths[0].samefile(paths[1])


def _replace(store: sqlite3.Connection, old: str, new: str) -> None:
    folders = [str(Path(unquote(urlparse(uri).path)).parent) for uri in (old, new)]
    for table, column, which, (before, after) in (
        ("experiments", "artifact_location", "true", (old, new)),
        ("runs", "artifact_uri", "true", (old, new)),
        ("tags", "value", "key = 'spurcor.directory'", folders),
    ):
        store.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {which}"
            f" AND ({column} = ? OR substr({column}, 1, ?) = ?)",
            (after, len(before) + 1, before, len(before) + 1, f"{before}/"),
        )
