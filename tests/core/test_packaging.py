"""Each package imports with what it declares and no more, and the arrows point to core alone."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support.programs import run_program

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGES = Path(__file__).parents[2] / "packages"
CORE = PACKAGES / "core"
APPLICATIONS = {"mhe_classification", "mhe_gan", "sphereface_plus"}

# Distributions of modules that have another name; others are called as their module is.
DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


class Import(NamedTuple):
    file: Path
    line: int
    module: str  # dotted
    at_top: bool  # runs when the file is imported

    @property
    def top(self):
        return self.module.partition(".")[0]


def imports_of(file):
    """All absolute imports in a file, those in functions, too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    late = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, name, id(node) not in late)


def imports_in(folder):
    return [one for file in sorted(folder.rglob("*.py")) for one in imports_of(file)]


def normalized(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def parsed(requirement):
    """Name and extras of a requirement such as ``mhe-core[plots,training]>=0.1``."""
    name, extras = re.match(r"([\w.-]+)\s*(?:\[([^]]*)\])?", requirement).groups()
    return normalized(name), {extra.strip() for extra in (extras or "").split(",") if extra.strip()}


def declared(package, extras=None, core=CORE):
    """Distributions that a package declares, with those of core's extras that it asks for.

    Of its own extras those that are named; None for all.
    """
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    requirements = list(project["dependencies"])
    for extra in optional if extras is None else extras:
        requirements += optional[extra]
    names = {normalized(project["name"])}
    for name, wanted in map(parsed, requirements):
        names |= {name} if name != "mhe-core" or package == core else declared(core, wanted, core)
    return names


def undeclared(package, core=CORE):
    """Imports of a package that nothing it declares brings."""
    has = declared(package, core=core)
    return [
        one
        for one in imports_in(package / "src")
        if one.top not in sys.stdlib_module_names
        and normalized(DISTRIBUTIONS.get(one.top, one.top)) not in has
    ]


def siblings(package):
    """Imports of another application."""
    own = {folder.name for folder in (package / "src").iterdir()}
    return [one for one in imports_in(package / "src") if one.top in APPLICATIONS - own]


@pytest.fixture(params=sorted(path.parent for path in PACKAGES.glob("*/pyproject.toml")), ids=str)
def package(request):
    return request.param


def test_there_are_core_the_applications_and_a_plug_in():
    modules = {path.name for path in PACKAGES.glob("*/src/*") if path.is_dir()}
    assert modules == APPLICATIONS | {"mhe_core", "mhe_uniformity"}


def test_nothing_imports_the_plug_in(package):
    if package.name != "uniformity":
        assert [one for one in imports_in(package / "src") if one.top == "mhe_uniformity"] == []


def test_imports_are_declared(package):
    assert undeclared(package) == []


def test_no_application_is_imported_by_another_package(package):
    assert siblings(package) == []


def test_core_needs_torch_alone_outside_its_training_layer_and_integrations():
    training, integrations = (CORE / "src" / "mhe_core" / n for n in ("training", "integrations"))
    others = {
        (one.file.name, one.top)
        for one in imports_in(CORE / "src")
        if one.at_top
        and not {training, integrations} & set(one.file.parents)
        and one.top not in sys.stdlib_module_names | {"torch", "mhe_core"}
    }
    assert others == set()
    within = [one for one in imports_in(CORE / "src") if training not in one.file.parents]
    for apart in ("mhe_core.training", "mhe_core.integrations"):
        assert not [one for one in within if one.at_top and one.module.startswith(apart)]


def test_core_depends_on_torch_alone():
    assert declared(CORE, extras=()) == {"mhe-core", "torch"}


def test_scripts_and_entry_points_lead_somewhere(package):
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project.get("scripts", {}), *project.get("entry-points", {}).values()]
    for target in (target for group in groups for target in group.values()):
        module, _, name = target.partition(":")
        path = package / "src" / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        stored = {node.id for node in assigned if isinstance(node.ctx, ast.Store)}
        assert name in stored | {getattr(node, "name", None) for node in tree.body}, target


@pytest.fixture
def fake_package(tmp_path):
    """A package that breaks each rule once."""
    source = tmp_path / "src" / "mhe_gan"
    source.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "mhe-gan"\ndependencies = ["mhe-core[plots]>=0.1", "scikit_learn"]\n'
    )
    (source / "a.py").write_text(
        "import json, torch.nn, mhe_core.energy\nfrom sklearn import svm\nfrom . import other\n"
        "import matplotlib.pyplot\nfrom mhe_gan import other\nimport torchvision\n"
        "def f():\n    from sphereface_plus.head import Head\n    import PIL.Image\n"
    )
    return tmp_path


def test_these_checks_find_what_they_look_for(fake_package):
    assert [(one.line, one.top, one.at_top) for one in undeclared(fake_package)] == [
        (6, "torchvision", True),
        (8, "sphereface_plus", False),
        (9, "PIL", False),
    ]
    assert [one.line for one in siblings(fake_package)] == [8]


# What happens where nothing but torch and what torch requires is installed.


def required(distribution, found):
    """Add the distribution and all that it requires, without extras, as far as installed."""
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return found
    found.add(distribution)
    for requirement in requirements:
        name, _ = parsed(requirement)
        if "extra ==" not in requirement and name not in found:
            required(name, found)
    return found


def modules_of(distribution):
    """Top-level modules that a distribution installs."""
    return {path.parts[0].partition(".")[0] for path in importlib.metadata.files(distribution)}


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ALLOWED = set(sys.argv.pop(1).split(",")) | sys.stdlib_module_names | {"mhe_core"}
sys.meta_path.insert(0, Blocker())
"""


def with_torch_alone(code, status=0):
    allowed = set().union(*map(modules_of, required("torch", set())))
    assert {"torch", "sympy"} <= allowed
    command = (sys.executable, "-W", "ignore", "-c", BLOCKER + code, ",".join(allowed))
    return run_program(*command, status=status)


def test_core_works_with_torch_alone():
    run = with_torch_alone("""
import mhe_core, torch
from mhe_core.cli import main
from mhe_core.testing import check_regularizer
model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
mhe_core.NetworkRegularizer(model)().backward()
check_regularizer("half_mhe")
main(["list"])
""")
    assert "half_mhe" in run.stdout


@pytest.mark.parametrize("module", ["numpy", "mhe_gan"])
def test_the_blocker_blocks(module):
    assert "No module named" in with_torch_alone(f"import {module}", status=1).stderr
