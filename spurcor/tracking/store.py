"""MLflow's sqlite store: creation, migration, recovery after a kill, relocation of its folder.

MLflow creates a store by dozens of migrations outside a transaction: if it is killed in between,
the file can neither be used nor created again. Therefore a store is created beside its place and
copied there by sqlite in one transaction, which is safe for processes that have the file open.
"""

import contextlib
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

BUSY_SECONDS = 20.0
# Number of rows per table in an unused store; other tables are empty.
UNUSED = {"alembic_version": 1, "experiments": 1, "workspaces": 1}
ARTIFACTS = "mlflow-artifacts"  # in the outputs folder


def database_of(uri: str) -> Path | None:
    """Return the file of a sqlite store; None for other stores and for one in memory."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return None if name in (None, "", ":memory:") else Path(name)


def make(database: Path, artifacts: Path) -> None:
    """Create a store that is missing or incomplete, or migrate an older one.

    The caller holds a lock. The content of an older store is kept, and a backup of its file is
    stored beside it. Raises sqlite3.OperationalError if another process writes to it meanwhile.
    """
    version = _version(database)
    if version == _head():
        return
    _remove_unfinished(database)  # left by a kill
    # A new name each time, since MLflow keeps connections to files that it has opened.
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
    """Return the schema version that MLflow needs."""
    import mlflow
    from alembic.script import ScriptDirectory

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    return ScriptDirectory(str(migrations)).get_current_head()


def _migrate(database: Path, artifacts: Path) -> None:
    """Let MLflow create or migrate a file that no other process uses."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    def hasten(connection: sqlite3.Connection, _: object) -> None:
        """Skip syncs to disk after each of a thousand statements: a crash loses only this copy."""
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
    """Return a number that changes once another connection has written to the store."""
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
    """Return whether a store has no user data, only MLflow's initial rows or some of them."""
    tables = _tables(database)
    with _open(database) as store:
        for name in tables:
            (rows,) = store.execute(f'SELECT count(*) FROM "{name}"').fetchone()
            if rows > UNUSED.get(name.removeprefix("_alembic_tmp_"), 0):
                return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Replace the content of a database by that of another, in one transaction."""
    with _open(source) as origin, _open(target) as copy:
        origin.backup(copy)


def _remove_unfinished(database: Path) -> None:
    for path in database.parent.glob(f".{database.name}.*.new*"):
        path.unlink(missing_ok=True)


# --- a folder that was moved ----------------------------------------------------------------------


def follow(database: Path, outputs: Path) -> None:
    """Update the paths in a store whose outputs folder was moved or copied.

    MLflow stores the locations of artifacts as absolute addresses.
    """
    here = (outputs / ARTIFACTS).as_uri()
    known = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
    with _open(database) as store:
        for (old,) in store.execute(known, (f"file:///%/{ARTIFACTS}",)).fetchall():
            if old != here and not _same(old, here):
                _replace(store, old, here)
        store.commit()


def _same(old: str, here: str) -> bool:
    """Return whether two addresses refer to the same folder under different names."""
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
