"""How core is laid out: imports run one way, and what is underscored stays in its folder."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import mhe_core
import pytest
from support.programs import run_program

ROOT = Path(mhe_core.__file__).parent
# Each room may import those before it.
ROOMS = ("energy", "regularizers", "registry", "testing", "network", "diagnostics", "cli")
MOVED = {
    "bounds": ("diagnostics.bounds", "lower_bound"),
    "comhe": ("regularizers.comhe", "RandomCoMHE"),
    "learned_comhe": ("regularizers.learned_comhe", "AnglePreservingCoMHE"),
    "plugins": ("registry", "create_regularizer"),
    "projections": ("regularizers.projections", "project"),
}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> list[tuple[str, str, bool]]:
    """Importing module, imported module of core, and whether that is at the top of the file."""
    files = [f for f in sorted(ROOT.rglob("*.py")) if f.stem not in MOVED]
    modules = {module_of(file) for file in files}
    found = []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        late = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.startswith("mhe_core")
            ):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = {name if name in modules else node.module for name in names}
            elif isinstance(node, ast.Import):
                targets = {a.name for a in node.names if a.name.startswith("mhe_core")}
            else:
                continue
            found += [(module_of(file), target, id(node) not in late) for target in targets]
    return found


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_there_are_imports_to_look_at():
    assert len(imports()) > 60
    assert ("mhe_core.energy.functional", "mhe_core.energy._ring", True) in imports()


def test_rooms_import_those_below_them():
    upwards = [
        (source, target)
        for source, target, _ in imports()
        if room(source) in ROOMS
        and room(target) in ROOMS
        and ROOMS.index(room(target)) > ROOMS.index(room(source))
    ]
    assert upwards == []


def test_no_module_imports_itself_by_way_of_others():
    """Imports in functions count, too: they are how a circle is hidden."""
    edges: dict[str, set[str]] = {}
    for source, target, _ in imports():
        edges.setdefault(source, set()).add(target)
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way, module))
        if module in done:
            return
        for target in edges.get(module, ()):
            visit(target, (*way, module))
        done.add(module)

    for module in list(edges):
        visit(module, ())


def test_what_is_underscored_is_not_imported_from_other_folders():
    strangers = [
        (source, target)
        for source, target, _ in imports()
        for depth, part in enumerate(target.split("."))
        if part.startswith("_")
        and part != "__main__"
        and not source.startswith(".".join(target.split(".")[:depth]))
    ]
    assert strangers == []


@pytest.mark.parametrize("old", MOVED)
def test_modules_can_be_imported_from_where_they_were(old):
    new, name = MOVED[old]
    sys.modules.pop(f"mhe_core.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"mhe_core.{old} has moved: import mhe_core.{new}"):
        module = importlib.import_module(f"mhe_core.{old}")
    assert getattr(module, name) is getattr(importlib.import_module(f"mhe_core.{new}"), name)


def test_nothing_in_core_takes_the_old_paths():
    command = [sys.executable, "-W", "error::DeprecationWarning:mhe_core", "-c"]
    code = "import mhe_core, mhe_core.testing; mhe_core.create_regularizer('comhe_random', 4, 50)"
    run_program(*command, code)


def test_the_version_is_that_of_the_distribution():
    assert mhe_core.__version__ == importlib.metadata.version("mhe-core")


def test_all_public_names_are_there():
    for name in mhe_core.__all__:
        assert hasattr(mhe_core, name)
    for error in ("HyperparameterError", "PluginError", "RegularizerNameError"):
        assert issubclass(getattr(mhe_core, error), ValueError)
