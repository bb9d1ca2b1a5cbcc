"""What is computed under autocast, and where there is none: as outside of it, to the bit."""

from __future__ import annotations

import re
from pathlib import Path

import mhe_core
import pytest
import torch
from mhe_core import NetworkRegularizer, create_regularizer, hyperspherical_energy
from mhe_core.energy import Gaussian
from mhe_core.network import named_weights
from torch import nn
from torch.nn.utils import parametrizations

PACKAGES = Path(mhe_core.__file__).parents[3]
NAMES = ["mhe", "half_mhe", "comhe_random", "comhe_group", "comhe_angle", "comhe_adversarial"]
N, D = 20, 40


def bfloat16(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def neurons(rows: int = N, **options: object) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, D, requires_grad=True, **options)


class TestMeta:
    """Devices without autocast: shapes are found, and no number is computed."""

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_the_energy_of_shapes_is_a_shape(self, reduction):
        x = neurons(device="meta")
        energy = hyperspherical_energy(x, half_space=True, reduction=reduction)
        assert energy.is_meta
        assert energy.shape == ((N,) if reduction == "none" else ())
        energy.sum().backward()
        assert x.grad.is_meta
        assert x.grad.shape == x.shape

    @pytest.mark.parametrize("convention", ["paper", "released_code"])
    @pytest.mark.parametrize("name", NAMES)
    def test_every_regularizer_gives_a_scalar(self, name, convention):
        with torch.device("meta"):
            regularizer = create_regularizer(name, N, D, convention=convention)
        x = neurons(device="meta")
        regularizer.update(x, 0.1)
        value = regularizer(x)
        assert value.is_meta
        assert value.shape == ()
        value.backward()
        assert x.grad.is_meta

    @pytest.mark.parametrize("name", NAMES)
    def test_a_network_without_memory_has_a_penalty(self, name):
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(D, N), nn.Linear(N, 9))
        regularizer = NetworkRegularizer(model, name)
        regularizer.update(0.1)
        with bfloat16():
            penalty = regularizer()
        assert penalty.is_meta
        assert penalty.shape == ()


def test_autocast_is_turned_off_in_one_place():
    files = [f for f in PACKAGES.rglob("*.py") if f.name != "autocast.py"]
    assert len(files) > 100
    turned_off = re.compile(r"autocast\([^)]*enabled=False")
    assert [f.name for f in files if turned_off.search(f.read_text(encoding="utf-8"))] == []


ENERGIES = {
    "full space": {},
    "half space": {"half_space": True},
    "released": {"convention": "released_code"},
    "Gaussian": {"potential": Gaussian(t=1.0)},
    "anchors": {"anchors": torch.arange(5)},
    "rows": {"reduction": "none"},
    "rows of anchors": {"reduction": "none", "anchors": torch.arange(5)},
}


class TestBackwardUnderAutocast:
    @pytest.mark.parametrize("rows", [N, 700])  # of one tile, and of several
    @pytest.mark.parametrize("create_graph", [False, True])
    @pytest.mark.parametrize("kind", ENERGIES)
    def test_the_gradient_is_that_outside(self, kind, create_graph, rows):
        found = []
        for enabled in (False, True):
            x = neurons(rows)
            with bfloat16(enabled):
                energy = hyperspherical_energy(x, **ENERGIES[kind]).sum()
                for _ in range(2):  # the second time without what waited for the first
                    kept = {"retain_graph": True, "create_graph": create_graph}
                    found += torch.autograd.grad(energy, x, **kept)
        assert torch.equal(found[0], found[2])
        assert torch.equal(found[1], found[3])

    def test_near_pairs_have_the_derivatives_outside(self):
        """They are measured by an operation of their own, with products in its backward pass."""
        from mhe_core.energy.reference import measured

        found = []
        for enabled in (False, True):
            u = neurons()
            with bfloat16(enabled):
                pairs = measured(torch.zeros(N, N), u, -u.roll(1, 0))
                found += torch.autograd.grad(pairs.sum(), u)
        assert torch.equal(*found)

    def test_a_networks_gradients_are_those_outside(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(D, N), nn.ReLU(), nn.Linear(N, 9))
        regularizer, found = NetworkRegularizer(model), []
        for enabled in (False, True):
            model.zero_grad()
            with bfloat16(enabled):
                regularizer().backward()
            found.append([p.grad for p in model.parameters() if p.grad is not None])
        assert all(map(torch.equal, *found))


def test_a_computed_weight_is_read_in_its_own_dtype():
    torch.manual_seed(0)
    weight = named_weights(parametrizations.orthogonal(nn.Linear(D, N)))[""]
    with bfloat16():
        under = weight.neurons()
    assert torch.equal(under, weight.neurons())
