"""Redraw the pages' tables and pictures from docs/results, where the figures of every run are.

python docs/machinery/results.py

A table stands in a page between ``<!-- results: NAME -->`` and ``<!-- end of results -->``.
"""

from __future__ import annotations

import json
import re
import runpy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mhe_core.training.compare import Column, Comparison, write_table

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results"
MATRIX = runpy.run_path(str(DOCS.parent / "packages/uniformity/benchmarks/matrix.py"))

CIFAR = (
    Column("test_error", "test error, %", scale=100),
    Column("hidden_above_floor", "hidden energy above floor", digits=4),
    Column("output_above_floor", "output energy above floor", digits=4),
)
FACES = (
    Column("test_accuracy", "verification accuracy, %", scale=100),
    Column("test_eer", "EER, %", scale=100),
    Column("class_angle", "smallest class angle, °", digits=1),
    Column("class_energy", "class energy", digits=4),
)


def compared(columns: tuple[Column, ...], content: Mapping[str, Any]) -> str:
    """The table of a compare command, of its table.json."""
    summaries = {name: tuple(method["runs"]) for name, method in content["methods"].items()}
    comparison = Comparison(tuple(content["seeds"]), {}, summaries)
    with tempfile.TemporaryDirectory() as folder:
        return write_table(comparison, columns, Path(folder))


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "cifar_family": partial(compared, CIFAR),
    "cifar_family_matrix": MATRIX["as_table"],
    "orl_margins": partial(compared, FACES),
    "orl_heads": partial(compared, FACES),
    "orl_family": partial(compared, FACES),
}
PICTURES: dict[str, Callable[[Mapping[str, Any], Path], None]] = {
    "cifar_family_matrix": MATRIX["plot"],
}
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def load(name: str) -> Any:
    """What docs/results has under a name."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def redrawn(page: str) -> str:
    """The text of a page with its tables made anew."""
    return BLOCK.sub(
        lambda found: f"{found[1]}\n{TABLES[found[2]](load(found[2]))}\n{found[3]}", page
    )


def main() -> None:
    """Write the pages and the pictures."""
    for page in sorted(DOCS.glob("**/*.md")):
        text = page.read_text()
        if (new := redrawn(text)) != text:
            page.write_text(new)
            print(f"redrawn: {page.relative_to(DOCS)}")
    for name, draw in PICTURES.items():
        draw(load(name), DOCS / "experiments" / f"{name}.png")


if __name__ == "__main__":
    main()
