"""The package's imports: folders import one way only, and no two files import each other.

`python tests/test_architecture.py` prints which folder imports which.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lsm_probe"
ORDER = (
    {"cli"},
    {"reports", "regression", "interop"},
    {"diagnosis"},
    {"training"},
    {"probes", "evaluation"},
    {"runner"},
    {"data", "instruments"},
    {"models"},
    {"assets"},
)
"""A folder may import those of later lines, and the modules at the top of the package."""
FOUNDATIONS = "top-level modules"
DOORS = {"lsm_probe", "lsm_probe.__main__"}
"""The public doors: they may import everything, and nothing imports them."""


def _module_name(path: Path) -> str:
    parts = ("lsm_probe", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imported(module: str) -> Iterator[str]:
    """The modules of the package that a module imports: at its top, in functions, and for type checking."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in MODULES:  # a class or function of a module
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


def import_graph() -> dict[str, set[str]]:
    """Each module with those it imports; the doors left out."""
    return {module: set(_imported(module)) for module in MODULES if module not in DOORS}


def folder_of(module: str) -> str:
    """The folder a module is in; [`FOUNDATIONS`] for most modules at the top of the package."""
    name = module.split(".")[1]
    return name if any(name in line for line in ORDER) else FOUNDATIONS


def _line_of(folder: str) -> int:
    return next((i for i, line in enumerate(ORDER) if folder in line), len(ORDER))


def folder_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Each folder with those it imports."""
    folders: dict[str, set[str]] = {folder_of(module): set() for module in graph}
    for module, imports in graph.items():
        folders[folder_of(module)] |= {folder_of(name) for name in imports - DOORS} - {folder_of(module)}
    return folders


def wrong_imports(graph: dict[str, set[str]]) -> list[str]:
    """The imports against the order of the folders, and those of a door."""
    wrong = []
    for module, imports in graph.items():
        for name in sorted(imports):
            if name in DOORS:
                wrong.append(f"{module} imports {name}, which is for users: import the module that defines the name")
            elif folder_of(name) != folder_of(module) and _line_of(folder_of(name)) <= _line_of(folder_of(module)):
                wrong.append(f"{module} imports {name}: {folder_of(module)} must not import {folder_of(name)}")
    return wrong


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others of the group."""

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found

    reached = {module: reachable(module) for module in graph}
    groups = {
        tuple(sorted({module} | {other for other in reached[module] if module in reached.get(other, ())}))
        for module in graph
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return import_graph()


def test_folders_import_one_way(graph: dict[str, set[str]]) -> None:
    wrong = wrong_imports(graph)
    order = " -> ".join(", ".join(sorted(line)) for line in (*ORDER, {FOUNDATIONS}))
    assert not wrong, "\n".join([f"{len(wrong)} imports are against the order {order}:", *wrong])


def test_no_files_import_each_other(graph: dict[str, set[str]]) -> None:
    found = circles(graph)
    assert not found, "\n".join(["these files import each other in a circle:", *map(", ".join, found)])


def test_circles_and_wrong_imports_are_found() -> None:
    planted = {
        "lsm_probe.models.a": {"lsm_probe.data.b", "lsm_probe.files"},
        "lsm_probe.data.b": {"lsm_probe.data.c"},
        "lsm_probe.data.c": {"lsm_probe.models.a"},
        "lsm_probe.files": {"lsm_probe"},
    }
    assert circles(planted) == [["lsm_probe.data.b", "lsm_probe.data.c", "lsm_probe.models.a"]]
    assert [line.split(":")[0] for line in wrong_imports(planted)] == [
        "lsm_probe.models.a imports lsm_probe.data.b",
        "lsm_probe.files imports lsm_probe, which is for users",
    ]


def _print_graph() -> int:
    graph = import_graph()
    folders = folder_graph(graph)
    for folder in sorted(folders, key=_line_of):
        print(f"{folder} -> {', '.join(sorted(folders[folder], key=_line_of)) or 'nothing'}")
    problems = wrong_imports(graph) + [f"in a circle: {', '.join(group)}" for group in circles(graph)]
    print("\n".join(["", *problems]) if problems else "\nno import against the order, no circle")
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(_print_graph())
