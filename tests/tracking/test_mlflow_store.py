"""MLflow's sqlite store: killed while it is made, older, or in an outputs folder that is moved."""

import logging
import shutil
import sqlite3
import threading
from contextlib import closing
from types import SimpleNamespace

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.db.utils import _all_tables_exist
from mlflow.tracking._tracking_service import utils

from spurcor.errors import UserError
from spurcor.runs.lookup import find
from spurcor.tracking import Record, store
from spurcor.tracking.mlflow import MlflowTracker


class Killed(BaseException):
    """What ends a process, here in a thread of this one."""


@pytest.fixture(scope="module")
def statements(tmp_path_factory):
    """Every statement by which MLflow makes a store."""
    found = []

    def note(connection, cursor, statement, parameters, context, many):
        found.extend((statement, each) for each in (parameters if many else [parameters]))

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    try:
        path = tmp_path_factory.mktemp("store") / "mlflow.db"
        store.make(path, path.with_name(store.ARTIFACTS))
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
    return SimpleNamespace(all=found, store=path)


def kill_before(statements, number, database):
    """What is left of a store if MLflow is killed before one of its statements.

    Python's sqlite3 begins transactions before changes of rows only: those of tables are kept.
    """
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for statement, parameters in statements.all[:number]:
            connection.execute(statement, parameters).fetchall()


def record_of(outputs, name="run"):
    directory = outputs / "runs" / "digits" / "erm" / "r0" / name
    directory.mkdir(parents=True, exist_ok=True)
    return Record(directory, "run", name, "default", params={"seed": "0"})


def mirror(outputs, name="run", files=()):
    """Send a run with one row; returns the tracker."""
    tracker, record = MlflowTracker(outputs), record_of(outputs, name)
    tracker.start(record)
    tracker.log(record, [{"step": 1, "time": 1, "loss": 0.5}])
    for path in files:
        tracker.artifact(record, path)
    tracker.finish(record, "FINISHED")
    tracker.close()
    return tracker


def runs_of(outputs):
    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("default")
    return client.search_runs([experiment.experiment_id])


def test_a_store_that_a_kill_left_unfinished_is_made_anew(statements, tmp_path, caplog):
    """Where a column was added, where a table was being replaced, and before the last word."""
    broken = ("ADD COLUMN", "INSERT INTO _alembic_tmp_", "UPDATE alembic_version")
    for words in broken:
        last = max(k for k, (each, _) in enumerate(statements.all) if words in each)
        folder = tmp_path / words.split()[0]
        folder.mkdir()
        kill_before(statements, last + (words == "ADD COLUMN"), folder / "mlflow.db")
        assert store._version(folder / "mlflow.db") not in (None, store._head())
        assert mirror(folder).alive, caplog.text
        assert runs_of(folder)[0].data.metrics == {"loss": 0.5}
        assert not list(folder.glob(".mlflow.db.*"))


