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

import mhe_classification.compare as classification
import sphereface_plus.compare as faces
from mhe_core.training.compare import (
    Column,
    Comparison,
    paired_difference,
    shown_difference,
    write_table,
)
from mhe_uniformity import bench

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results"
MATRIX = runpy.run_path(str(DOCS.parent / "packages/uniformity/benchmarks/matrix.py"))


def compared(columns: tuple[Column, ...], content: Mapping[str, Any]) -> str:
    """The table of a compare command, of the seeds that all methods have."""
    summaries = {name: tuple(shown(content, name)) for name in content["methods"]}
    comparison = Comparison(tuple(content["seeds"]), {}, summaries)
    with tempfile.TemporaryDirectory() as folder:
        return write_table(comparison, columns, Path(folder))


def shown(content: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    """A method's runs with the seeds that all methods have."""
    return [run for run in content["methods"][method]["runs"] if run["seed"] in content["seeds"]]


def leaving_chance(content: Mapping[str, Any]) -> str:
    """The steps from which each run's training accuracy stays above 20 %."""
    key = "train_accuracy_above_0.2_from_step"
    seeds = " / ".join(f"seed {seed}" for seed in content["seeds"])
    lines = [f"| method | training accuracy stays above 20 % from step, {seeds} |", "|---|---|"]
    for name in content["methods"]:
        steps = ("never" if run[key] is None else f"{run[key]:,}" for run in shown(content, name))
        lines.append(f"| {name} | {' / '.join(steps)} |")
    return "\n".join(lines) + "\n"


def family_in_short(stable: Any, released: Any, costs: Any) -> str:
    """A line for each regularizer: errors with both recipes, and what it costs."""
    titles = [
        "method",
        "`stable`: test error, %",
        "minus none",
        "`released`: test error, %",
        "minus none",
        "off chance",
        "cost at 256×2304",
        "at 10572×512",
    ]
    ratios = {(one["name"], one["N"]): one["ratio"] for one in costs["costs"]}
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in stable["methods"]:
        cells = [name]
        for results in (stable, released):
            errors, baseline = (
                [100 * run["test_error"] for run in shown(results, method)]
                for method in (name, "none")
            )
            cells.append(f"{sum(errors) / len(errors):.1f}")
            difference = paired_difference(errors, baseline)
            cells.append("–" if name == "none" else shown_difference(difference, 1))
        left = [run["train_accuracy_above_0.2_from_step"] for run in shown(released, name)]
        cells.append(f"{sum(step is not None for step in left)} of {len(left)}")
        for N in (256, 10572):
            ratio = ratios.get((name, N))
            cells.append("–" if ratio is None else f"{ratio:.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "cifar_family": partial(compared, classification.COLUMNS),
    "cifar_family_matrix": MATRIX["as_table"],
    "uniformity_costs": bench.as_table,
    "cifar_released_so": partial(compared, classification.COLUMNS),
    "cifar_released_family": lambda content: "\n".join(
        (compared(classification.COLUMNS, content), leaving_chance(content))
    ),
    "orl_margins": partial(compared, faces.COLUMNS),
    "orl_heads": partial(compared, faces.COLUMNS),
    "orl_family": partial(compared, faces.COLUMNS),
}
# Of several results.
COMBINED: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "family_in_short": (
        ("cifar_family", "cifar_released_family", "uniformity_costs"),
        family_in_short,
    ),
}
PICTURES: dict[str, Callable[[Mapping[str, Any], Path], None]] = {
    "cifar_family_matrix": MATRIX["plot"],
    "uniformity_costs": bench.plot,
}
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def load(name: str) -> Any:
    """What docs/results has under a name."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(name: str) -> str:
    """As it is to stand in a page."""
    if name in COMBINED:
        names, draw = COMBINED[name]
        return draw(*map(load, names))
    return TABLES[name](load(name))


def pages() -> list[Path]:
    """Where tables can stand: the site's pages, and the packages' READMEs."""
    return sorted([*DOCS.glob("**/*.md"), *DOCS.parent.glob("packages/*/README.md")])


def redrawn(page: str) -> str:
    """The text of a page with its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(found[2])}\n{found[3]}", page)


def main() -> None:
    """Write the pages and the pictures."""
    for page in pages():
        text = page.read_text()
        if (new := redrawn(text)) != text:
            page.write_text(new)
            print(f"redrawn: {page.relative_to(DOCS.parent)}")
    for name, draw in PICTURES.items():
        draw(load(name), DOCS / "experiments" / f"{name}.png")


if __name__ == "__main__":
    main()
