"""What training with each regularizer does to the measures of all others.

python packages/uniformity/benchmarks/matrix.py RUNS --output FOLDER

RUNS is the output of ``mhe-classification compare --regularizers all --seeds 0,1,2``. Each measure
is a regularizer's value on the hidden layers of a run's final network, mean over layers, lower
where the neurons are spread better. Of a method it is shown how much of the way it goes from the
networks trained with ``none`` to those of the method that lowers the measure most, in percent.
"""

import argparse
import json
from pathlib import Path

import mhe_classification
import torch
from mhe_core import NetworkRegularizer
from mhe_core.plotting import drawing
from mhe_core.training.compare import paired_difference, spread
from mhe_core.training.files import write_atomically

BASELINE = "none"
# Those whose value is a function of the neurons alone; hug's is mhe's.
MEASURES = {
    "mhe": {},
    "half_mhe": {},
    "mhs": {},
    "mma": {},
    "regularface": {},
    "uniformface": {},
    "koleo": {},
    "uniformity": {},
    "rmhp": {},
    "mgd": {},
    "so": {},
    "dso": {},
    "mc": {},
    "srip": {"variant": "exact"},
}


def measured(run):
    """Each measure of a run's final network."""
    network = mhe_classification.load(run, "last").network
    found = {}
    for name, options in MEASURES.items():
        regularizer = NetworkRegularizer(network, name, None, hidden_options=options)
        with torch.no_grad():
            found[name] = torch.stack(list(regularizer.terms().values())).mean().item()
    return found


def matrix(runs):
    """For each method and measure: mean and spread, paired difference from none, and share."""
    seeds = sorted(path.name for path in (runs / BASELINE).glob("seed*"))
    methods = sorted(path.parents[1].name for path in runs.glob(f"*/{seeds[0]}/summary.json"))
    values = {}
    for method in [BASELINE, *(name for name in methods if name != BASELINE)]:
        complete = [s for s in seeds if (runs / method / s / "summary.json").exists()]
        values[method] = {seed: measured(runs / method / seed) for seed in complete}
        print(f"{method}: {', '.join(complete)}", flush=True)
    rows = {method: {} for method in values}
    for name in MEASURES:
        for method, found in values.items():
            ours = [found[seed][name] for seed in found]
            theirs = [values[BASELINE][seed][name] for seed in found]
            difference = paired_difference(ours, theirs)
            rows[method][name] = {**spread(ours), "difference": difference, "seeds": list(found)}
        furthest = min(row[name]["difference"]["mean"] for row in rows.values())
        for row in rows.values():
            way = row[name]["difference"]["mean"]
            row[name]["share"] = way / furthest if furthest < 0 else 0.0
    return rows


def as_table(rows):
    """The shares in percent, as Markdown; in bold where the 95 % interval excludes no change."""
    lines = [f"| trained with | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for method, row in rows.items():
        lines.append(f"| {method} | {' | '.join(cell(figures) for figures in row.values())} |")
    return "\n".join(lines) + "\n"


def cell(figures):
    """One share."""
    difference = figures["difference"]
    text = str(round(100 * figures["share"]))
    sure = difference["low"] > 0 or difference["high"] < 0
    return f"**{text}**" if sure else text


def plot(rows, file):
    """The shares as a picture: methods down, measures across."""
    shares = [[100 * figures["share"] for figures in row.values()] for row in rows.values()]
    with drawing(file, 8.5, 0.34 * len(rows) + 1.4) as figure:
        axis = figure.subplots()
        image = axis.imshow(shares, cmap="RdBu", vmin=-100, vmax=100, aspect="auto")
        axis.grid(False)
        axis.set_xticks(range(len(MEASURES)), MEASURES, rotation=45, ha="right")
        axis.set_yticks(range(len(rows)), rows)
        axis.set_xlabel("measure on the final network")
        axis.set_ylabel("trained with")
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                color = "white" if abs(share) > 60 else "black"
                label = str(round(share)) if abs(share) < 1000 else f"{share:.0e}"
                axis.text(x, y, label, ha="center", va="center", color=color, fontsize=7)
        figure.colorbar(image, label="% of the best method's way", shrink=0.6)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = matrix(arguments.runs)
    table = as_table(rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output / "matrix.md", table)
    write_atomically(arguments.output / "matrix.json", json.dumps(rows, indent=1) + "\n")
    plot(rows, arguments.output / "matrix.png")
    print(f"\n{table}\nPicture: {arguments.output / 'matrix.png'}")


if __name__ == "__main__":
    main()
