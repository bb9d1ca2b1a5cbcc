"""The fast path against the definition, and in every mode that a training run may put it in."""

from __future__ import annotations

import re
import sys
from itertools import product
from typing import NamedTuple

import pytest
import torch
from mhe_core import NetworkRegularizer, hyperspherical_energy
from mhe_core.energy import Riesz as RieszPotential
from mhe_core.energy import _pairs as pairs
from mhe_core.energy import _tiles as tiles
from mhe_core.energy import reference
from mhe_core.energy._autograd import tiled_energy
from mhe_core.energy.pair_potential import PairPotential
from support.devices import ON_EVERY_DEVICE
from support.programs import run_program
from torch import Tensor, nn


class Riesz(NamedTuple):
    """The options of a Riesz energy."""

    s: float
    distance: str
    half_space: bool
    convention: str

    @property
    def pair(self) -> PairPotential:
        potential = RieszPotential(self.s, self.distance, self.convention)
        return PairPotential(potential, self.half_space)


def definition(neurons: Tensor, anchors: Tensor | None, *options: object) -> Tensor:
    return reference.definition(neurons, anchors, Riesz(*options).pair)


POWERS = (0.0, 0.5, 1.0, 2.0, 3.7)
DISTANCES = ("euclidean", "angular")
CONVENTIONS = ("paper", "released_code")
EVERY_RIESZ = [Riesz(*r) for r in product(POWERS, DISTANCES, (False, True), CONVENTIONS)]
EVERY = pytest.mark.parametrize("riesz", EVERY_RIESZ, ids=lambda r: "-".join(map(str, r)))
HALF_SPACE = Riesz(2.0, "euclidean", True, "paper")


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles for a few neurons, the last ones smaller, and a few near pairs at a time."""
    for name, value in (("ROWS_ON_CPU", 5), ("ENTRIES_ON_CPU", 50), ("ROWS", 5), ("ENTRIES", 50)):
        monkeypatch.setattr(tiles, name, value)
    monkeypatch.setattr(pairs, "DIFFERENCES", 20)
    for name in ("WORTH_SPLITTING", "WORTH_SPLITTING_ON_CPU"):
        monkeypatch.setattr(pairs, name, 40)


def layer(
    *shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu"
) -> Tensor:
    """Neurons of different lengths, with near neighbours, near antipodes and a zero row."""
    w = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    N = shape[-2]
    for i, j, sign in ((0, N // 2, 1), (1, N - 1, -1), (2, 3, 1)):
        w[..., i, :] = sign * w[..., j, :] + 0.1 * w[..., i, :]
    w[..., N // 3, :] = 0
    w *= torch.logspace(-2, 2, N, dtype=torch.float64)[torch.randperm(N)].unsqueeze(1)
    return w.to(device, dtype).requires_grad_()


def slope(energy: Tensor, neurons: Tensor) -> Tensor:
    return torch.autograd.grad(energy.square().sum(), neurons)[0]


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest error in the gradient of a neuron, relative to that gradient's length."""
    size = want.norm(dim=-1, keepdim=True)
    assert got.masked_select(size == 0).eq(0).all()
    return ((got - want) / size.masked_fill(size == 0, 1.0)).abs().max().item()


def assert_as_defined(neurons: Tensor, riesz: Riesz, anchors: Tensor | None = None) -> None:
    """Value and gradient of tiles and definition agree to rounding."""
    energy = tiled_energy(neurons, anchors, riesz.pair)
    want = definition(neurons, anchors, *riesz)
    single = energy.dtype == torch.float32
    rounding = 1e-6 if single else 1e-11
    torch.testing.assert_close(energy, want, rtol=rounding, atol=rounding)
    error = relative_error(slope(energy, neurons), slope(want, neurons))
    assert error < (1e-4 if single else 1e-9)


@EVERY
@ON_EVERY_DEVICE
@pytest.mark.usefixtures("small_tiles")
def test_tiles_add_up_to_the_definition(riesz, device):
    for shape in ((13, 4), (16, 3), (6, 300), (3, 4, 7), (2, 3, 11, 4)):
        assert_as_defined(layer(*shape, device=device), riesz)


