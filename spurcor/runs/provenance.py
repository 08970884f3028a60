"""Fingerprints of the code behind a run's results, to tell whether it would still give them.

The classes that a configuration names are compared as syntax trees, together with all the
definitions in spurcor and in their plug-ins that they use. Comments, docstrings, annotations,
messages and module names do not affect results, so moving, reformatting and rewording code does not
count as a change.
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

NODES = ("dataset", "groups", "features", "backbone", "method", "optimizer", "schedule")
# Dependencies are not followed into these modules, which do not affect results.
SILENT = {"archives", "config", "downloads", "errors", "presentation", "system", "tracking"}
TELLING = ("log", "logger", "warnings")
_BLOCKS = (ast.If, ast.Try, ast.ExceptHandler, ast.With)
Name = tuple[str, str]  # module and name of a definition


def code_of(config: TrainConfig) -> dict[str, str]:
    """Return a fingerprint for each configuration part that spurcor or a plug-in implements."""
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
    """Return the parts, as typed on the command line, whose code differs from the recorded one."""
    now = code_of(config)
    parts = [key for key, value in recorded.items() if now.get(key, value) != value]
    return [f"{key}={config.choices.get(key, '')}" for key in parts]


def begun_by(directory: Path) -> dict[str, str]:
    """Load the fingerprints of the code that a run started with; empty for older runs."""
    path = directory / "code.json"
    return read_json(path) if path.exists() else {}


def outdated(config: TrainConfig) -> list[str]:
    """Return the parts, as typed, that have changed since a run finished and affect its results.

    `train.selection` is among them if today's code would select another epoch.
    """
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
    """Yield the classes of a node and its children that spurcor or a plug-in defines."""
    if own(locate(node.target).__module__):
        yield node.target
    for value in node.arguments.values():
        if isinstance(value, Node):
            yield from _targets(value)


@functools.cache
def fingerprint(owner: type) -> str:
    """Return a hash of a class and of all definitions in spurcor or plug-ins that it depends on.

    Dependencies are followed recursively. A class without a definition at the top level of its
    module is represented by the whole module.
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
    """The top level of a module: its definitions, and the targets of its imported names."""

    name: str
    definitions: Mapping[str, ast.stmt]
    imports: Mapping[str, tuple[str, str]]

    def resolve(self, name: str) -> Name | None:
        """Return the definition that a name refers to.

        None if it is not in spurcor or a plug-in, or in a silent module.
        """
        if name in self.definitions:
            return self.name, name
        if name not in self.imports:
            return None
        module, there = self.imports[name]
        return _module(module).resolve(there) if _readable(module) else None

    def member(self, alias: str, name: str) -> Name | None:
        """Return the definition that `alias.name` refers to, where `alias` is a module, or None."""
        package, there = self.imports.get(alias, ("", ""))
        module = f"{package}.{there}"
        return _module(module).resolve(name) if package and _readable(module) else None


def _readable(module: str) -> bool:
    parts = module.split(".")
    if not own(module) or (parts[0] == "spurcor" and SILENT & set(parts)):
        return False
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # the parent is no package, so this is a definition
        return False
    return spec is not None and spec.origin is not None and spec.origin.endswith(".py")


def text_of(module: str) -> str:
    """Return the source code of a module."""
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
    """Yield the top-level statements of a module, including those in conditional blocks."""
    for node in body:
        yield node
        for block in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, block, ()) if isinstance(node, _BLOCKS) else ()
            yield from _top(inner)


def _imports(name: str, tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each imported name with the module and the name that it refers to."""
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
    """Reduces a definition to what affects results, and collects the names that it uses."""

    def __init__(self, module: _Module) -> None:
        self.module = module
        self.used: list[Name] = []

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Replace a name by the name of the definition that it refers to, if any."""
        return self._reference(node, self.module.resolve(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """Replace `module.name` by the name of the definition that it refers to."""
        if isinstance(node.value, ast.Name):
            found = self.module.member(node.value.id, node.attr)
            if found is not None:
                return self._reference(node, found)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Drop docstring, imports, logging and the return annotation."""
        copy = ast.FunctionDef(**{**dict(ast.iter_fields(node)), "returns": None})
        copy.body = _silenced(node.body)
        return self.generic_visit(copy)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Drop docstring, imports and logging."""
        return self.generic_visit(
            ast.ClassDef(**{**dict(ast.iter_fields(node)), "body": _silenced(node.body)})
        )

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Drop the annotation of a parameter."""
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Drop the annotation of a value or field."""
        value = ast.Constant(None) if node.value is None else node.value
        return ast.Assign([self.visit(node.target)], self.visit(value))

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Blank strings that contain a space: they are messages."""
        sentence = isinstance(node.value, str) and " " in node.value
        return ast.Constant("") if sentence else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Drop the exception with its message."""
        return ast.Raise()

    def _reference(self, node: ast.AST, found: Name | None) -> ast.AST:
        if found is None:
            return node
        self.used.append(found)
        return ast.Name(found[1], ast.Load())


def _silenced(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements without docstring, imports and logging."""
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
