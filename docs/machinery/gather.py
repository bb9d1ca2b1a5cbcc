"""Gather the runs of a comparison in docs/results, beside those that are there.

python docs/machinery/gather.py docs/results/NAME.json RUNS ... --command "..." --hardware "..."

RUNS is the --output of a compare command. Of each complete run in it there will be its settings,
its final figures (the scores of test.json among them, where a GAN has been scored), and its errors
and energies by step; then docs/machinery/results.py redraws the page. Runs of one method must have
the same settings but for what says where and which seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mhe_core.training.run import read_config

# Where a run was and from what images; the seed stands with the run's figures.
PLACES = ("output", "data", "data_dir", "feature_extractor", "weights", "resume", "seed")
TIMES = ("step_seconds", "seconds")  # other work ran beside
CURVES = {
    "error_at": "test_error",
    "hidden_above_floor_at": "hidden_above_floor",
    "discriminator_above_floor_at": "discriminator_above_floor",
}
CHANCE_LEFT = 0.2
BASELINE = "none"  # the first of a table is the one compared with


def run_of(path: Path) -> dict[str, Any]:
    """What is kept of one complete run."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((path / "summary.json").read_text())
    curves = {name: at_steps(figure, lines) for name, figure in CURVES.items()}
    found = {
        **{name: figure for name, figure in summary.items() if name not in TIMES},
        **scores(path / "test.json"),
        **{name: curve for name, curve in curves.items() if curve},
    }
    if any("train_accuracy" in line for line in lines):
        found[f"train_accuracy_above_{CHANCE_LEFT}_from_step"] = stays_above(CHANCE_LEFT, lines)
    return found


def scores(report: Path) -> dict[str, float]:
    """The final generator's, of a GAN that has been scored; else none."""
    return json.loads(report.read_text()).get("final", {}) if report.exists() else {}


def at_steps(figure: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A figure of the evaluations, by step."""
    return {str(line["step"]): line[figure] for line in lines if figure in line}


def stays_above(level: float, lines: Sequence[Mapping[str, Any]]) -> int | None:
    """The first step from which each line's training accuracy is above a level."""
    first = None
    for line in lines:
        if line.get("train_accuracy", 0.0) <= level:
            first = None
        elif first is None:
            first = line["step"]
    return first


def add(results: dict[str, Any], folder: Path) -> None:
    """The runs of METHOD/seedN, added to what there is; one of the same seed is replaced."""
    paths = folder.glob("*/seed*")
    for path in sorted(paths, key=lambda path: (path.parent.name != BASELINE, path)):
        if not (path / "summary.json").exists():
            print(f"left out, as it is not complete: {path}")
            continue
        name = path.parent.name
        config = {k: v for k, v in read_config(path).items() if k not in PLACES}
        method = results["methods"].setdefault(name, {"config": config, "runs": []})
        if changed := [k for k in config if config[k] != method["config"].get(k)]:
            raise SystemExit(f"{path} has other settings than {name}'s runs: {', '.join(changed)}")
        run = run_of(path)
        others = [other for other in method["runs"] if other["seed"] != run["seed"]]
        method["runs"] = sorted([*others, run], key=lambda one: one["seed"])


def common_seeds(methods: Mapping[str, Any]) -> list[int]:
    """Those of every method."""
    seeds = [{run["seed"] for run in method["runs"]} for method in methods.values()]
    return sorted(set.intersection(*seeds)) if seeds else []


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--command", help="what trained them; default: what stands there")
    parser.add_argument("--hardware", help="on what; default: what stands there")
    given = parser.parse_args(arguments)
    results = {"command": "", "hardware": "", "seeds": [], "methods": {}}
    if given.results.exists():
        results = json.loads(given.results.read_text())
    for key in ("command", "hardware"):
        results[key] = getattr(given, key) or results[key]
        if not results[key]:
            parser.error(f"expected --{key}: {given.results} is new")
    for folder in given.runs:
        add(results, folder)
    results["seeds"] = common_seeds(results["methods"])
    given.results.write_text(json.dumps(results, indent=1) + "\n")
    counts = ", ".join(f"{name} {len(m['runs'])}" for name, m in results["methods"].items())
    print(f"{given.results}: seeds of all {results['seeds']}; runs: {counts}")


if __name__ == "__main__":
    main()
