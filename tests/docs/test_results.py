"""The tables of the pages are those of docs/results."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = runpy.run_path(str(DOCS / "machinery" / "results.py"))
PAGES = [page for page in sorted(DOCS.glob("**/*.md")) if "<!-- results:" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_tables_of_the_results(page):
    text = page.read_text()
    assert RESULTS["redrawn"](text) == text, "python docs/machinery/results.py makes them anew"


def test_every_table_stands_in_a_page():
    shown = {found[1] for page in PAGES for found in RESULTS["BLOCK"].findall(page.read_text())}
    assert shown == set(RESULTS["TABLES"])
    assert {file.stem for file in RESULTS["RESULTS"].glob("*.json")} == shown


def test_a_wrong_figure_is_seen():
    page = next(page for page in PAGES if "cifar_family" in page.read_text())
    text = page.read_text().replace("| so | ", "| so | 1", 1)
    assert text != page.read_text()
    assert RESULTS["redrawn"](text) == page.read_text()
