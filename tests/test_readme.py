"""The README's example works as it is printed."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPO
from training import read

import spurcor.library

README = (REPO / "README.md").read_text()


def test_the_readme_names_every_option_that_exists():
    for group in ("dataset", "backbone", "method"):
        for path in (REPO / "conf" / group).glob("*.yaml"):
            assert f"`{path.stem}`" in README, f"{group}={path.stem}"


def test_the_readmes_run_is_the_one_that_its_first_command_makes():
    named = set(re.findall(r"\br[0-9a-f]{10}\b", README + (spurcor.library.__doc__ or "")))
    assert named == {read().identity}


@pytest.mark.cold
def test_a_method_is_the_two_files_of_the_readme(tmp_path):
    for name in ("spurcor", "conf", "sweeps"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / name, tmp_path / name, symlinks=True, ignore=ignored)
    files = re.findall(r"`((?:spurcor|conf)/[\w/]+\.\w+)`:\n\n```\w+\n(.*?)```", README, re.DOTALL)
    assert [name for name, _ in files] == ["spurcor/methods/focal.py", "conf/method/focal.yaml"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "spurcor.train", "method=focal", "tracker=none", "dfr=none"]
    ended = subprocess.run(
        [*command, "method.epochs=1", f"paths.outputs={tmp_path}/outputs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "focal epoch 1/1" in ended.stdout
    wrong = subprocess.run(
        [*command, "method.gama=1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "method.gamma?" in wrong.stderr
