"""All that READMEs and the site's pages print is run."""

import importlib.util
import os
import re
import runpy
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from mhe_core import registry
from support import pages, programs
from support.pages import ROOT, Block

OWN = {point.name for point in entry_points(group="console_scripts") if "mhe" in point.value}
OWN |= {"sphereface-plus"}
MARK = re.compile(r"|slow|flags only|not run, .+")


def read(page):
    return pages.blocks_of((ROOT / page).read_text(encoding="utf-8"))


class Reader:
    """Does what a page says, in the current folder."""

    def __init__(self, command, monkeypatch):
        self.command, self.monkeypatch = command, monkeypatch
        self.names = {"__name__": "page"}
        self.variables = {}

    def follow(self, block):
        exec(compile(block.before, f"before line {block.line}", "exec"), self.names)
        if block.title:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.run_python(block)
        elif block.language in ("sh", "console", "bash"):
            for words in pages.commands_of(block.text, self.variables):
                self.run_command(words, block.mark == "flags only")

    def run_python(self, block):
        # So that a traceback shows the page's own line.
        text = "\n" * block.line + block.text
        exec(compile(text, "page", "exec"), self.names)

    def run_command(self, words, flags_only):
        name, *arguments = words
        if name == "pip":
            self.install(arguments)
        elif name == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(arguments) <= set(targets), f"make has no {arguments}"
        elif name == "cd":
            self.monkeypatch.chdir(arguments[0])
        elif flags_only:
            assert name in OWN, words
            self.command(name, *arguments, "--print_config")
        elif name in OWN:
            self.command(name, *arguments)
        elif name == "python" and Path(arguments[0]).is_file():
            runpy.run_path(arguments[0], run_name="__main__")  # spares the imports of a process
        elif name in ("python", "pytest", "torchrun", "accelerate"):
            module = {"pytest": "pytest", "torchrun": "torch.distributed.run"}.get(name)
            launcher = [sys.executable, *(["-m", module] if module else [])]
            if name == "accelerate":
                launcher = [programs.script("accelerate")]
            arguments = [str(ROOT / a) if a.startswith("packages/") else a for a in arguments]
            programs.run_program(*launcher, *arguments)
        else:
            raise AssertionError(f"no rule for how to run {words}")

    def install(self, arguments):
        """A distribution that the page wrote; of ours, only whether they have those extras."""
        for wanted in arguments[1:]:
            path, _, extras = wanted.removesuffix("]").partition("[")
            if path == "-e":
                continue
            if path.startswith("./packages/") or path.startswith("./tests/"):
                text = (ROOT / path / "pyproject.toml").read_text(encoding="utf-8")
                for extra in filter(None, extras.split(",")):
                    assert re.search(rf"^{extra} = \[", text, re.MULTILINE), wanted
            elif path.startswith("."):
                site = Path.cwd() / "site-packages"
                quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
                pip = [sys.executable, "-m", "pip", "install", *quiet]
                programs.run_program(*pip, "--target", site, path)
                self.monkeypatch.syspath_prepend(site)
                self.monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.fixture
def reader(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = set(sys.modules), dict(registry._registered), os.environ.copy()
    registry._registered.clear()  # of names that other tests gave
    yield Reader(command, monkeypatch)
    for name in set(sys.modules) - before[0]:  # what the page itself installed
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]
    registry._registered.clear()
    registry._registered.update(before[1])
    registry._installed.cache_clear()
    importlib.invalidate_caches()


def with_marks(page):
    """The page as a fast test, and, where a block says so, once more as a slow one."""
    marks = {block.mark for block in read(page)}
    if not any(block.language in ("python", "sh", "console", "bash") for block in read(page)):
        return []
    cases = [pytest.param(page, False, id=str(page))]
    if "slow" in marks:
        cases.append(pytest.param(page, True, id=f"{page}, all", marks=pytest.mark.slow))
    return cases


@pytest.mark.parametrize(
    ("page", "slow"), [case for page in pages.pages() for case in with_marks(page)]
)
def test_what_a_page_prints_runs(page, slow, reader):
    for block in read(page):
        if block.mark.startswith("not run, ") or (block.mark == "slow" and not slow):
            continue
        try:
            reader.follow(block)
        except Exception as error:
            raise AssertionError(f"{page}, line {block.line}:\n{block.text}") from error


def test_every_block_says_what_it_is():
    for page in pages.pages():
        for block in read(page):
            where = f"{page}:{block.line}"
            assert block.language, f"{where}: a block without a language"
            assert MARK.fullmatch(block.mark), f"{where}: {block.mark!r}"


@pytest.fixture(scope="module")
def regularizer_pages():
    """The module that makes the pages of regularizers."""
    path = ROOT / "docs" / "machinery" / "regularizers.py"
    spec = importlib.util.spec_from_file_location("regularizer_pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "info", [i.name for i in registry.list_regularizers() if i.distribution.startswith("mhe-")]
)
def test_code_of_the_pages_of_regularizers(info, regularizer_pages):
    (block,) = pages.blocks_of(regularizer_pages.page(regularizer_pages.described(info)))
    names = {}
    exec(block.text, names)
    assert names["value"].isfinite()
    assert len(names["regularizer"].layers) == 2


def test_blocks_are_found():
    shell = '<!-- test: slow -->\n```sh\nA="--json"\nmhe list \\\n  $A  # all\n```\n'
    python = '<!-- test\nx = 1\n-->\n```python title="a.py"\nx\n```\n'
    first, second = pages.blocks_of(f"a\n\n{shell}\n{python}")
    assert (first.mark, pages.commands_of(first.text)) == ("slow", [["mhe", "list", "--json"]])
    assert second == Block(13, "python", "a.py", "", "x = 1\n", "x\n")


@pytest.mark.parametrize("info", registry.list_regularizers(), ids=lambda info: info.name)
def test_help_of_a_regularizer_has_its_formula(info):
    if info.distribution.startswith("mhe-"):
        assert ".. math::" in registry.find_regularizer(info.name)[1].__doc__
