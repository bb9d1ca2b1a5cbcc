"""Every flag of sample, test and score changes what comes of it, or is known not to."""

import json
import shutil

import mhe_gan.compare
import mhe_gan.test
import numpy as np
import pytest
from mhe_core.errors import UserError
from mhe_gan.compare import CompareConfig, compare, score_panel
from mhe_gan.config import GANConfig, ScoreConfig
from mhe_gan.data import load_split
from mhe_gan.sample import SampleConfig, sample
from mhe_gan.score import ScoreCommandConfig, score
from mhe_gan.test import TestConfig
from mhe_gan.test import test as score_run
from mhe_gan.train import train
from PIL import Image
from support.wiring import (
    USE,
    Changes,
    Same,
    check_flag,
    check_no_entry_is_left_over,
    count_calls,
    figures,
    flags,
)

TINY = {"width": 0.0625, "batch_size": 8, "steps": 2, "lr": 0.02, "ema": 0.05, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs with a moving average; the first has a checkpoint of the second's."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(GANConfig(output=folder / str(seed), **TINY, seed=seed))
    train(GANConfig(output=folder / "conditional", **TINY, conditional=True))
    shutil.copy(folder / "1/checkpoints/last", folder / "0/checkpoints/other")
    return folder


known = {}


def check(config_class, name, entries, outcome, base):
    """The flag's entry, and that there is none too many; nothing is computed twice."""

    def remembered(settings):
        key = config_class, repr(sorted(settings.items()))
        if key not in known:
            known[key] = outcome(settings)
        return known[key]

    check_flag(config_class, name, entries, remembered, base)
    check_no_entry_is_left_over(config_class, entries)


@pytest.mark.parametrize("name", flags(SampleConfig))
def test_every_flag_of_sample(name, runs):
    entries = {
        "run": Changes(runs / "1", what="figures"),
        "output": USE["output"],
        "num": Changes(5, what="figures"),
        "seed": Changes(1, what="figures"),
        "interpolate": Changes(2, what="figures"),
        "class_": Changes("3", "5", given={"run": runs / "conditional"}, what="figures"),
        "checkpoint": USE["checkpoint"],
        "average": Changes(False, what="figures"),
        "batch_size": USE["batch_size"],
        "device": USE["device"],
    }

    def outcome(settings):
        sample(SampleConfig(**settings))
        with Image.open(settings["output"]) as grid:
            return {"figures": {"pixels": np.asarray(grid).tolist()}}

    base = {"run": runs / "0", "output": runs / "grid.png", "num": 4}
    check(SampleConfig, name, entries, outcome, base)


def test_images_made_a_few_at_a_time_are_the_same_images(runs, tmp_path):
    grids = []
    for batch_size in (4, 3, 1):
        config = SampleConfig(
            run=runs / "0", output=tmp_path / "grid.png", num=4, batch_size=batch_size, device="cpu"
        )
        sample(config)
        with Image.open(config.output) as grid:
            grids.append(np.asarray(grid).astype(int))
    assert np.ptp(grids[0]) > 100
    for grid in grids[1:]:  # rounding may take a value to the next of 256
        assert np.abs(grid - grids[0]).max() <= 1


@pytest.mark.parametrize("name", flags(TestConfig))
def test_every_flag_of_test(name, runs, classifiers):
    entries = {
        "run": Changes(runs / "1", what="figures"),
        "seed": Changes(1, what="figures"),
        "average": Changes(False, what="figures"),
        "num_samples": Changes(30, what="figures"),
        "feature_extractor": Changes(classifiers[1], what="figures"),
        "weights": Same("those of Inception, which no test downloads"),
        "reference": Changes(what="figures"),
        "device": USE["device"],
    }

    def outcome(settings):
        report = score_run(TestConfig(**settings))
        return figures([report["final"], report["real_inception_score"]])

    base = {"run": runs / "0", "num_samples": 20, "feature_extractor": classifiers[0]}
    check(TestConfig, name, entries, outcome, {**base, "device": "cpu"})


def test_a_run_with_scores_reads_its_images_once(classifiers, tmp_path, monkeypatch):
    elsewhere = count_calls(monkeypatch, mhe_gan.test, "load_split")
    scored = {"score_every": 2, "num_samples": 20, "feature_extractor": classifiers[0]}
    read = []

    def load(config):
        read.append(config)
        return load_split(config)

    train(GANConfig(output=tmp_path, **TINY, **scored), load=load)
    assert (len(read), len(elsewhere)) == (1, 0)


@pytest.mark.parametrize("name", flags(ScoreConfig))
def test_every_scoring_flag_of_compare(name, classifiers, tmp_path_factory, monkeypatch):
    loaded = count_calls(monkeypatch, mhe_gan.compare, "load_split")
    elsewhere = count_calls(monkeypatch, mhe_gan.test, "load_split")
    entries = {
        "num_samples": Changes(30, what="figures"),
        "feature_extractor": Changes(classifiers[1], what="figures"),
        "weights": Same("those of Inception, which no test downloads"),
        "reference": Changes("test", what="figures"),
    }

    def outcome(settings):
        output = tmp_path_factory.mktemp("compare")
        loaded.clear()
        elsewhere.clear()
        compare(CompareConfig(output=output, models="sn", seeds="0", **settings))
        assert len(loaded) == 1
        assert len(elsewhere) == (settings.get("reference") == "test")
        report = json.loads((output / "sn/seed0/test.json").read_text())
        assert f"{report['final']['fid']:.2f}" in (output / "table.md").read_text()
        return figures([report["final"], report["real_inception_score"]])

    base = {**TINY, "steps": 1, "num_samples": 20, "feature_extractor": classifiers[0]}
    check(CompareConfig, name, entries, outcome, base)


def test_compare_at_several_weights(classifiers, tmp_path, monkeypatch):
    drawn = count_calls(monkeypatch, mhe_gan.compare, "plot_against")
    settings = {**TINY, "steps": 1, "num_samples": 20, "feature_extractor": classifiers[0]}
    settings |= {"models": "sn,mhe+sn", "seeds": "0", "hidden_weights": "0.001,10"}
    table = compare(CompareConfig(output=tmp_path, **settings))
    labels = ["sn", "mhe+sn, weight 0.001", "mhe+sn, weight 10"]
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == [f"| {x}" for x in labels]
    assert (tmp_path / "weights.png").stat().st_size > 5_000
    _, runs, panels, _ = drawn[0]
    assert [panel.key for panel in panels] == ["fid", "discriminator_above_floor"]
    assert {label: list(at) for label, at in runs.items()} == {"sn": [None], "mhe+sn": [0.001, 10]}
    for at, label in ((0.001, labels[1]), (10, labels[2])):
        report = json.loads((tmp_path / label / "seed0/test.json").read_text())
        assert runs["mhe+sn"][at][0]["fid"] == report["final"]["fid"]
    assert score_panel(CompareConfig(score_every=1, best_by="coverage")).key == "coverage"


@pytest.mark.parametrize("name", flags(ScoreCommandConfig))
def test_every_flag_of_score(name, classifiers, tmp_path):
    for seed, count in ((0, 100), (1, 100), (2, 100), (3, 110)):
        noise = np.random.default_rng(seed).integers(0, 256 - 30 * seed, (count, 8, 8, 3))
        np.savez(tmp_path / f"{seed}.npz", noise.astype(np.uint8))
    files = [str(tmp_path / f"{seed}.npz") for seed in range(4)]
    entries = {
        "images": Changes(files[2], what="figures"),
        "reference": Changes(files[2], what="figures"),
        "metrics": Changes("fid", what="figures"),
        "feature_extractor": Changes(classifiers[1], what="figures"),
        "weights": Same("those of Inception, which no test downloads"),
        "num_samples": Changes(20, what="figures"),
        "unequal": Changes(True, given={"reference": files[3]}, what="figures"),
        "unbiased": Changes(True, what="figures"),
        "resamples": Changes(3, what="figures"),
        "seed": Changes(1, what="figures"),
        "save_statistics": Changes(tmp_path / "saved.npz", what="files"),
        "json": Same("how it is printed: see test_score.py"),
        "batch_size": USE["batch_size"],
        "device": USE["device"],
    }

    def outcome(settings):
        try:
            report = score(ScoreCommandConfig(**settings)).flat()
        except UserError as error:
            report = {"error": type(error).__name__}
        saved = (tmp_path / "saved.npz").exists()
        return {**figures(report, without=("extractor", "notes")), "files": {"saved": saved}}

    base = {"images": files[0], "reference": files[1], "metrics": "fid,kid", "resamples": 2}
    base |= {"feature_extractor": classifiers[0], "device": "cpu"}
    check(ScoreCommandConfig, name, entries, outcome, base)


def test_too_few_images_to_extrapolate_from_are_a_users_error(classifiers, tmp_path):
    np.savez(tmp_path / "few.npz", np.zeros((12, 8, 8, 3), dtype=np.uint8))
    few = str(tmp_path / "few.npz")
    settings = {"images": few, "reference": few, "feature_extractor": classifiers[0]}
    with pytest.raises(UserError, match="at least 100 images to extrapolate from, got 12"):
        score(ScoreCommandConfig(**settings, metrics="kid", unbiased=True, device="cpu"))
