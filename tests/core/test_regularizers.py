"""The regularizers' modules: the energy with its options, and what all of them share."""

from __future__ import annotations

import pytest
import torch
from mhe_core import MHE, HalfSpaceMHE, Regularizer, create_regularizer, hyperspherical_energy

NEURONS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
OPTIONS = [
    {},
    {"s": 0},
    {"s": 1.5, "distance": "angular"},
    {"s": 1, "convention": "released_code"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "half_space"), [("mhe", False), ("half_mhe", True)])
def test_energy_is_the_functions(name, half_space, options):
    regularizer = create_regularizer(name, 5, 4, **options)
    assert type(regularizer) is (HalfSpaceMHE if half_space else MHE)
    want = hyperspherical_energy(NEURONS, half_space=half_space, **options)
    assert regularizer(NEURONS) == want
    anchors = torch.tensor([1, 4])
    want = hyperspherical_energy(NEURONS, half_space=half_space, anchors=anchors, **options)
    assert regularizer(NEURONS, anchors=anchors) == want


def test_leading_dimensions_are_averaged():
    batch = torch.stack([NEURONS, NEURONS.flip(1), NEURONS.square()]).unsqueeze(1)
    regularizer = MHE(5, 4)
    energy = regularizer(batch)
    assert energy.shape == ()
    torch.testing.assert_close(energy, torch.stack([regularizer(w) for (w,) in batch]).mean())


@pytest.mark.parametrize("factory", [MHE, HalfSpaceMHE])
def test_has_no_state_and_is_pure(factory):
    regularizer = factory(5, 4)
    before = regularizer(NEURONS)
    regularizer.update(NEURONS, lr=0.1)
    assert regularizer(NEURONS) == before
    assert regularizer.state_dict() == {}
    assert list(regularizer.parameters()) == []


def test_says_what_it_is():
    text = repr(HalfSpaceMHE(5, 4, s=1, distance="angular"))
    for part in ("HalfSpaceMHE", "num_neurons=5", "dim=4", "s=1", "'angular'", "'paper'"):
        assert part in text


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((0, 4), {}, ValueError, "num_neurons as a positive integer, got 0"),
        ((True, 4), {}, ValueError, "num_neurons as a positive integer, got True"),
        ((5, -1), {}, ValueError, "dim as a positive integer, got -1"),
        ((5, 4.0), {}, ValueError, "dim as a positive integer, got 4.0"),
        ((5, 4), {"s": -2}, ValueError, "s as a finite number ≥ 0, got -2"),
        ((5, 4), {"s": "2"}, TypeError, "s as a number, got str"),
        ((5, 4), {"distance": "chord"}, ValueError, "got 'chord'"),
        ((5, 4), {"convention": "tensorflow"}, ValueError, "got 'tensorflow'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("factory", [MHE, HalfSpaceMHE])
def test_bad_arguments_are_refused_when_it_is_made(factory, sizes, options, error, message):
    with pytest.raises(error, match=message):
        factory(*sizes, **options)


def test_a_subclass_without_forward_says_so():
    class Unfinished(Regularizer):
        pass

    regularizer = Unfinished(5, 4)
    regularizer.update(NEURONS, lr=0.1)
    with pytest.raises(TypeError, match="Unfinished does not define forward"):
        regularizer(NEURONS)
