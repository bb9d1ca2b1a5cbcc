"""What the pictures of several runs show."""

import math
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure
from mhe_core.errors import UserError
from mhe_core.training import plots
from mhe_core.training.compare import positive_numbers
from mhe_core.training.plots import Panel, plot_against


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was drawn last."""
    figures = []

    @contextmanager
    def drawing(path, width, height):
        figures.append(Figure(figsize=(width, height)))
        yield figures[-1]

    monkeypatch.setattr(plots, "drawing", drawing)
    return figures


def test_figures_against_a_setting(drawn, tmp_path):
    of_two = {
        0.1: [{"error": 0.4, "energy": 2.0}, {"error": 0.2, "energy": 4.0}],
        0.001: [{"error": 0.3, "energy": 1.0}, {"seed": 1, "diverged": "why"}],
    }
    without = {None: [{"error": 0.5, "energy": 8.0}, {"error": 0.7, "energy": 8.0}]}
    panels = [Panel("error", "error, %", scale=100), Panel("energy", "energy", log=True)]
    plot_against("weight", {"with": of_two, "without": without}, panels, tmp_path / "it.png")
    errors, energies = drawn[-1].axes
    assert (errors.get_xscale(), errors.get_xlabel()) == ("log", "weight")
    assert [axis.get_ylabel() for axis in drawn[-1].axes] == ["error, %", "energy"]
    assert [axis.get_yscale() for axis in drawn[-1].axes] == ["linear", "log"]
    assert errors.get_xticks().tolist() == [0.001, 0.1]
    lines = {line.get_label(): line for line in errors.get_lines()}
    assert lines["without"].get_ydata() == pytest.approx([60, 60])
    assert lines["without"].get_xdata() == [0, 1]  # of the axis: from one side to the other
    assert lines["with"].get_xdata().tolist() == [0.1, 0.001]
    found = lines["with"].get_ydata()
    assert found[0] == pytest.approx(30)
    assert math.isnan(found[1])  # one of its runs diverged
    assert lines["with"].get_color() != lines["without"].get_color()
    dots = [line.get_ydata().tolist() for line in energies.get_lines() if line.get_marker() == "."]
    assert dots[0] == [2, 4]
    assert [text.get_text() for text in errors.get_legend().get_texts()] == ["with", "without"]


def test_numbers_with_commas_between():
    assert positive_numbers("1e-3, 10", "--lrs") == [0.001, 10]


@pytest.mark.parametrize("text", ["", "1,a", "1,,2", "1,1", "1e-3,0.001", "0,1", "-1", "nan"])
def test_what_is_no_list_of_positive_numbers(text):
    with pytest.raises(UserError, match=r"expected (--lrs as )?different .*numbers with commas"):
        positive_numbers(text, "--lrs")