@EVERY
@ON_EVERY_DEVICE
@pytest.mark.usefixtures("small_tiles")
def test_anchors_are_those_of_the_definition(riesz, device):
    for anchors in ([12, 0, 7, 3, 5, 6, 9], [4], [2, 2, 8], range(13)):
        assert_as_defined(layer(2, 13, 4, device=device), riesz, torch.tensor(list(anchors)))


@EVERY
@ON_EVERY_DEVICE
def test_a_single_tile_is_the_definition(riesz, device):
    for shape in ((40, 12), (3, 9, 5)):
        assert_as_defined(layer(*shape, device=device), riesz)
        if riesz.convention == "paper":  # the other's cosines of near pairs have too few digits
            assert_as_defined(layer(*shape, dtype=torch.float32, device=device), riesz)


@ON_EVERY_DEVICE
@pytest.mark.parametrize("half_space", [False, True], ids=["full", "half"])
def test_large_layers_have_several_tiles_and_the_energy_of_the_definition(half_space, device):
    neurons = layer(1100, 48, dtype=torch.float32, device=device)
    assert_as_defined(neurons, Riesz(2.0, "euclidean", half_space, "paper"))
    assert_as_defined(neurons, Riesz(1.0, "angular", half_space, "paper"))


@pytest.mark.parametrize("riesz", [HALF_SPACE, Riesz(3.7, "angular", True, "paper")], ids=str)
def test_float32_values_are_as_accurate_as_those_of_the_definition(riesz):
    errors = torch.zeros(3, dtype=torch.float64)
    slope_errors = torch.zeros(2)
    for seed in range(60):
        neurons = layer(150, 24, dtype=torch.float32, seed=seed)
        exact = neurons.detach().double().requires_grad_()
        want = definition(exact, None, *riesz)
        found = [tiled_energy(neurons, None, riesz.pair), definition(neurons, None, *riesz)]
        errors += torch.stack([(e - want).abs().detach() for e in (*found, want.float())])
        right = slope(want, exact)
        slope_errors += torch.tensor([relative_error(slope(e, neurons), right) for e in found])
    ours, defined, rounding = errors.tolist()
    # 0.8 of it in the mean; of 60 draws, with a standard deviation of 0.1. Which roundings they
    # meet depends on where in memory the neurons lie.
    assert ours < 1.4 * defined + 0.3 * rounding
    # A cosine is scaled twice after the product, where the definition scales the neurons before.
    assert slope_errors[0] < 2.5 * slope_errors[1]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shares", [2, 3, 7])
def test_shares_add_up(shares):
    for neurons in (layer(17, 4), layer(3, 11, 4)):
        want, slope = tiles.value_and_gradient(neurons, None, HALF_SPACE.pair, True)
        parts = [
            tiles.value_and_gradient(neurons, None, HALF_SPACE.pair, True, share=(k, shares))
            for k in range(shares)
        ]
        torch.testing.assert_close(sum(value for value, _ in parts), want)
        torch.testing.assert_close(sum(slope for _, slope in parts), slope)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_lengths_that_tiles_cannot_divide_by(factor):
    neurons = layer(9, 4, dtype=torch.float32)
    scaled = (neurons.detach() * factor).requires_grad_()
    energy, same = (hyperspherical_energy(w, half_space=True) for w in (neurons, scaled))
    torch.testing.assert_close(energy, same)
    (got,), (want,) = torch.autograd.grad(same, scaled), torch.autograd.grad(energy, neurons)
    torch.testing.assert_close(got * factor, want, rtol=1e-4, atol=1e-5)


def test_many_coincident_neurons_take_no_more_memory_than_a_few(monkeypatch):
    monkeypatch.setattr(pairs, "DIFFERENCES", 64)
    neurons = torch.ones(60, 16, dtype=torch.float64)
    neurons[:3] += torch.eye(3, 16)
    assert_as_defined(neurons.requires_grad_(), HALF_SPACE)


