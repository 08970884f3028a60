"""Passwords in addresses: used by what needs them, and in no file and no message."""

import base64
import shutil

import pytest
import yaml
from killing import run_of
from servers import free_port, http_server

from spurcor.config.check import check
from spurcor.errors import UserError
from spurcor.launchers.points import Points
from spurcor.sync import SyncConfig
from spurcor.system import passwords
from spurcor.system.passwords import hidden, kept, masked, whole
from spurcor.system.places import CONF
from spurcor.tracking import Record
from spurcor.tracking.mlflow import MlflowTracker

QUICK = ("method.epochs=1", "backbone=mlp", "dfr=none")
SECRET = "s3cr%40t"


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    for variable in passwords.VARIABLES:
        monkeypatch.setenv(variable, "")  # undone, whatever a test sets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:secret@host:5000", "http://user:***@host:5000"),
        ("https://user:s%40%2Fcret@host/x", "https://user:***@host/x"),
        ("https://user:se@cr@host", "https://user:***@host"),
        ("https://token@host", "https://***@host"),
        ("postgresql://u:secret@h/db", "postgresql://u:***@h/db"),
        ("postgresql+psycopg2://u:1/se:cr@h:5432/db", "postgresql+psycopg2://u:***@h:5432/db"),
        ("mysql://u@h/db?password=secret&ssl=true", "mysql://u@h/db?password=***&ssl=true"),
        ("https://h/x?access_token=secret#a", "https://h/x?access_token=***#a"),
        ("a=http://u:p@h,http://u:q@h2", "a=http://u:***@h,http://u:***@h2"),
        ("a='http://u:p@h' is wrong", "a='http://u:***@h' is wrong"),
        (r"a=http\://u\:p@h", r"a=http\://u\:***@h"),  # as Hydra's sweeper escapes it
        *((plain, plain) for plain in ("http://host:5000/@x", "sqlite:////a:b@c/x.db")),
        *((plain, plain) for plain in ("postgresql://u@h/db", "train.lr=0.1", "databricks://me")),
    ],
)
def test_passwords_are_masked_and_nothing_else_is(address, shown):
    assert masked(address) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    ("override", "addresses"),
    [
        ("tracker.mlflow.uri=http://u:p@h", ["http://u:p@h"]),
        ("++tracker.mlflow={uri: 'http://u:p@h', patience: 1}", ["http://u:p@h"]),
        ("tracker.mlflow.uri=http://u:p@h,http://v:q@h", ["http://u:p@h", "http://v:q@h"]),
        ("tracker.mlflow.uri='http://h?token=p'", ["http://h?token=p"]),
        (r"tracker.mlflow.uri=http://h?token\=p", ["http://h?token=p"]),
    ],
)
def test_an_override_is_masked_and_its_addresses_are_kept(override, addresses):
    assert masked(override) == hidden(override) != override
    for address in addresses:
        assert whole(masked(address), "uri") == address


def test_an_address_whose_password_nobody_has_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"uri=http://u:\*\*\*@h .*MLFLOW_TRACKING_URI"):
        whole("http://u:***@h", "uri")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:p@other")
    with pytest.raises(UserError):
        whole("http://u:***@h", "uri")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:p@h")
    assert whole("http://u:***@h", "uri") == "http://u:p@h"


def test_a_configuration_and_the_points_of_a_sweep_file_hold_none():
    target = {"_target_": "spurcor.tracking.mlflow.MlflowTracker", "uri": "http://u:p@h"}
    config = check({"tracker": {"mlflow": target}, "paths": {"outputs": "/x"}}, SyncConfig)
    assert config.tracker["mlflow"].arguments["uri"] == "http://u:***@h"
    key = "tracker.mlflow.uri"
    points = Points([f"{key}=http://v:p@h"]).expand([])
    points += Points(params={key: "http://w:p@h"}).expand([])
    shown = [word.replace("\\", "") for point in points for word in point]
    assert shown == [f"{key}=http://v:***@h", f"{key}=http://w:***@h"]
    for user in "uvw":
        assert whole(f"http://{user}:***@h", key) == f"http://{user}:p@h"


def test_an_address_is_used_with_its_password(tmp_path, caplog):
    with http_server(403) as (uri, headers):
        address = uri.replace("//", f"//user:{SECRET}@")
        tracker = MlflowTracker(tmp_path, kept(address))
        assert tracker.address == tracker.uri == uri.replace("//", "//user:***@")
        tracker.start(Record(tmp_path, "run", "name", "default"))
        tracker.close()
    expected = base64.b64encode(b"user:s3cr@t").decode()
    assert headers[-1]["Authorization"] == f"Basic {expected}"
    assert "is refused (" in caplog.text
    assert "s3cr" not in caplog.text


