"""Recipes: the published loss and schedule against plain loops."""

import math

import pytest
import torch
from mhe_classification.config import ClassificationConfig
from mhe_classification.recipes import loss_function
from mhe_classification.train import build_regularizer
from mhe_core import hyperspherical_energy
from mhe_core.errors import UserError


def test_the_released_loss_is_its_formula():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, dtype=torch.float64), [1, 0, 4, 4]
    expected = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        total = sum(math.exp(x) for x in row)
        for c, x in enumerate(row):
            y = (0.99 if c == label else 0.0) + 0.01 / 5
            expected -= y * math.log(math.exp(x) / total + 1e-4) / 4
    found = loss_function("released", 0.01)(logits, torch.tensor(labels))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_recipe_fills_what_is_not_given(tmp_path):
    stable = ClassificationConfig(output=tmp_path)
    assert (stable.loss, stable.schedule, stable.epochs) == ("cross_entropy", "cosine", 30)
    assert (stable.optimizer, stable.ema) == ("momentum", 0.0)
    fast = ClassificationConfig(output=tmp_path, recipe="fast")
    assert (fast.loss, fast.optimizer, fast.lr, fast.ema) == ("cross_entropy", "sgd", 0.1, 0.998)
    assert (fast.label_smoothing, fast.warmup, fast.schedule) == (0.1, 0.2, "cosine")
    own = ClassificationConfig(output=tmp_path, recipe="fast", optimizer="adamw", ema=0.0)
    assert (own.optimizer, own.ema) == ("adamw", 0.0)
    released = ClassificationConfig(output=tmp_path, recipe="released", regularizer="half_mhe")
    assert (released.loss, released.lr, released.steps) == ("released", 0.1, 42_500)
    assert released.milestones == [20_000, 30_000, 37_500]
    assert released.energy_options("half_mhe") == {"convention": "released_code"}
    comhe = ClassificationConfig(output=tmp_path, recipe="released", regularizer="comhe_random")
    assert (comhe.steps, comhe.milestones) == (75_000, [30_000, 50_000, 65_000])
    assert comhe.hidden_options()["projection_dim"] == 40
    own = ClassificationConfig(output=tmp_path, recipe="released", lr=0.3, steps=10)
    assert (own.lr, own.steps, own.warmup) == (0.3, 10, 0.0)


@pytest.mark.parametrize(
    ("power", "options"),
    [("0", (0.0, "euclidean")), ("2", (2.0, "euclidean")), ("a1", (1.0, "angular"))],
)
def test_power_s_is_s_and_distance(tmp_path, power, options):
    config = ClassificationConfig(output=tmp_path, power_s=power)
    assert tuple(config.energy_options("mhe").values()) == options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.2, "loss": "released"}, "--mixup"),
        ({"accumulate": 200}, "--accumulate"),
        ({"warmup": 1.5}, "--warmup"),
        ({"validation_fraction": -0.1}, "--validation-fraction"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ClassificationConfig(output=tmp_path, **changes)


def test_a_hyperparameter_of_another_regularizer_is_refused(tmp_path):
    config = ClassificationConfig(output=tmp_path, regularizer="mhe", num_projections=3)
    with pytest.raises(ValueError, match="has no --num-projections"):
        config.check_hyperparameters()


def test_the_released_constants_are_for_regularizers_that_have_them(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    config = ClassificationConfig(output=tmp_path, recipe="released", regularizer="so")
    assert config.hidden_options() == {}
    regularizer = build_regularizer(config, model)
    first, output = regularizer.terms().values()
    weights = [layer.weight.detach() for layer in model]
    torch.testing.assert_close(
        first, (weights[0] @ weights[0].T - torch.eye(5)).square().sum(), check_dtype=False
    )
    torch.testing.assert_close(
        output, hyperspherical_energy(weights[1], convention="released_code")
    )
    asked = ClassificationConfig(output=tmp_path, regularizer="so", convention="released_code")
    with pytest.raises(UserError, match=r"'so' .*unexpected keyword argument 'convention'"):
        build_regularizer(asked, model)
