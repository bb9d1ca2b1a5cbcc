"""The notebooks run, and what they show is small and says nothing of a machine."""

import importlib.util
import json
import re

import pytest
from support.pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MOST_BYTES = 300_000


def machinery(name):
    path = ROOT / "docs" / "machinery" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def of_path(path):
    return path.stem


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=of_path)
def test_a_notebook_runs_and_draws_what_it_drew(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")  # so that it is put back
    found = machinery("run_notebooks").executed(path).cells
    assert [kinds(cell) for cell in found] == [kinds(cell) for cell in cells(path)]


def kinds(cell):
    """What a cell shows: pictures, values, text."""
    outputs = cell.get("outputs", [])
    return [sorted(output.get("data", {"text": ""})) for output in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=of_path)
def test_outputs_are_there_and_small_and_name_no_machine(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in kind for cell in code for kind in kinds(cell))
    assert path.stat().st_size < MOST_BYTES
    shown = json.dumps([output for cell in code for output in cell["outputs"]])
    text = re.sub(r'"image/\w+": "[^"]*"', "", shown)
    assert not re.search(r"/(home|tmp|root|usr|work|site-packages)\b", text)
    assert "stderr" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=of_path)
def test_the_page_of_a_notebook(path):
    text, pictures = machinery("notebooks").page(path)
    assert text.startswith("# ")
    assert ".ipynb)" not in text.rpartition("---")[0]  # links to pages
    for name, content in pictures.items():
        assert f"]({name})" in text
        assert content.startswith((b"\x89PNG", b"GIF8"))


def test_there_are_five():
    assert len(NOTEBOOKS) == 5