def test_nothing_but_the_value_is_computed_where_no_gradient_is_wanted(monkeypatch):
    neurons = layer(20, 5)
    want = hyperspherical_energy(neurons)
    monkeypatch.setattr(pairs.PairMean, "_add_gradient", None)
    with torch.no_grad():
        energy = hyperspherical_energy(neurons)
    with torch.inference_mode():
        inferred = hyperspherical_energy(neurons.detach())
    assert energy == inferred == want.detach() == hyperspherical_energy(neurons.detach())
    assert not energy.requires_grad


def test_the_backward_pass_can_be_repeated():
    neurons = layer(20, 5)
    energy = hyperspherical_energy(neurons, half_space=True)
    first, second, third = (
        torch.autograd.grad(energy, neurons, torch.tensor(factor).double(), retain_graph=True)[0]
        for factor in (1.0, 1.0, 3.0)
    )
    assert torch.equal(first, second)
    torch.testing.assert_close(third, 3 * first)


def test_gradients_may_be_differentiated_and_used_afterwards():
    neurons = layer(6, 4)
    energy = hyperspherical_energy(neurons, half_space=True)
    (slope,) = torch.autograd.grad(energy, neurons, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), neurons, retain_graph=True)
    want = definition(neurons, None, *HALF_SPACE)
    (want,) = torch.autograd.grad(want, neurons, create_graph=True)
    (want,) = torch.autograd.grad(want.square().sum(), neurons)
    torch.testing.assert_close(curvature, want)
    torch.testing.assert_close(torch.autograd.grad(energy, neurons)[0], slope.detach())


def test_transforms_of_torch_func_and_forward_mode():
    neurons, direction = layer(5, 4).detach(), torch.randn(5, 4, dtype=torch.float64)
    leaf = neurons.clone().requires_grad_()
    (want,) = torch.autograd.grad(hyperspherical_energy(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(hyperspherical_energy)(neurons), want)
    along = torch.func.jvp(hyperspherical_energy, (neurons,), (direction,))[1]
    torch.testing.assert_close(along, (want * direction).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(neurons, direction)
        along = torch.autograd.forward_ad.unpack_dual(hyperspherical_energy(dual)).tangent
    torch.testing.assert_close(along, (want * direction).sum())


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step():
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 4))
    regularizer = NetworkRegularizer(model)
    x = torch.randn(3, 8)

    def step() -> Tensor:
        return model(x).square().mean() + regularizer()

    results = []
    for function in (step, torch.compile(step, backend="aot_eager")):
        model.zero_grad()
        loss = function()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results)


def test_deterministic_mode_and_autocast():
    neurons = layer(30, 6, dtype=torch.float32)
    energy = hyperspherical_energy(neurons, half_space=True)
    (want,) = torch.autograd.grad(energy, neurons)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            again = hyperspherical_energy(neurons, half_space=True)
        (slope,) = torch.autograd.grad(again, neurons)
    finally:
        torch.use_deterministic_algorithms(False)
    assert again.dtype == torch.float32
    assert torch.equal(energy, again)
    assert torch.equal(want, slope)


def test_the_gradient_is_handed_over_without_a_copy(monkeypatch):
    found = []
    compute = tiles.value_and_gradient

    def remembered(*arguments):
        value, gradient = compute(*arguments)
        found.append(gradient.data_ptr())
        return value, gradient

    monkeypatch.setattr(tiles, "value_and_gradient", remembered)
    convolution = nn.Conv2d(3, 8, 3)
    (2 * hyperspherical_energy(convolution.weight.flatten(1))).backward()
    assert convolution.weight.grad.data_ptr() == found[0]


MEMORY = """
import re, torch
from mhe_core import hyperspherical_energy

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

hyperspherical_energy(torch.randn(9, 64, requires_grad=True), half_space=True).backward()
neurons = torch.randn(9000, 32, requires_grad=True)
before = resident("VmRSS")
hyperspherical_energy(neurons, half_space=True).backward()
print("MiB", (resident("VmHWM") - before) / 1024 - neurons.nbytes / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_memory_is_that_of_a_few_tiles(threads):
    # The cosines alone would be 309 MiB. With two threads, the heap is scattered more easily.
    done = run_program(sys.executable, "-c", MEMORY, env={"OMP_NUM_THREADS": threads})
    assert float(re.search(r"MiB (.*)", done.stdout)[1]) < 32
