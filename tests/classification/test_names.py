"""Regularizers' names: the long form means the same, and a third party's clash stops nobody."""

import pytest
from mhe_classification.compare import CompareConfig, method_config
from mhe_classification.config import ClassificationConfig
from mhe_classification.train import train


@pytest.mark.parametrize("regularizer", ["none", "mhe-core:half_mhe", "in-process:half_mhe"])
def test_a_plug_in_of_the_same_name_breaks_no_run(tmp_path, clash, regularizer):
    tiny = {"width": 0.0625, "image_size": 8, "batch_size": 32, "device": "cpu", "steps": 1}
    summary = train(ClassificationConfig(output=tmp_path / "run", regularizer=regularizer, **tiny))
    assert 0 < summary["hidden_energy"] < 100
    assert (summary["penalty"] > 0) == (regularizer != "none")


def test_compare_means_cores_regularizers_unless_told_otherwise(clash):
    config = CompareConfig()
    assert config.regularizers == "none,mhe-core:mhe,mhe-core:half_mhe"
    for name in config.regularizers.split(","):
        assert method_config(config, name).regularizer == name


def test_the_long_form_of_a_name_gets_the_same_settings(tmp_path):
    for recipe in ("stable", "released"):
        for name in ("mhe", "comhe_random", "comhe_adversarial"):
            short, long = (
                ClassificationConfig(output=tmp_path, recipe=recipe, regularizer=spelled)
                for spelled in (name, f"mhe-core:{name}")
            )
            assert short.hidden_options() == long.hidden_options()
            assert (short.steps, short.milestones) == (long.steps, long.milestones)
    flagged = ClassificationConfig(
        output=tmp_path, regularizer="mhe-core:comhe_random", num_projections=3
    )
    flagged.check_hyperparameters()
    assert flagged.hidden_options() == {"num_projections": 3}


def test_a_third_partys_comhe_gets_nothing_of_ours(tmp_path):
    other = ClassificationConfig(output=tmp_path, recipe="released", regularizer="comhe_anything")
    assert other.steps == 42_500
    theirs = ClassificationConfig(
        output=tmp_path, regularizer="elsewhere:comhe_random", num_projections=3
    )
    with pytest.raises(ValueError, match="has no --num-projections"):
        theirs.check_hyperparameters()
    assert theirs.hidden_options() == {}
