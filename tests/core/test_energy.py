"""The energy against independent calculations: a loop over pairs, closed forms, known minima."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mhe_core import hyperspherical_energy
from support.devices import ON_EVERY_DEVICE
from torch import Tensor

POWERS = (0, 0.5, 1, 2, 3.7)
DISTANCES = ("euclidean", "angular")
SPACES = pytest.mark.parametrize("half_space", [False, True], ids=["full", "half"])
# "Equal": relative to the mean size of a potential, as logarithms of both signs may cancel.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def energy_by_loop(
    neurons: np.ndarray, s: float, distance: str, half_space: bool, anchors: list[int] | None = None
) -> tuple[float, float]:
    """Mean potential over pairs, and mean absolute potential, from differences in float64."""
    u = neurons.astype(np.float64)
    u /= np.linalg.norm(u / np.abs(u).max(-1, keepdims=True), axis=-1, keepdims=True)
    u /= np.linalg.norm(u, axis=-1, keepdims=True)
    if half_space:
        u = np.concatenate([u, -u])
    values = []
    for i in range(len(u)) if anchors is None else anchors:
        others = u[i + 1 :] if anchors is None else np.delete(u, i, axis=0)
        chord = np.linalg.norm(others - u[i], axis=-1)
        antipodal_chord = np.linalg.norm(others + u[i], axis=-1)
        if distance == "euclidean":
            z = chord
        else:
            near = 2 * np.arcsin(np.minimum(chord, 1.5) / 2)
            far = np.pi - 2 * np.arcsin(np.minimum(antipodal_chord, 1.5) / 2)
            z = np.where(chord < antipodal_chord, near, far)
        values.append(-np.log(z) if s == 0 else z**-s)
    potentials = np.concatenate(values)
    return math.fsum(potentials) / len(potentials), float(np.abs(potentials).mean())


def neurons_with_a_close_pair(
    *shape: int, dtype: torch.dtype, seed: int = 0, chord: float = 1.01e-2
) -> Tensor:
    """Neurons of different lengths, the last two ``chord`` apart, the first two near antipodes."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=generator, dtype=torch.float64)
    w = w / w.norm(dim=-1, keepdim=True)
    w[..., -1, :] = turned(w[..., -2, :], w[..., -1, :], chord)
    w[..., 1, :] = -turned(w[..., 0, :], w[..., 1, :], chord)
    lengths = 0.1 + 3 * torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64)
    return (w * lengths).to(dtype)


def turned(u: Tensor, v: Tensor, chord: float) -> Tensor:
    """The direction at that chord from the unit vectors ``u``, on the side of ``v``."""
    side = v - (u * v).sum(-1, keepdim=True) * u
    angle = 2 * math.asin(chord / 2)
    return math.cos(angle) * u + math.sin(angle) * side / side.norm(dim=-1, keepdim=True)


