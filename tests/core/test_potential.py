"""Potentials: ours and one's own, in the fast path, with every reduction."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from mhe_core import NetworkRegularizer, create_regularizer, hyperspherical_energy
from mhe_core.diagnostics import lower_bound
from mhe_core.energy import Gaussian, Potential, Riesz, _pairs, _tiles
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.potential import DISTANCES, potential_with
from mhe_core.energy.reference import definition
from support.devices import ON_EVERY_DEVICE
from torch import Tensor, nn


@dataclass(frozen=True)
class Inverse(Potential):
    """Riesz with s = 2, as a third party would write it."""

    def value(self, squared_chord: Tensor) -> Tensor:
        return 1 / squared_chord


@dataclass(frozen=True)
class Cosine(Potential):
    """exp(cos), with nothing but a value."""

    def value(self, squared_chord: Tensor) -> Tensor:
        return torch.exp(1 - squared_chord / 2)


POTENTIALS = [
    Riesz(),
    Riesz(0.0),
    Riesz(1.0, "angular"),
    Riesz(0.0, "angular"),
    Riesz(1.5, "euclidean", "released_code"),
    Riesz(0.0, "angular", "released_code"),
    Gaussian(2.0),
    Inverse(),
    Cosine(),
]
SPACES = pytest.mark.parametrize("half_space", [False, True], ids=["full", "half"])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles, of which the last ones are smaller, on every device."""
    for name, value in (("ROWS_ON_CPU", 5), ("ENTRIES_ON_CPU", 50), ("ROWS", 5), ("ENTRIES", 50)):
        monkeypatch.setattr(_tiles, name, value)
    monkeypatch.setattr(_pairs, "DIFFERENCES", 20)


def rows(*shape: int, near: bool = True, device: str = "cpu") -> Tensor:
    """Of different norms, some near each other, near antipodes, and zero."""
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if near:
        w[..., 0, :] = w[..., 1, :] + 0.05 * w[..., 0, :]
        w[..., 2, :] = -w[..., 5, :] + 0.05 * w[..., 2, :]
        w[..., 3, :] = 0
    scale = torch.logspace(-1, 1, shape[-2], dtype=torch.float64).unsqueeze(-1)
    return (w * scale).to(device).requires_grad_()


def by_loop(w: Tensor, potential: Potential, half_space: bool) -> Tensor:
    """Each row's mean potential over the others, pair by pair."""
    u = w / w.norm(dim=-1, keepdim=True)
    means = []
    for i in range(len(u)):
        terms = [(u[i] - u[j]).square().sum() for j in range(len(u)) if j != i]
        if half_space:
            terms += [(u[i] + u[j]).square().sum() for j in range(len(u))]
        values = [potential.value(q) for q in terms]
        means.append(sum(values) / len(values))
    return torch.stack(means)


@SPACES
@pytest.mark.parametrize("potential", POTENTIALS, ids=repr)
def test_every_reduction_is_that_of_a_loop(potential, half_space):
    if potential.smoothing:
        pytest.skip("norms are smoothed, which the loop does not do")
    w = rows(7, 3, near=False)
    of_rows = by_loop(w, potential, half_space)
    pairs = 7 * 13 if half_space else 7 * 6 // 2
    for reduction, want in {
        "none": of_rows,
        "mean": of_rows.mean(),
        "sum": of_rows.mean() * pairs,
    }.items():
        got = hyperspherical_energy(
            w, potential=potential, half_space=half_space, reduction=reduction
        )
        torch.testing.assert_close(got, want)
        g = torch.arange(1.0, 1 + want.numel(), dtype=torch.float64).view(want.shape)
        got, want = (torch.autograd.grad(x, w, g, retain_graph=True)[0] for x in (got, want))
        torch.testing.assert_close(got, want)


