"""The README and the pages under docs/ are true: their examples run, their commands compose."""

import ast
import importlib
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import REPO
from hydra import compose, initialize_config_dir
from test_contracts import SWEEPS
from training import SMALL, expanded, read

import spurcor.library
from spurcor.config import resolvers
from spurcor.config.check import check
from spurcor.launchers.points import Points
from spurcor.runs import build
from spurcor.system.places import CONF

README = (REPO / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((REPO / "docs").glob("*.md"))}
TEXTS = {"README.md": README, **PAGES}
# What a reader puts in the place of a placeholder. Nothing is opened: commands are only composed.
PLACEHOLDERS = {"<run>": "r0123456789/seed0", "<name>": "digits", "<csv>": "clusters.csv"}
FLAGS = ("-m", "--help")
MLFLOW_TAG = "spurcor.kind"  # no module
FILE = re.compile(r"`((?:spurcor|conf)/[\w/]+\.\w+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
# method=focal and so on: what is on the page on extending and not in conf/.
EXAMPLES = {
    f"{group}={name}"
    for path, _ in FILE.findall(PAGES["extending.md"])
    for group, name in re.findall(r"conf/(.*)/(\w+)\.yaml", path)
}


def commands_of(text):
    """Command lines of spurcor: those in blocks, and those in the text, which may be wrapped."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = [line for block in blocks for line in block.splitlines()]
    found += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    return [line for line in found if line.startswith("python -m spurcor.")]


def distinct_commands():
    pages = {}
    for page, text in TEXTS.items():
        for command in commands_of(text):
            if EXAMPLES.isdisjoint(command.split()):  # those are run, by a test of their own
                pages.setdefault(command, page)
    numbers = enumerate(pages.items())
    return [pytest.param(command, id=f"{page}-{i}") for i, (command, page) in numbers]


def refuse_or_check(command):
    """Compose a command and check it against the configuration, as the program would."""
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    assert not re.search(r"<[^>]*>", command), "a placeholder that this test does not know"
    words = shlex.split(command, comments=True)[2:]
    name = words[0].removeprefix("spurcor.")
    typed = [word for word in words[1:] if word not in FLAGS]
    if name == "train":
        points = expanded(*typed)[1] if "-m" in words else [typed]
        for point in {tuple(points[0]), tuple(points[-1])}:
            check_run(point)
        return
    schema = getattr(importlib.import_module(words[0]), f"{name.capitalize()}Config")
    resolvers.register()
    for point in Points().expand(typed) if "-m" in words else [typed]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            check(compose(name, point), schema)


def check_run(point):
    """A run from another one is composed whole, and checked without it: there is none."""
    alone = [word for word in point if not word.startswith("method.init=")]
    build.validate(read(*alone))
    if alone != list(point):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose("train", list(point))


@pytest.mark.parametrize("command", distinct_commands())
def test_every_command_composes_and_passes_check(command):
    refuse_or_check(command)


@pytest.mark.parametrize(
    "command",
    [
        "python -m spurcor.train method.epoch=3",
        "python -m spurcor.train -m +sweeps=digits/main method.epoch=3",
        "python -m spurcor.report sweep=<name> row=[method]",
        "python -m spurcor.retrain run=<run> dfr=vals",
        "python -m spurcor.train method=<something>",
    ],
)
def test_a_command_that_is_wrong_would_be_noticed(command):
    with pytest.raises(Exception, match=r"epoch|row|vals|placeholder"):
        refuse_or_check(command)


def test_commands_are_found_in_blocks_and_in_wrapped_text():
    block = "```bash\npython -m spurcor.sync  # x\nls\n```"
    text = f"Say `python -m spurcor.train\nseed=1`.\n\n{block}\n"
    assert commands_of(text) == ["python -m spurcor.sync  # x", "python -m spurcor.train seed=1"]


def test_scripts_that_are_named_exist():
    named = {name for text in TEXTS.values() for name in re.findall(r"python ([\w/]+\.py)", text)}
    assert named
    assert [name for name in sorted(named) if not (REPO / name).is_file()] == []


def test_sweep_files_that_are_named_exist_and_each_is_named():
    text = PAGES["results.md"]
    for name in SWEEPS:
        assert (REPO / "sweeps" / f"{name}.yaml").exists()
        assert name in text, f"docs/results.md does not name sweeps/{name}.yaml"


@pytest.mark.parametrize(
    ("group", "page"),
    [
        ("dataset", "datasets.md"),
        ("dataset/transform", "datasets.md"),
        ("method", "methods.md"),
        ("backbone", "backbones.md"),
        ("dfr", "repairs.md"),
        ("analysis", "analyses.md"),
        ("hydra/launcher", "sweeps.md"),
        ("tracker", "trackers.md"),
    ],
)
def test_every_option_of_a_group_is_on_its_page(group, page):
    names = {path.stem for path in (CONF / group).glob("*.yaml")} - {"none"}
    words = set(re.findall(r"[\w-]+", PAGES[page]))
    assert sorted(names - words) == []


def test_every_option_of_a_method_is_in_its_section():
    sections = re.split(r"^## ", PAGES["methods.md"], flags=re.MULTILINE)[1:]
    by_name = {section.partition("\n")[0].strip(): section for section in sections}
    for path in (CONF / "method").glob("*.yaml"):
        for key in read(f"method={path.stem}").method.arguments:
            assert re.search(rf"`(method\.)?{key}`", by_name[path.stem]), f"{path.stem}.{key}"


def test_the_run_that_is_named_is_the_one_that_the_first_command_makes():
    texts = "".join(TEXTS.values()) + (spurcor.library.__doc__ or "")
    assert set(re.findall(r"\br[0-9a-f]{10}\b", texts)) == {read().identity}


def test_pages_are_reachable_and_pictures_are_small_and_shown():
    nav = (REPO / "mkdocs.yml").read_text()
    assert [page for page in PAGES if page not in nav] == []
    shown = {name for text in PAGES.values() for name in re.findall(r"\(pictures/([\w.]+)\)", text)}
    pictures = {path.name: path.stat().st_size for path in (REPO / "docs").glob("pictures/*.png")}
    assert shown == set(pictures)
    assert max(pictures.values()) < 200_000


def test_no_formula_has_an_escape_that_markdown_takes_before_it_becomes_mathml():
    for page, text in PAGES.items():
        prose = re.sub(r"^(```|\$\$).*?^\1|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        for formula in re.findall(r"\$([^$]+)\$", prose):
            assert not re.search(r"\\[{}_*#.!+()\[\]-]", formula), f"{page}: {formula}"


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert README.count("\n") <= 180
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", README):
        assert target.startswith("https://") or (REPO / target).is_file(), target


def test_the_readme_has_the_layers_of_the_contract():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    (contract,) = [
        one for one in project["tool"]["importlinter"]["contracts"] if one["id"] == "layers"
    ]
    table = README.partition("| layer | |\n|---|---|\n")[2].partition("\n\n")[0]
    shown = [re.findall(r"`(\w+)`", row.split(" | ")[0]) for row in table.splitlines()]
    assert shown == [layer.split(" | ") for layer in contract["layers"]]


def test_every_module_and_name_that_is_shown_exists():
    examples = {path for path, _ in FILE.findall(PAGES["extending.md"])}
    made = {path.removesuffix(".py").replace("/", ".") for path in examples}
    files = [*(REPO / "conf").rglob("*.yaml"), *(REPO / "spurcor").rglob("*.py")]
    told = TEXTS | {str(path): path.read_text() for path in files}
    for page, text in told.items():
        for path in set(re.findall(r"\bspurcor/[\w/]+\.py", text)) - examples:
            assert (REPO / path).exists(), f"{page}: {path}"
    for text in TEXTS.values():
        for name in set(re.findall(r"(?<![\w./])spurcor(?:\.\w+)+", text)) - {MLFLOW_TAG}:
            if not any(f"{name}.".startswith(f"{module}.") for module in made):
                pkgutil.resolve_name(name)  # raises what says which part is missing


def test_the_page_on_extending_has_the_readmes_method():
    assert FILE.findall(README) == FILE.findall(PAGES["extending.md"])[:2]


@pytest.mark.cold
def test_the_examples_of_extending_are_whole(tmp_path):
    for name in ("spurcor", "conf", "sweeps"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / name, tmp_path / name, symlinks=True, ignore=ignored)
    page = PAGES["extending.md"]
    files = FILE.findall(page)
    assert [name for name, _ in files[:2]] == ["spurcor/methods/focal.py", "conf/method/focal.yaml"]
    for name, text in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    chosen = re.search(r"`python -m spurcor\.train (method=focal dataset=.*)`", page)
    command = [sys.executable, "-m", "spurcor.train", *chosen[1].split(), "dfr=none"]
    outputs = tmp_path / "outputs"
    ended = subprocess.run(
        [*command, "method.epochs=1", f"paths.outputs={outputs}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "focal epoch 1/1" in ended.stdout
    assert "FINISHED" in (outputs / "journal.txt").read_text()
    (result,) = outputs.glob("runs/stripes/focal/*/seed0/analysis/confidence-*/result.json")
    assert '"right/test"' in result.read_text()
    twice = subprocess.run(
        [*command[:3], "method=twice", "method.epochs=1", *SMALL, f"paths.outputs={outputs}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert twice.returncode == 0, twice.stderr
    (rows,) = outputs.glob("runs/digits/twice/*/seed0/metrics.jsonl")
    assert '"train/errors": ' in rows.read_text().splitlines()[-1]
    wrong = subprocess.run(
        [*command, "method.gama=1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "method.gamma?" in wrong.stderr


def messages_in(folder):
    """Every text in the code, one a line, with what is filled in left out."""
    found = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_troubleshooting_explains_are_those_of_the_code():
    rows = re.findall(r"^\| (`.*?) \| ", PAGES["troubleshooting.md"], re.MULTILINE)
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    quoted += re.findall(r"\*\*`([^`]+)`", PAGES["troubleshooting.md"])  # warnings
    pieces = [piece.strip(" ;,") for message in quoted for piece in message.split("...")]
    known = messages_in(REPO / "spurcor")
    assert len(quoted) > 50
    assert [piece for piece in pieces if piece not in known] == []
