"""Which code a run's results come from, and whether it would still give the same results.

The classes that a configuration names, with all that they use of spurcor and of their plug-ins, are
compared as syntax trees. Comments, docstrings, annotations, messages and module names do not
affect results, so moving, reformatting and rewording code does not count as a change.
"""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spurcor.config.nodes import Node, locate
from spurcor.config.packages import own
from spurcor.config.schema import TrainConfig
from spurcor.runs.results import read_result
from spurcor.system.files import read_json, read_lines
from spurcor.system.shapes import Row
from spurcor.training import selection

NODES = ("dataset", "features", "backbone", "method", "optimizer", "schedule")
# These modules do not affect results: dependencies are not followed into them.
SILENT = {
    *("archives", "config", "console", "downloads", "errors", "files", "lock", "logging"),
    *("pictures", "tracking"),
}
TELLING = ("log", "logger", "warnings")
_BLOCKS = (ast.If, ast.Try, ast.ExceptHandler, ast.With)
Name = tuple[str, str]  # of a definition: its module and its name there


def code_of(config: TrainConfig) -> dict[str, str]:
    """A fingerprint per part of a configuration that classes of spurcor or of plug-ins make."""
    found = {}
    for key in NODES:
        part = getattr(config, key)
        node = part if isinstance(part, Node) or part is None else part.backbone
        targets = [] if node is None else sorted(target for target in _targets(node))
        if targets:
            text = " ".join(fingerprint(locate(target)) for target in targets)
            found[key] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return found


def changed(recorded: Mapping[str, str], config: TrainConfig) -> list[str]:
    """The parts, as typed on the command line, whose code differs from the recorded one."""
    now = code_of(config)
    parts = [key for key, value in recorded.items() if now.get(key, value) != value]
    return [f"{key}={config.choices.get(key, '')}" for key in parts]


def begun_by(directory: Path) -> dict[str, str]:
    """Fingerprints of the code that a run was started with; earlier versions kept none."""
    path = directory / "code.json"
    return read_json(path) if path.exists() else {}


def outdated(config: TrainConfig) -> list[str]:
    """What a finished run's results depend on that has changed since, as typed."""
    directory = config.directory
    result = read_result(directory)
    parts = changed(result["run"].get("code", {}), config)
    selected = result["selected"]
    rows = read_lines(directory / "metrics.jsonl", Row)
    rows = [row for row in rows if row["phase"] == selected["phase"]]
    if selected["criterion"] and selected["epoch"] != selection.best_epoch(
        rows, config.train.selection
    ):
        parts.append(f"train.selection={config.train.selection}")
    return parts


def _targets(node: Node) -> Iterator[str]:
    """Classes of a node and of those within it that are not from torch and the like."""
    if own(locate(node.target).__module__):
        yield node.target
    for value in node.arguments.values():
        if isinstance(value, Node):
            yield from _targets(value)


@functools.cache
def fingerprint(owner: type) -> str:
    """Hash of a class and of every definition of its own that it uses, directly or not.

    A class that is made in a way that its module does not show counts as the whole module.
    """
    waiting, seen, texts = [(owner.__module__, owner.__qualname__)], set(), []
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen:
            continue
        seen.add((module, name))
        tree = _module(module).definitions.get(name)
        if tree is None:
            texts.append(f"{name} {text_of(module)}")
            continue
        reader = _Reader(_module(module))
        texts.append(f"{name} {ast.dump(reader.visit(tree))}")
        waiting += reader.used
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()


@dataclass(frozen=True)
class _Module:
    """The top level of a module: its definitions, and what its imported names refer to."""

    name: str
    definitions: Mapping[str, ast.stmt]
    imports: Mapping[str, tuple[str, str]]

    def resolve(self, name: str) -> Name | None:
        """Where spurcor defines what a name refers to, if it does."""
        if name in self.definitions:
            return self.name, name
        if name not in self.imports:
            return None
        module, there = self.imports[name]
        return _module(module).resolve(there) if _readable(module) else None

    def member(self, alias: str, name: str) -> Name | None:
        """The same for `alias.name`, where `alias` is a module."""
        package, there = self.imports.get(alias, ("", ""))
        module = f"{package}.{there}"
        return _module(module).resolve(name) if package and _readable(module) else None


def _readable(module: str) -> bool:
    parts = module.split(".")
    if not own(module) or (parts[0] == "spurcor" and SILENT & set(parts)):
        return False
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent is no package: a definition, not a module
        return False
    return spec is not None and spec.origin is not None and spec.origin.endswith(".py")


def text_of(module: str) -> str:
    """The source of a module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


@functools.cache
def _module(name: str) -> _Module:
    tree = ast.parse(text_of(name))
    definitions: dict[str, ast.stmt] = {}
    for node in _top(tree.body):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                definitions[node.name] = node
            case ast.Assign():
                names = (target for target in node.targets if isinstance(target, ast.Name))
                definitions |= {target.id: node for target in names}
            case ast.AnnAssign(target=ast.Name(id=target)):
                definitions[target] = node
    return _Module(name, definitions, dict(_imports(name, tree)))


def _top(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those of its conditions too."""
    for node in body:
        yield node
        for block in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, block, ()) if isinstance(node, _BLOCKS) else ()
            yield from _top(inner)


def _imports(name: str, tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """What names stand for elsewhere: a module, and the name there."""
    package = importlib.util.find_spec(name)
    parent = "" if package is None else package.parent or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), parent)
            for alias in node.names:
                yield alias.asname or alias.name, (module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module, _, last = alias.name.rpartition(".")
                if module and alias.asname:
                    yield alias.asname, (module, last)


class _Reader(ast.NodeTransformer):
    """Keeps what affects results of a definition, and collects what it uses of spurcor."""

    def __init__(self, module: _Module) -> None:
        self.module = module
        self.used: list[Name] = []

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A name, possibly an alias of a definition of spurcor."""
        return self._reference(node, self.module.resolve(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """`module.name` becomes the name of the definition that it refers to."""
        if isinstance(node.value, ast.Name):
            found = self.module.member(node.value.id, node.attr)
            if found is not None:
                return self._reference(node, found)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Without docstring and annotations."""
        copy = ast.FunctionDef(**{**dict(ast.iter_fields(node)), "returns": None})
        copy.body = _silenced(node.body)
        return self.generic_visit(copy)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Without docstring."""
        return self.generic_visit(
            ast.ClassDef(**{**dict(ast.iter_fields(node)), "body": _silenced(node.body)})
        )

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """A parameter without its annotation."""
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """A value, or a field, without its annotation."""
        value = ast.Constant(None) if node.value is None else node.value
        return ast.Assign([self.visit(node.target)], self.visit(value))

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """A value; a text with a space is a sentence for people, wherever it is put together."""
        sentence = isinstance(node.value, str) and " " in node.value
        return ast.Constant("") if sentence else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """A raise statement without its message."""
        return ast.Raise()

    def _reference(self, node: ast.AST, found: Name | None) -> ast.AST:
        if found is None:
            return node
        self.used.append(found)
        return ast.Name(found[1], ast.Load())


def _silenced(body: list[ast.stmt]) -> list[ast.stmt]:
    """Without docstring, imports and logging."""
    return [
        statement
        for statement in body
        if not isinstance(statement, ast.Import | ast.ImportFrom) and not _tells(statement)
    ]


def _tells(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=owner)))):
            return owner in TELLING
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
            return name == "print"
    return False
