"""The rules of the house, read from the source files: sizes, names, and what the core may touch."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    path
    for folder in ("workers", "training", "deploy", "feature_repo", "triton_models")
    for path in (ROOT / folder).rglob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CORE = [path for path in SHIPPED if path.is_relative_to(ROOT / "workers/freshet/core")]

MODULE_LINES = 400
FUNCTION_LINES = 70
EMPTY_NAMES = {"one", "ones", "some", "place", "many", "those", "what"}
"""Names of variables that say nothing about what they hold. `place` is a good name for a function: it is a verb."""
NAMED_BY_OTHERS = {"TritonPythonModel"}
"""Triton loads a class of this name from the file of every Python model."""

CORE_IMPORTS = {
    "__future__", "bisect", "collections", "copy", "dataclasses", "datetime", "enum", "freshet.core", "functools",
    "hashlib", "heapq", "itertools", "math", "msgspec", "numpy", "re", "statistics", "struct", "typing",
}  # fmt: skip
"""What the core may import: itself, numpy, msgspec, and the modules of the standard library that only compute."""
READERS = {
    "open",
    "input",
    "print",
    "exec",
    "eval",
    "__import__",
    "fromfile",
    "load",
    "loadtxt",
    "genfromtxt",
    "memmap",
}
WRITERS = {"save", "savez", "savetxt", "tofile"}
CLOCKS = {"now", "utcnow", "today", "fromtimestamp"}
"""`fromtimestamp` is allowed with a time zone: without one it reads the host's."""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def long_modules(lines_of: dict[str, int]) -> list[str]:
    return [f"{name}: {lines} lines" for name, lines in lines_of.items() if lines > MODULE_LINES]


def long_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{node.name}: {lines} lines"


def empty_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.arg(arg=name)
                | ast.alias(asname=str(name))
                | ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
            ) if name in EMPTY_NAMES:
                yield f"line {getattr(node, 'lineno', '?')}: {name}"


def foreign_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                modules = [alias.name for alias in aliases]
            case ast.ImportFrom(module="freshet", names=aliases):
                modules = [f"freshet.{alias.name}" for alias in aliases]
            case ast.ImportFrom(module=module, level=level):
                modules = [f"{'.' * level}{module or ''}"]
            case _:
                continue
        for module in modules:
            if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in CORE_IMPORTS):
                yield f"line {node.lineno}: {module}"


def impure_calls(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        is_numpys_random = called.startswith(("np.random.", "numpy.random.")) and "(" not in called
        is_seeded = last in {"default_rng", "Generator", "PCG64", "Philox"} and bool(node.args)
        has_zone = last == "fromtimestamp" and len(node.args) + len(node.keywords) > 1
        if (last in READERS | WRITERS | CLOCKS and not has_zone) or (is_numpys_random and not is_seeded):
            yield f"line {node.lineno}: {called}"


def test_a_shipped_module_has_at_most_400_lines() -> None:
    """No shipped module has more than 400 lines."""
    assert long_modules({name_of(path): len(path.read_text().splitlines()) for path in SHIPPED}) == []


def test_a_shipped_function_has_at_most_70_lines() -> None:
    """No shipped function has more than 70 lines."""
    assert [f"{name_of(path)}: {fault}" for path in SHIPPED for fault in long_functions(tree_of(path))] == []


def test_a_public_class_name_has_a_single_meaning() -> None:
    """No public class name stands in two shipped modules."""
    modules: dict[str, list[str]] = defaultdict(list)
    for path in SHIPPED:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in NAMED_BY_OTHERS:
                modules[node.name].append(name_of(path))
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}


def test_a_variable_carries_the_noun_of_the_domain() -> None:
    """No variable of shipped code or of the tests has a name that says nothing."""
    assert [f"{name_of(path)}, {fault}" for path in SHIPPED + TESTS for fault in empty_names(tree_of(path))] == []


def test_the_core_imports_only_what_is_on_its_list() -> None:
    """The core imports itself, numpy, msgspec, and modules of the standard library that only compute."""
    assert len(CORE) > 20
    assert [f"{name_of(path)}, {fault}" for path in CORE for fault in foreign_imports(tree_of(path))] == []


def test_the_core_touches_no_file_clock_or_unseeded_chance() -> None:
    """The core opens no file, prints nothing, reads no clock, and draws from seeded generators alone."""
    assert [f"{name_of(path)}, {fault}" for path in CORE for fault in impure_calls(tree_of(path))] == []


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "import socket",
        "import random",
        "from os import environ",
        "from pathlib import Path",
        "from freshet import files",
        "from freshet.adapters import kafka",
        "from .. import files",
    ],
)
def test_an_import_of_the_outside_is_seen(line: str) -> None:
    """The check of the core's imports finds clocks, sockets, files, chance and the edges."""
    assert list(foreign_imports(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "open('x')",
        "np.load('x')",
        "np.save('x', y)",
        "datetime.now(UTC)",
        "date.today()",
        "datetime.fromtimestamp(0)",
        "np.random.default_rng()",
        "np.random.rand(3)",
        "np.random.seed(1)",
    ],
)
def test_an_impure_call_is_seen(line: str) -> None:
    """The check of the core's calls finds files, clocks and unseeded chance."""
    assert list(impure_calls(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "for one in x: pass",
        "[some for some in x]",
        "def f(what): pass",
        "place = 1",
        "import x as many",
        "a, *ones = x",
    ],
)
def test_an_empty_name_is_seen(line: str) -> None:
    """The check of names finds them in loops, comprehensions, parameters, assignments and imports."""
    assert list(empty_names(ast.parse(line)))
