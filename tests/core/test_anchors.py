"""Anchors of a network's layers with many neurons: unbiased, a function of the step, resumed."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from mhe_core import NetworkRegularizer, register_regularizer
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend


class Plain(nn.Module):
    """A third party's, which takes no anchors."""

    def __init__(self, num_neurons: int, dim: int) -> None:
        super().__init__()

    def forward(self, neurons: torch.Tensor) -> torch.Tensor:
        return neurons.square().mean()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 7)).double()


def regularizer_of(model: nn.Module, kind: str = "half_mhe", **options: object):
    hyperparameters = {"projection_dim": 3, "seed": 0} if kind == "comhe_random" else {}
    return NetworkRegularizer(
        model, hidden="mhe", output=kind, output_options=hyperparameters, **options
    )


@pytest.mark.parametrize("kind", ["mhe", "half_mhe", "comhe_random"])
def test_the_mean_over_all_draws_is_the_energy_of_all_and_its_gradient(kind):
    model = network()
    exact = regularizer_of(model, kind, clip_factor=None)
    expected = torch.autograd.grad(exact(), model[1].weight)[0]
    drawing = regularizer_of(model, kind, anchors=4, clip_factor=None)
    draws = list(combinations(range(7), 4))
    values, gradients = [], []
    for draw in draws:
        drawing._anchors.of("1").copy_(torch.tensor(draw))
        value = drawing()
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, model[1].weight)[0])
    assert len({round(float(value), 9) for value in values}) > 1
    torch.testing.assert_close(torch.stack(values).mean(), exact().detach())
    torch.testing.assert_close(torch.stack(gradients).mean(0), expected)


def test_bounded_gradients_have_the_anchors_of_the_others():
    model = network()
    drawing = regularizer_of(model, anchors=2)  # its gradient is clipped
    torch.testing.assert_close(drawing(), sum(drawing.weighted_terms().values()))
    assert drawing() != regularizer_of(model)()


def test_each_draw_is_as_likely_as_any_other():
    drawing = regularizer_of(network(), anchors=4)
    counts = dict.fromkeys(combinations(range(7), 4), 0)
    for _ in range(3500):
        drawing._anchors.draw(drawing._updates)
        drawing._updates += 1
        counts[tuple(sorted(drawing._anchors.of("1").tolist()))] += 1
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 70  # χ² of 34: p ≈ 3e-4


def test_layers_with_few_neurons_and_regularizers_without_anchors_are_exact():
    register_regularizer("plain", Plain)
    model = network()
    for kind, anchors in (("half_mhe", 7), ("plain", 2)):
        drawing = regularizer_of(model, kind, anchors=anchors)
        torch.testing.assert_close(drawing.terms()["1"], regularizer_of(model, kind).terms()["1"])


def test_a_run_that_goes_on_has_the_draws_of_one_that_was_not_interrupted():
    model = network()
    whole = regularizer_of(model, anchors=3)
    draws, state = [], None
    for step in range(6):
        whole.update(0.1)
        draws.append(whole().detach())
        if step == 2:
            state = {name: value.clone() for name, value in whole.state_dict().items()}
    assert len({float(value) for value in draws}) > 3
    again = regularizer_of(model, anchors=3)
    again.load_state_dict(state)
    assert torch.equal(again(), draws[2])
    for expected in draws[3:]:
        again.update(0.1)
        assert torch.equal(again(), expected)
    first, other = (regularizer_of(model, anchors=3, anchors_seed=k)._anchors for k in (0, 1))
    assert not torch.equal(first.of("1"), other.of("1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"anchors": 0}, "anchors as an integer ≥ 1, got 0"), ({"anchors_seed": -1}, "≥ 0, got -1")],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        regularizer_of(network(), **options)


def test_a_compiled_penalty_has_each_step_its_draw_without_a_second_compilation():
    torch._dynamo.reset()
    drawing = regularizer_of(network(), anchors=3)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(drawing, backend=counter, fullgraph=True)
    for _ in range(3):
        drawing.update(0.1)
        torch.testing.assert_close(compiled(), drawing())
    assert counter.frame_count == 1