@ON_EVERY_DEVICE
@SPACES
@pytest.mark.parametrize("potential", POTENTIALS, ids=repr)
def test_tiles_and_anchors_are_those_of_the_definition(potential, half_space, device):
    pair = PairPotential(potential, half_space)
    options = {"potential": potential, "half_space": half_space}
    for shape, anchors in itertools.product(
        ((13, 4), (2, 3, 11, 4)), (None, torch.tensor([4, 0, 9, 9, 2, 7, 1]))
    ):
        w = rows(*shape, device=device)
        for reduction in ("mean", "none"):
            got = hyperspherical_energy(w, anchors=anchors, reduction=reduction, **options)
            want = definition(w, anchors, pair, rows=reduction == "none")
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
            g = torch.rand(want.shape, dtype=torch.float64, device=device)
            (got,) = torch.autograd.grad(got, w, g)
            (want,) = torch.autograd.grad(want, w, g)
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@SPACES
def test_all_neurons_as_anchors_are_the_whole_in_every_reduction(half_space):
    w = rows(9, 4)
    for reduction in ("mean", "sum", "none"):
        got, want = (
            hyperspherical_energy(w, half_space=half_space, anchors=a, reduction=reduction)
            for a in (torch.arange(9), None)
        )
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("half_space", [False, True], ids=["full", "half"])
@pytest.mark.parametrize("distance", ["euclidean", "angular"])
def test_the_least_exponents_are_powers_not_the_logarithm(distance, half_space):
    rows = torch.eye(3, dtype=torch.float64)
    for s in (5e-324, 1e-300):
        assert hyperspherical_energy(rows, s=s, distance=distance, half_space=half_space) == 1


def test_a_single_neuron_has_no_pairs():
    for reduction, shape in (("mean", ()), ("sum", ()), ("none", (1,))):
        energy = hyperspherical_energy(torch.ones(1, 3), reduction=reduction)
        assert energy.shape == shape
        assert energy.eq(0).all()


@SPACES
def test_ones_own_potential_has_the_values_of_the_built_in_one(half_space):
    w = rows(12, 5, near=False)
    ours, theirs = (
        hyperspherical_energy(w, potential=p, half_space=half_space) for p in (Riesz(), Inverse())
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(e, w)[0] for e in (ours, theirs)))


@pytest.mark.parametrize("potential", POTENTIALS, ids=repr)
def test_derivatives_are_those_of_autograd(potential):
    c = torch.linspace(-0.85, 0.85, 35, dtype=torch.float64)
    value, derivative = potential.value_and_derivative(c)
    leaf = c.clone().requires_grad_()
    want = potential.of_chords(2 - 2 * leaf, 2 + 2 * leaf)
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(derivative, torch.autograd.grad(want.sum(), leaf)[0])
    both, both_derivative = potential.both_sides(c)
    torch.testing.assert_close(both, value + value.flip(0))
    torch.testing.assert_close(both_derivative, derivative - derivative.flip(0))
    singles = torch.tensor([potential.of_cosine(x) for x in c.tolist()], dtype=torch.float64)
    torch.testing.assert_close(singles, value)


@pytest.mark.parametrize("potential", [Gaussian(1.0), Cosine()], ids=repr)
@SPACES
def test_second_derivatives(potential, half_space):
    w = rows(5, 3, near=False)
    assert torch.autograd.gradgradcheck(
        lambda x: hyperspherical_energy(x, potential=potential, half_space=half_space), w
    )


def test_the_gaussian_is_the_uniformity_of_wang_and_isola():
    """The logarithm of the mean of exp(−t·pdist²), as their page has it."""
    x = nn.functional.normalize(torch.randn(40, 8, dtype=torch.float64), dim=1)
    want = torch.pdist(x).square().mul(-2).exp().mean().log()
    torch.testing.assert_close(hyperspherical_energy(x, potential=Gaussian(2.0)).log(), want)


@pytest.mark.parametrize("potential", POTENTIALS, ids=repr)
def test_everything_degenerate_is_finite(potential):
    w = torch.randn(6, 4)
    for case in (torch.ones(6, 4), torch.cat([w, -w]), 0 * w, 1e-30 * w, 1e30 * w):
        for reduction in ("mean", "none"):
            leaf = case.clone().requires_grad_()
            energy = hyperspherical_energy(
                leaf, potential=potential, half_space=True, reduction=reduction
            )
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
            assert energy.isfinite().all()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("potential", POTENTIALS, ids=repr)
