"""What compare trains: which regularizers, at which weights."""

import pytest
import torch
from mhe_classification.compare import CompareConfig, method_config
from mhe_classification.train import build_regularizer
from mhe_core import list_regularizers, register_regularizer
from mhe_core.training.published import all_regularizers, published_settings
from torch import nn


class Published(nn.Module):
    published_weight = 0.3
    published_output_weight = 0.7
    published_output_options = {"power": 3}  # noqa: RUF012

    def __init__(self, num_neurons, dim, power=2):
        super().__init__()
        self.power = power

    def forward(self, neurons):
        return neurons.square().sum()


@pytest.fixture(autouse=True)
def _registered():
    register_regularizer("published_here", Published)


def weights(config):
    return config.hidden_weight, config.output_weight, config.output_regularizer


def test_each_method_has_its_published_weights():
    config = CompareConfig(regularizers="none,half_mhe,published_here")
    assert weights(method_config(config, "none")) == (1.0, 10.0, "mhe-core:mhe")
    assert weights(method_config(config, "half_mhe")) == (1.0, 10.0, "mhe-core:mhe")
    own = method_config(config, "published_here")
    assert weights(own) == (0.3, 0.7, "published_here")
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    regularizer = build_regularizer(own, model)
    assert [r.power for r in regularizer.regularizers.values()] in ([2, 3], [3, 2])
    expected = 0.3 * model[0].weight.square().sum() + 0.7 * model[1].weight.square().sum()
    torch.testing.assert_close(regularizer(), expected)


def test_given_weights_are_those_of_all_methods():
    config = CompareConfig(hidden_weight=0.5, output_weight=2.0)
    assert weights(method_config(config, "published_here")) == (0.5, 2.0, "published_here")
    config = CompareConfig(output_regularizer="mhe")
    assert weights(method_config(config, "published_here")) == (0.3, 10.0, "mhe")
    assert method_config(config, "published_here").output_options == {}


def test_all_are_all_that_are_installed():
    names = all_regularizers()
    assert set(names) == {info.name for info in list_regularizers()}
    assert {"half_mhe", "koleo", "published_here"} <= set(names)


def test_a_name_that_two_claim_is_spelled_with_its_distribution():
    register_regularizer("mhe", Published)
    try:
        assert {"mhe-core:mhe", "in-process:mhe"} <= set(all_regularizers())
    finally:
        from mhe_core import registry

        del registry._registered["mhe"]


def test_what_is_published_is_said_by_the_regularizer():
    assert published_settings("none") == published_settings("so") == {}
    assert published_settings("mhs") == {
        "hidden_weight": 0.1,
        "output_weight": 1.0,
        "output_regularizer": "mhs",
        "output_options": {"half_space": False},
    }
