"""A comparison's table and curves are the runs' own figures."""

import json

import mhe_classification.compare
import pytest
from matplotlib.figure import Figure
from mhe_classification.compare import CompareConfig, compare
from support.wiring import count_calls


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The folder of a small comparison, and the pictures that were drawn, by file name."""
    output = tmp_path_factory.mktemp("compare")
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, file, **_: drawn.update({file.name: self}))
        loaded = count_calls(patch, mhe_classification.compare, "load_splits")
        tiny = {
            "width": 0.0625,
            "image_size": 8,
            "batch_size": 32,
            "device": "cpu",
            "steps": 2,
            "ema": 0.9,
        }
        tiny |= {"ema": 0.9, "eval_every": 1, "seeds": "0,1", "regularizers": "none,mhe-core:mhe"}
        compare(CompareConfig(output=output, **tiny))
        assert len(loaded) == 1  # the images of four runs
    return output, drawn


def errors_by_step(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["test_error"] for line in lines if "test_error" in line}


def summaries(output, method):
    files = sorted(output.glob(f"{method}/seed*/summary.json"))
    assert len(files) == 2
    return [json.loads(file.read_text()) for file in files]


def test_the_table_has_the_means_of_the_runs(comparison):
    output, _ = comparison
    heading, _, *rows = (output / "table.md").read_text().splitlines()
    titles = heading.strip("| ").split(" | ")
    cells = {row.strip("| ").split(" | ")[0]: row.strip("| ").split(" | ") for row in rows[:2]}
    errors = {}
    for method in ("none", "mhe-core:mhe"):
        runs = summaries(output, method)
        for key, title, scale, digits in (
            ("test_error", "test error, %", 100, 2),
            ("hidden_energy", "hidden energy", 1, 4),
        ):
            mean = sum(run[key] for run in runs) / 2 * scale
            shown = cells[method][titles.index(title)].split(" ± ")[0]
            assert float(shown) == pytest.approx(mean, abs=0.51 * 10**-digits)
        errors[method] = [100 * run["test_error"] for run in runs]
    difference = sum(errors["mhe-core:mhe"]) / 2 - sum(errors["none"]) / 2
    assert float(cells["mhe-core:mhe"][-1].split(" (")[0]) == pytest.approx(difference, abs=0.006)


def test_the_curves_are_the_runs_errors(comparison):
    output, drawn = comparison
    (panel, *_) = drawn["curves.png"].axes
    lines = {line.get_label(): line for line in panel.lines}
    assert set(lines) == {"none", "mhe-core:mhe"}
    for method, line in lines.items():
        first, second = (errors_by_step(output / method / f"seed{seed}") for seed in (0, 1))
        assert list(line.get_xdata()) == list(first) == [1, 2]
        expected = [50 * (first[step] + second[step]) for step in first]
        assert list(line.get_ydata()) == pytest.approx(expected)


def test_the_angles_are_drawn_before_and_after(comparison):
    _, drawn = comparison
    for axis in drawn["angles.png"].axes:
        histograms = {patch.get_label(): patch.get_data().values for patch in axis.patches}
        assert set(histograms) == {"before training", "none", "mhe-core:mhe"}
        for values in histograms.values():
            assert values.sum() * 2 == pytest.approx(1, abs=1e-6)  # bins of two degrees