def test_copies_are_equal_and_found_by_their_key(potential):
    for other in (copy.deepcopy(potential), pickle.loads(pickle.dumps(potential))):
        assert other == potential
        assert potential_with(other.key) == potential
    assert potential_with(potential.key) == potential


BAD = [
    ({"potential": "riesz"}, TypeError, "potential as a mhe_core.energy.Potential, got str"),
    ({"potential": Riesz(), "s": 1.0}, ValueError, "a potential, or s, distance and convention"),
    ({"reduction": "max"}, ValueError, r"reduction to be one of .*, got 'max'"),
    ({"distance": "chord"}, ValueError, "distance to be one of .*, got 'chord'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[case[2] for case in BAD])
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        hyperspherical_energy(torch.eye(3), **options)


@pytest.mark.parametrize("t", [0, -1.0, math.inf, math.nan])
def test_a_gaussian_has_a_width(t):
    with pytest.raises(ValueError, match="expected t as a finite number > 0"):
        Gaussian(t)


def test_an_unknown_distance_is_an_error_everywhere():
    for call in (
        lambda: Riesz(1.0, "great_circle"),
        lambda: hyperspherical_energy(torch.eye(3), distance="great_circle"),
        lambda: create_regularizer("mhe", 3, 3, distance="great_circle"),
        lambda: lower_bound(3, 3, distance="great_circle"),
    ):
        with pytest.raises(ValueError, match="got 'great_circle'"):
            call()


def test_a_new_distance_is_one_entry_in_the_table(monkeypatch):
    """Twice the chord, by its square: the energy, its bound and its regularizers know it."""

    class Twice(type(DISTANCES["euclidean"])):
        def of_chords(self, near, far):
            return 4 * near

        def of_cosines(self, c):
            return 8 - 8 * c, -8.0

        def of_opposites(self, c):
            return 8 + 8 * c

        def of_cosine(self, c):
            return 8 - 8 * c

    monkeypatch.setitem(DISTANCES, "twice", Twice())
    w = rows(9, 4)
    for s in (1.0, 2.0):
        for half_space in (False, True):
            doubled, plain = (
                hyperspherical_energy(w, s=s, distance=d, half_space=half_space)
                for d in ("twice", "euclidean")
            )
            torch.testing.assert_close(doubled, plain * 2**-s)
            bounds = [lower_bound(4, 5, s, d, half_space) for d in ("twice", "euclidean")]
            assert bounds[0] == pytest.approx(bounds[1] * 2**-s)
    assert create_regularizer("mhe", 9, 4, distance="twice")(w).isfinite()


def test_a_plug_in_that_is_a_pure_potential_is_computed_with_equal_layers(monkeypatch):
    from mhe_core import register_regularizer, registry

    monkeypatch.setattr(registry, "_registered", {})

    class Theirs(nn.Module):
        half_space = True

        def __init__(self, num_neurons, dim):
            super().__init__()
            self.potential = Gaussian(1.0)

        def forward(self, neurons):
            raise AssertionError("expected the layers in one call, by their potential")

    register_regularizer("theirs", Theirs)
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
    terms = NetworkRegularizer(model, hidden="theirs", output="theirs").terms()
    for name, energy in terms.items():
        weight = model.get_submodule(name).weight
        want = hyperspherical_energy(weight, potential=Gaussian(1.0), half_space=True)
        torch.testing.assert_close(energy, want)


def test_one_with_hooks_or_another_forward_is_called(monkeypatch):
    from mhe_core import MHE, register_regularizer, registry

    monkeypatch.setattr(registry, "_registered", {})

    class Doubled(MHE):
        def forward(self, neurons, anchors=None):
            return 2 * super().forward(neurons, anchors)

    register_regularizer("doubled", Doubled)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    regularizer = NetworkRegularizer(model, hidden="doubled", output="mhe")
    terms = regularizer.terms()
    assert Doubled(6, 6).potential is None
    torch.testing.assert_close(terms["0"], 2 * hyperspherical_energy(model[0].weight))
    seen = []
    for module in regularizer.regularizers.values():
        module.register_forward_hook(lambda *_: seen.append(1))
    regularizer()
    assert len(seen) == 2