def assert_energy_is_that_of_the_loop(
    energy: Tensor, neurons: Tensor, s: float, distance: str, half_space: bool, **anchors: list[int]
) -> None:
    batch = neurons.detach().reshape(-1, *neurons.shape[-2:]).double().cpu().numpy()
    for got, w in zip(energy.detach().reshape(-1).tolist(), batch, strict=True):
        want, scale = energy_by_loop(w, s, distance, half_space, **anchors)
        # A GPU sums a product in another order, which s = 8 magnifies; seen: 1.2e-5.
        assert abs(got - want) <= TOLERANCE[energy.dtype] * scale * (2 if energy.is_cuda else 1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@SPACES
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("s", POWERS)
@ON_EVERY_DEVICE
def test_equals_the_loop_over_pairs(device, s, distance, half_space, dtype, batch):
    neurons = neurons_with_a_close_pair(*batch, 7, 5, dtype=dtype).to(device)
    options = {"s": s, "distance": distance, "half_space": half_space}
    energy = hyperspherical_energy(neurons, **options)
    assert energy.shape == batch
    assert energy.dtype == dtype
    assert_energy_is_that_of_the_loop(energy, neurons, **options)
    anchors = [6, 0, 3]
    energy = hyperspherical_energy(neurons, anchors=torch.tensor(anchors), **options)
    assert_energy_is_that_of_the_loop(energy, neurons, **options, anchors=anchors)


@pytest.mark.parametrize("chord", [0.01, 0.05, 0.22, 0.23, 0.49, 0.51, 0.9, 1.9, 1.99])
@pytest.mark.parametrize("d", [2, 3, 16, 300])
@ON_EVERY_DEVICE
def test_single_pairs_are_accurate_at_every_chord(device, d, chord):
    neurons = neurons_with_a_close_pair(40, 4, d, dtype=torch.float32, chord=chord)[:, 2:]
    neurons = neurons.to(device)
    for s in (0, 1, 2, 8):
        for distance in DISTANCES:
            energy = hyperspherical_energy(neurons, s=s, distance=distance)
            assert_energy_is_that_of_the_loop(energy, neurons, s, distance, half_space=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@SPACES
@pytest.mark.parametrize(("s", "distance"), [(0, "euclidean"), (2, "euclidean"), (1, "angular")])
@pytest.mark.parametrize("shape", [(40, 600), (1100, 6)], ids=str)
@ON_EVERY_DEVICE
def test_large_layers_have_the_value_and_slope_of_the_loop(
    device, shape, s, distance, half_space, dtype
):
    neurons = neurons_with_a_close_pair(*shape, dtype=dtype, chord=0.1).to(device).requires_grad_()
    energy = hyperspherical_energy(neurons, s=s, distance=distance, half_space=half_space)
    if shape[0] < 100:
        assert_energy_is_that_of_the_loop(energy, neurons, s, distance, half_space)
    (gradient,) = torch.autograd.grad(energy, neurons)

    direction = torch.nn.functional.normalize(gradient.double(), dim=(0, 1))
    step = 1e-5 * direction / direction.abs().max()
    ends = [(neurons.detach().double() + sign * step).cpu().numpy() for sign in (1, -1)]
    up, down = (energy_by_loop(w, s, distance, half_space)[0] for w in ends)
    assert abs((up + down) / 2 - energy.item()) <= 2e-5 * abs(energy.item())
    slope = (gradient.double() * step).sum().item()
    assert slope == pytest.approx((up - down) / 2, rel=1e-4)


@pytest.mark.parametrize("convention", ["paper", "released_code"])
@SPACES
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("s", [0, 1, 2, 3.7])
def test_first_and_second_derivatives(s, distance, half_space, convention):
    neurons = neurons_with_a_close_pair(4, 3, dtype=torch.float64, chord=0.15).requires_grad_()
    batch = neurons_with_a_close_pair(2, 4, 2, dtype=torch.float64, chord=0.3).requires_grad_()
    options = {"s": s, "distance": distance, "half_space": half_space, "convention": convention}

    def energy(neurons: Tensor) -> Tensor:
        return hyperspherical_energy(neurons, **options)

    def anchored(neurons: Tensor) -> Tensor:
        return hyperspherical_energy(neurons, anchors=torch.tensor([0, 3]), **options)

    several = [(energy, batch), (anchored, neurons)] if s in (0, 3.7) else []
    for function, at in [(energy, neurons), *several]:
        assert torch.autograd.gradcheck(function, (at,))
        # Of the energy itself: factors drawn anew would now and then raise rounding, which is
        # 1e-5 for gradients of 1e5, above the tolerance.
        ones = torch.ones_like(function(at), requires_grad=True)
        assert torch.autograd.gradgradcheck(function, (at,), (ones,))


VECTORS = np.load(Path(__file__).parent / "reference_energy.npz")
CASES = sorted({key.rsplit("/", 1)[0] for key in VECTORS})


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith(("hidden|", "output|"))])
def test_released_code_equals_the_published_programs(case):
    layer, method, power, _ = case.split("|")
    assert_equals_published(
        case,
        s=int(power.lstrip("a")),
        distance="angular" if power.startswith("a") else "euclidean",
        half_space=method == "half_mhe",
        weight=10 if layer == "output" else 1,
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("comhe_first|")])
def test_released_code_of_a_first_layer_that_is_not_projected(case):
    assert_equals_published(case, s=2, distance="euclidean", half_space=True, weight=1)


def assert_equals_published(
    case: str, *, s: float, distance: str, half_space: bool, weight: float
) -> None:
    neurons = torch.from_numpy(VECTORS[f"{case}/neurons"]).requires_grad_()
    loss = weight * hyperspherical_energy(
        neurons, s=s, distance=distance, half_space=half_space, convention="released_code"
    )
    loss.backward()
    assert loss.item() == pytest.approx(VECTORS[f"{case}/loss"].item(), rel=2e-4)
    gradient = VECTORS[f"{case}/grad"]
    np.testing.assert_allclose(neurons.grad, gradient, rtol=0, atol=1e-3 * np.abs(gradient).max())


def test_all_published_cases_are_there():
    kinds = [case.split("|")[0] for case in CASES]
    assert {kind: kinds.count(kind) for kind in ("hidden", "output", "comhe_first")} == {
        "hidden": 24,
        "output": 6,
        "comhe_first": 1,
    }


def any_layer(function):
    """Run a test with float64 neurons ``w`` [N, d] and options drawn by hypothesis."""

    @settings(deadline=None, max_examples=40)
    @given(
        seed=st.integers(0, 2**31),
        N=st.integers(2, 9),
        d=st.integers(2, 6),
        s=st.floats(0, 6),
        distance=st.sampled_from(DISTANCES),
        half_space=st.booleans(),
    )
    def test(seed, N, d, **options):
        torch.manual_seed(seed)
        function(torch.randn(N, d, dtype=torch.float64), options)

    test.__name__ = function.__name__
    return test


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@any_layer
def test_does_not_depend_on_the_order_of_the_neurons(w, options):
    shuffled = w[torch.randperm(len(w))]
    assert_same(hyperspherical_energy(shuffled, **options), hyperspherical_energy(w, **options))