def test_a_kill_while_a_store_is_made_leaves_none(statements, tmp_path, monkeypatch):
    database = tmp_path / "mlflow.db"
    turn = iter(range(len(statements.all) // 2))

    def kill(*_):
        if next(turn, None) is None:
            raise Killed

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", kill)
    # A kill leaves what is beside it.
    monkeypatch.setattr(store, "_remove_unfinished", lambda database: None)
    with pytest.raises(Killed):
        store.make(database, tmp_path / store.ARTIFACTS)
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", kill)
    assert not store._tables(database)
    (beside,) = tmp_path.glob(".mlflow.db.*.new")
    assert store._tables(beside)
    monkeypatch.undo()
    assert mirror(tmp_path).alive
    assert not beside.exists()


def test_many_that_need_a_fresh_store_at_once_share_it(tmp_path):
    trackers = []

    def one(name):
        trackers.append(mirror(tmp_path, name))

    threads = [threading.Thread(target=one, args=(f"run{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tracker.failure for tracker in trackers] == [None] * 4
    assert len(runs_of(tmp_path)) == 4


def older(path, revision, **rows):
    """A store of an older MLflow, at one of its revisions, with a run in it."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    command.upgrade(_get_alembic_config(f"sqlite:///{path}"), revision)
    engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage)"
            " VALUES (7, 'x', 'active')"
        )
        connection.execute(
            "INSERT INTO runs (run_uuid, name, status, lifecycle_stage, experiment_id, user_id,"
            " start_time) VALUES ('abc', 'precious', 'FINISHED', 'active', 7, 'me', 1)"
        )
        connection.commit()


REVISION = "cc1f77228345"  # MLflow 1.10


def test_an_older_store_is_brought_up_to_date_and_kept(tmp_path):
    older(tmp_path / "mlflow.db", REVISION)
    before = (tmp_path / "mlflow.db").read_bytes()
    assert mirror(tmp_path).alive
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run("abc").info.run_name == "precious"
    assert len(runs_of(tmp_path)) == 1
    copy = tmp_path / f"mlflow.db.{REVISION}"
    assert len(before) == copy.stat().st_size
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT name FROM runs").fetchall() == [("precious",)]


def test_an_older_store_that_cannot_be_brought_up_to_date_stays_as_it_is(tmp_path, caplog):
    """Its upgrade was killed, so that a column is there already."""
    database = tmp_path / "mlflow.db"
    older(database, REVISION)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("ALTER TABLE experiments ADD COLUMN creation_time BIGINT")
    before = database.read_bytes()
    assert not mirror(tmp_path).alive
    assert "is refused (" in caplog.text
    assert "duplicate column name" in caplog.text
    assert "not reached" not in caplog.text
    assert database.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*mlflow.db*")] == ["mlflow.db"]


def test_a_store_written_to_while_it_is_brought_up_to_date_is_left(tmp_path, monkeypatch):
    database = tmp_path / "mlflow.db"
    older(database, REVISION)
    plain = store._migrate

    def written_meanwhile(path, artifacts):
        plain(path, artifacts)
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("UPDATE runs SET name = 'changed'")
            connection.commit()

    monkeypatch.setattr(store, "_migrate", written_meanwhile)
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        store.make(database, tmp_path / store.ARTIFACTS)
    assert store._version(database) == REVISION
    monkeypatch.undo()
    store.make(database, tmp_path / store.ARTIFACTS)
    assert MlflowClient(f"sqlite:///{database}").get_run("abc").info.run_name == "changed"


def test_a_run_is_looked_for_in_no_store_that_would_have_to_be_made(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"run=mlflow:abc .*MLflow"):
        find("mlflow:abc", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_mlflow_counts_as_whole_is(statements, tmp_path):
    shutil.copy(statements.store, tmp_path / "mlflow.db")
    assert _all_tables_exist(sqlalchemy.create_engine(f"sqlite:///{tmp_path}/mlflow.db"))
    before = (tmp_path / "mlflow.db").read_bytes()
    store.make(tmp_path / "mlflow.db", tmp_path / store.ARTIFACTS)
    assert (tmp_path / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize("how", ["moved", "copied", "named twice"])
def test_artifacts_go_to_where_the_outputs_folder_is_now(how, statements, tmp_path, monkeypatch):
    old, new = tmp_path / "old outputs", tmp_path / "new outputs"
    old.mkdir()
    shutil.copy(statements.store, old / "mlflow.db")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text("{}")
    second.write_text("{}")
    mirror(old, files=[first])
    if how == "moved":
        old.rename(new)
    elif how == "copied":
        shutil.copytree(old, new)
    else:
        new.symlink_to(old)
    monkeypatch.setattr(utils, "_artifact_repos_cache", {})  # that of another process is empty
    assert mirror(new, files=[second]).alive
    (run,) = runs_of(new)
    client = MlflowClient(f"sqlite:///{new}/mlflow.db")
    names = sorted(file.path for file in client.list_artifacts(run.info.run_id))
    assert names == ["first.json", "second.json"]
    found = list(new.glob("mlflow-artifacts/*/artifacts/second.json"))
    assert len(found) == 1
    place = old if how == "named twice" else new
    assert run.info.artifact_uri.startswith(place.as_uri())
    assert run.data.tags["spurcor.directory"] == str(new / "runs" / "digits" / "erm" / "r0" / "run")
    assert old.exists() == (how != "moved")
    if how == "copied":
        assert not list(old.glob("mlflow-artifacts/*/artifacts/second.json"))
    mirror(new, "another", files=[second])
    assert len(list(new.glob("mlflow-artifacts/*/artifacts/second.json"))) == 2


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("alembic").setLevel(logging.WARNING)
