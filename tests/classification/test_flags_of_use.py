"""Every flag of test, predict and export changes what comes of it, or is known not to."""

import contextlib
import io
import shutil

import pytest
from mhe_classification.config import ClassificationConfig
from mhe_classification.export import ExportConfig, export
from mhe_classification.predict import PredictConfig
from mhe_classification.predict import main as predict
from mhe_classification.test import TestConfig
from mhe_classification.test import test as evaluate
from mhe_classification.train import train
from safetensors.torch import load_file
from support.images import noise_folder
from support.wiring import (
    USE,
    Changes,
    Same,
    check_flag,
    check_no_entry_is_left_over,
    figures,
    flags,
)

TINY = {"width": 0.0625, "image_size": 8, "batch_size": 16, "steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs; the first has a checkpoint of the second's."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(ClassificationConfig(output=folder / str(seed), seed=seed, lr=0.02, **TINY))
    shutil.copy(folder / "1/checkpoints/last", folder / "0/checkpoints/other")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of noise, as if of the digits 0, 1 and 2."""
    folder = noise_folder(tmp_path_factory.mktemp("noise"), size=8)
    for number, name in enumerate("abc"):
        (folder / "test" / name).rename(folder / "test" / str(number))
    return folder / "test"


def entries_of_test(runs, images):
    return USE | {
        "run": Changes(runs / "1", what="figures"),
        "batch_size": Same("how many images at a time", 100),
        "data": Changes(str(images), what="figures"),
        "data_dir": Same("digits are not read from there", "elsewhere"),
    }


@pytest.mark.parametrize("name", flags(TestConfig))
def test_every_flag_of_test(name, runs, images):
    entries = {k: v for k, v in entries_of_test(runs, images).items() if k in flags(TestConfig)}

    def outcome(settings):
        return figures(evaluate(TestConfig(**settings)), without=("checkpoint", "'data'"))

    check_flag(TestConfig, name, entries, outcome, {"run": runs / "0", "device": "cpu"})
    check_no_entry_is_left_over(TestConfig, entries)


@pytest.mark.parametrize("name", flags(PredictConfig))
def test_every_flag_of_predict(name, runs, images):
    one, other = ([str(file) for file in sorted((images / i).iterdir())[:2]] for i in "01")
    entries = {
        "run": Changes(runs / "1", what="figures"),
        "images": Changes(other, what="figures"),
        "checkpoint": USE["checkpoint"],
        "top": Changes(3, what="figures"),
        "json": Changes(True, what="figures"),
        "batch_size": Same("how many images at a time", 1),
        "device": USE["device"],
    }

    def outcome(settings):
        given = dict(settings)
        arguments = [str(given.pop("run")), *given.pop("images")]
        for key, value in given.items():
            flag = "--" + key.replace("_", "-")
            arguments += [flag] if value is True else [flag, str(value)]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            predict(arguments)
        return figures({"printed": printed.getvalue()})

    base = {"run": runs / "0", "images": one, "device": "cpu"}
    check_flag(PredictConfig, name, entries, outcome, base)
    check_no_entry_is_left_over(PredictConfig, entries)


@pytest.mark.parametrize("name", flags(ExportConfig))
def test_every_flag_of_export(name, runs, tmp_path):
    entries = {
        "run": Changes(runs / "1", what="figures"),
        "format": Same("each is written and read in test_use.py"),
        "output": USE["output"],
        "checkpoint": USE["checkpoint"],
    }

    def outcome(settings):
        export(ExportConfig(**settings))
        return figures(load_file(settings["output"]))

    base = {"run": runs / "0", "format": "safetensors", "output": tmp_path / "model.safetensors"}
    check_flag(ExportConfig, name, entries, outcome, base)
    check_no_entry_is_left_over(ExportConfig, entries)
