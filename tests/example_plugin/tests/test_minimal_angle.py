import math

import pytest
import torch
from mhe_core import create_regularizer
from mhe_core.testing import check_regularizer


@pytest.mark.parametrize("neighbors", [1, 3])
def test_conforms(neighbors):
    check_regularizer("minimal_angle", neighbors=neighbors)


def test_equals_a_loop_over_angles():
    neurons = torch.randn(7, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    smallest = [
        min(
            math.acos(torch.cosine_similarity(neurons[i], neurons[j], dim=0).item())
            for j in range(7)
            if j != i
        )
        for i in range(7)
    ]
    value = create_regularizer("minimal_angle", num_neurons=7, dim=5)(neurons)
    assert value.item() == pytest.approx(-sum(smallest) / 7, rel=1e-12)


def test_descent_spreads_the_neurons_to_a_simplex():
    torch.manual_seed(0)
    neurons = torch.nn.Parameter(torch.randn(4, 3))
    regularizer = create_regularizer("minimal_angle", num_neurons=4, dim=3)
    for step in range(600):
        neurons.grad = None
        regularizer(neurons).backward()
        with torch.no_grad():
            neurons -= 0.5 * 0.99**step * neurons.grad
    assert regularizer(neurons).item() == pytest.approx(-math.acos(-1 / 3), abs=0.01)


def test_says_which_neighbors_are_possible():
    with pytest.raises(ValueError, match="expected neighbors from 1 to 3, got 4"):
        create_regularizer("minimal_angle", num_neurons=4, dim=3, neighbors=4)