@any_layer
def test_does_not_depend_on_a_rotation(w, options):
    d = w.shape[1]
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=w.dtype)).Q
    assert_same(hyperspherical_energy(w @ rotation, **options), hyperspherical_energy(w, **options))


@any_layer
def test_does_not_depend_on_the_lengths(w, options):
    lengths = 10 ** (6 * torch.rand(len(w), 1, dtype=w.dtype) - 3)
    assert_same(hyperspherical_energy(w * lengths, **options), hyperspherical_energy(w, **options))


@any_layer
def test_half_space_does_not_depend_on_the_signs(w, options):
    signs = torch.randint(2, (len(w), 1), dtype=w.dtype) * 2 - 1
    options["half_space"] = True
    assert_same(hyperspherical_energy(w * signs, **options), hyperspherical_energy(w, **options))


@any_layer
def test_half_space_is_full_space_of_the_neurons_and_their_antipodes(w, options):
    options["half_space"] = False
    both = hyperspherical_energy(torch.cat([w, -w]), **options)
    options["half_space"] = True
    assert_same(hyperspherical_energy(w, **options), both)


@any_layer
def test_a_batch_is_a_loop(w, options):
    batch = torch.stack([w, torch.randn_like(w), w.flip(0)]).unsqueeze(1)
    want = torch.stack([hyperspherical_energy(x, **options) for (x,) in batch]).unsqueeze(1)
    assert_same(hyperspherical_energy(batch, **options), want)


@any_layer
def test_all_neurons_as_anchors_are_no_anchors(w, options):
    anchored = hyperspherical_energy(w, anchors=torch.randperm(len(w)), **options)
    assert_same(anchored, hyperspherical_energy(w, **options))


THOMSON = {
    2: 0.5,
    3: 1.732050808,
    4: 3.674234614,
    5: 6.474691495,
    6: 9.985281374,
    7: 14.452977414,
    8: 19.675287861,
    9: 25.759986531,
    10: 32.716949460,
    12: 49.165253058,
    20: 150.881568334,
    32: 412.261274651,
}


@pytest.mark.parametrize("N", THOMSON)
def test_minimising_it_solves_the_thomson_problem(N):
    starts = torch.randn(6, N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(N))
    starts.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [starts], max_iter=400, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = hyperspherical_energy(starts, s=1).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    coulomb = hyperspherical_energy(starts.detach(), s=1) * N * (N - 1) / 2
    assert coulomb.min().item() == pytest.approx(THOMSON[N], rel=1e-8)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("s", POWERS)
def test_the_simplex_has_the_least_energy(s, distance):
    N = 6
    simplex = (torch.eye(N, dtype=torch.float64) - 1 / N).requires_grad_()
    energy = hyperspherical_energy(simplex, s=s, distance=distance)
    angle = math.acos(-1 / (N - 1))
    z = angle if distance == "angular" else math.sqrt(2 + 2 / (N - 1))
    assert energy.item() == pytest.approx(-math.log(z) if s == 0 else z**-s, rel=1e-12)
    (gradient,) = torch.autograd.grad(energy, simplex)
    assert gradient.abs().max() < 1e-12
    noise = torch.randn(50, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = hyperspherical_energy(simplex.detach() + 0.3 * noise, s=s, distance=distance)
    assert (other > energy).all()


@pytest.mark.parametrize("s", POWERS)
def test_random_directions_have_the_expected_energy(s):
    N, d = 60, 24
    w = torch.randn(200, N, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # (1 + c) / 2 follows the beta distribution with both parameters (d − 1) / 2.
    b = torch.tensor((d - 1) / 2, dtype=torch.float64)
    if s == 0:
        expected = -(math.log(4) + torch.digamma(b) - torch.digamma(2 * b)) / 2
    else:
        log_beta = [torch.lgamma(x) - torch.lgamma(b + x) for x in (b - s / 2, b)]
        expected = 2**-s * torch.exp(log_beta[0] - log_beta[1])
    full = hyperspherical_energy(w, s=s)
    error = full.std() / math.sqrt(len(w))
    assert abs(full.mean() - expected) < 4 * error

    antipodal = 2.0**-s if s else -math.log(2)
    expected = ((2 * N - 2) * expected + antipodal) / (2 * N - 1)
    half = hyperspherical_energy(w, s=s, half_space=True)
    error = half.std() / math.sqrt(len(w))
    assert abs(half.mean() - expected) < 4 * error
