"""Every flag of mhe-classification changes what is written, or is known not to."""

import pytest
from mhe_classification import compare as compare_command
from mhe_classification.config import ClassificationConfig
from mhe_classification.test import TestConfig
from mhe_classification.test import test as evaluate
from mhe_classification.train import train
from support.images import noise_folder
from support.wiring import (
    SHARED,
    Changes,
    Same,
    check_all_reach_the_runs,
    check_flag,
    check_no_entry_is_left_over,
    differing,
    flags,
    planning,
    written,
)

BASE = {"width": 0.0625, "image_size": 8, "batch_size": 16, "steps": 2, "log_every": 1}
BASE |= {"eval_every": 2, "checkpoint_every": 2, "warmup": 0.0, "lr": 0.02, "device": "cpu"}
MHE = {"regularizer": "mhe"}
RANDOM = {"regularizer": "comhe_random", "projection_dim": 4, "num_projections": 3}


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    folder = noise_folder(tmp_path_factory.mktemp("noise"), size=8)
    first = tmp_path_factory.mktemp("first")
    train(ClassificationConfig(output=first, **{**BASE, "seed": 1}))
    return SHARED | {
        "data": Changes(str(folder)),
        "model": Changes("resnet20"),
        "regularizer": Changes("mhe", "half_mhe"),
        "regularizer_options": Changes({"s": 1.0}, given=MHE),
        "rules": Changes({"*": {"weight": 0.5}}, given=MHE),
        "hidden_weight": Changes(7.0, given=MHE),
        "output_weight": Changes(3.0, given=MHE),
        "output_options": Changes({"s": 1.0}, given=MHE),
        "init": Changes(first),
        "pretrained": Same("downloads; see test_start.py"),
        "model_options": Changes({"bn_momentum": 0.3}),
        "drop_path": Changes(0.5, given={"model": "test_convnext", "width": 1.0, "image_size": 32}),
        "normalization": Changes(
            "model", given={"model": "test_resnet", "width": 1.0, "image_size": 32}
        ),
        "grad_checkpointing": Same("the same gradient, but for rounding: less memory"),
        "channels_last": Same("the same gradient, but for rounding: another memory format"),
        "cutmix": Changes(0.5),
        "random_erasing": Changes(1.0),
        "decay_norm_bias": Changes(False, given={"weight_decay": 0.1}),
        "image_size": Changes(16),
        "validation_fraction": Changes(0.2),
        "recipe": Changes("fast", "released", given={"warmup": None, "lr": None}),
        "loss": Changes("released"),
        "label_smoothing": Changes(0.1),
        "mixup": Changes(0.5),
        "schedule": Changes("multistep"),
        "milestones": Changes([1], given={"schedule": "multistep"}),
        "warmup": Changes(0.9),
        "bn_momentum": Changes(0.5),
        "ema": Changes(0.9, given={"steps": 4}, what="records"),
        "accumulate": Changes(2),
        "power_s": Changes("0", "1", "a0", "a1", "a2", given=MHE),
        "convention": Changes("released_code", given=MHE),
        "output_regularizer": Changes("none", "half_mhe", given=MHE),
        "projection_dim": Changes(3, given=RANDOM),
        "num_projections": Changes(2, given=RANDOM),
        "redraw_interval": Changes(1, given={**RANDOM, "redraw_interval": 9}),
        "inner_steps": Changes(
            2, given={"regularizer": "comhe_adversarial", "projection_dim": 4, "inner_steps": 1}
        ),
        "num_groups": Changes(2, given={"regularizer": "comhe_group", "num_groups": 1}),
        "group_dim": Changes(2, given={"regularizer": "comhe_group", "group_dim": 3}),
    }


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What a run with such settings writes; each is trained once."""
    known = {}

    def run(settings):
        key = repr(sorted(settings.items()))
        if key not in known:
            output = tmp_path_factory.mktemp("run")
            train(ClassificationConfig(output=output, **settings))
            known[key] = written(output)
        return known[key]

    return run


def test_two_runs_with_the_same_settings_write_the_same(tmp_path, outcome):
    train(ClassificationConfig(output=tmp_path, **BASE))
    for part, content in written(tmp_path).items():
        assert differing(content, outcome(BASE)[part]) == []


@pytest.mark.parametrize("name", flags(ClassificationConfig))
def test_every_flag_of_train(name, entries, outcome):
    check_flag(ClassificationConfig, name, entries, outcome, BASE)


def test_compiled_steps_are_the_same_steps(tmp_path, outcome, traced_graphs):
    settings = {**BASE, **MHE, "ema": 0.9}
    compiled = {**settings, "compile": True, "output": tmp_path}
    train(ClassificationConfig(**{**compiled, "steps": 1}))
    train(ClassificationConfig(**compiled, resume=True))
    assert traced_graphs["VGG9"] > 0
    assert differing(written(tmp_path)["weights"], outcome(settings)["weights"]) == []
    tested = evaluate(TestConfig(run=tmp_path, device="cpu"))
    assert tested["test_error"] == written(tmp_path)["summary"]["test_error"]


def test_no_entry_is_left_over(entries):
    check_no_entry_is_left_over(ClassificationConfig, entries)


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """The runs that compare would start with such settings: methods and seeds."""
    return planning(monkeypatch, compare_command, tmp_path)


def test_flags_of_train_reach_every_run_of_compare(entries, planned):
    own = {"output", "regularizer", "seed", "resume"}
    check_all_reach_the_runs(
        ClassificationConfig,
        entries,
        lambda settings: planned({k: v for k, v in settings.items() if k not in own})[0].values(),
        own,
    )


def test_flags_of_compare(planned):
    methods, seeds = planned({"regularizers": "none,half_mhe", "seeds": "3,5"})
    assert [config.regularizer for config in methods.values()] == ["none", "half_mhe"]
    assert seeds == [3, 5]