def holding(folder, word):
    """Files in a folder that hold a word."""
    return [
        path for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("how", ["typed", "in the environment"])
def test_a_run_and_a_sweep_write_no_password(how, command_line, tmp_path):
    address = f"http://user:{SECRET}@127.0.0.1:{free_port()}"
    typed = [f"tracker.mlflow.uri={address}"] if how == "typed" else []
    given = {} if typed else {"MLFLOW_TRACKING_URI": address}
    places = (*typed, f"paths.outputs={tmp_path}")
    single = command_line.run("train", *QUICK, *places, **given)
    sweep = command_line.run("train", "-m", *QUICK, "seed=1,2", *places, "sweep=two", **given)
    sent = command_line.run("sync", *places, **given)
    assert (single.code, sweep.code, sent.code) == (0, 0, 1)
    for ended in (single, sweep, sent):
        assert f"MLflow at {masked(address)} is not reached" in ended.err
        assert "s3cr" not in ended.out + ended.err
    assert masked(address) in single.out
    assert not holding(tmp_path, "s3cr")
    point = next(tmp_path.glob("runs/*/*/*/seed0/config.yaml"))
    uri = yaml.safe_load(point.read_text())["tracker"]["mlflow"]["uri"]
    assert uri == (masked(address) if typed else None)


@pytest.mark.cold
def test_a_frozen_point_reaches_the_server_and_its_files_hold_no_password(command_line, tmp_path):
    """Also not by a later process, which has the file alone."""
    with http_server(403) as (uri, headers):
        address = uri.replace("//", f"//user:{SECRET}@")
        places = (f"tracker.mlflow.uri={address}", f"paths.outputs={tmp_path}")
        command = ("train", "-m", *QUICK, "seed=0", "hydra/launcher=local_pool", *places)
        ended = command_line.run(*command)
    assert ended.code == 0, ended.err
    (log,) = tmp_path.glob("sweeps/*/points/*.log")
    assert "is refused (" in log.read_text()
    assert {entry.get("Authorization", "")[:6] for entry in headers} == {"Basic "}
    assert not holding(tmp_path, "s3cr")
    (point,) = tmp_path.glob("sweeps/*/points/*.yaml")
    shutil.rmtree(run_of(tmp_path))
    ended = command_line.run("train", f"point=['{point}']")
    assert ended.code == 1, "as of any point that cannot be carried out"
    assert f"tracker.mlflow.uri={masked(address)} " in ended.err
    assert "MLFLOW_TRACKING_URI" in ended.err
    assert not list(tmp_path.glob("runs/*/*/*/seed0"))


def test_the_command_that_runs_a_sweep_again_holds_none(command_line, tmp_path):
    address = f"http://user:{SECRET}@127.0.0.1:{free_port()}"
    places = (f"tracker.mlflow.uri={address}", f"paths.outputs={tmp_path}")
    ended = command_line.run("train", "-m", *QUICK, "seed=0", "optimizer.lr=1e30", *places)
    assert ended.code == 1, ended.err
    assert f"tracker.mlflow.uri={masked(address)}" in ended.out.replace("'", "")
    assert "s3cr" not in ended.out + ended.err


@pytest.mark.parametrize("options", [(), ("-m", "seed=0,1")])
@pytest.mark.parametrize("wrong", ["tracker.mlflow.patience=x", "train.nothing=1", "a=[", "dfr=x"])
def test_a_refusal_shows_none(command_line, tmp_path, options, wrong):
    typed = (wrong, f"tracker.mlflow.uri=http://user:{SECRET}@host", f"paths.outputs={tmp_path}")
    ended = command_line.run("train", *options, *typed)
    assert ended.code == 2
    assert "s3cr" not in ended.out + ended.err


def test_a_copy_of_the_configuration_holds_none(tmp_path, monkeypatch):
    from spurcor.sweeps import freeze

    for name in ("conf/tracker", "spurcor", "sweeps"):
        (tmp_path / "repo" / name).mkdir(parents=True)
    text = (CONF / "tracker" / "mlflow.yaml").read_text().replace("null #", "http://u:p4ss@h #", 1)
    assert "p4ss" in text
    (tmp_path / "repo" / "conf" / "tracker" / "mlflow.yaml").write_text(text)
    monkeypatch.setattr(freeze, "REPO", tmp_path / "repo")
    copy = freeze.copy_code(tmp_path / "sweep")
    assert (copy / "conf" / "tracker" / "mlflow.yaml").read_text() == text.replace("p4ss", "***")
