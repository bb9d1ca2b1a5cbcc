"""Bounds, the energy of random directions, and angles: each against something independent."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mhe_core import NetworkRegularizer, hyperspherical_energy
from mhe_core.diagnostics import (
    angle_histogram,
    angle_statistics,
    inspect,
    lower_bound,
    named_neurons,
    random_angle_density,
    random_energy,
)
from support.forks import run_processes
from support.versions import fsdp2
from torch import Tensor, nn

# Lowest known Σ 1/d on the sphere in R³ (the Thomson problem).
THOMSON = {
    2: 0.5, 3: 1.732050808, 4: 3.674234614, 5: 6.474691495, 6: 9.985281374, 7: 14.452977414,
    8: 19.675287861, 9: 25.759986531, 10: 32.716949460, 12: 49.165253058, 20: 150.881568334,
    32: 412.261274651,
}  # fmt: skip
OPTIONS = [
    {"s": s, "distance": distance, "half_space": half_space}
    for s, distance, half_space in itertools.product(
        (0, 1, 2), ("euclidean", "angular"), (False, True)
    )
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex(N: int) -> Tensor:
    return torch.eye(N, dtype=torch.float64) - 1 / N


# Lower bounds


@pytest.mark.parametrize("N", THOMSON)
def test_bound_is_below_the_thomson_table_and_close(N):
    bound = lower_bound(N, 3, s=1) * N * (N - 1) / 2
    sharp = N in (2, 3, 4, 6, 12)  # simplices, octahedron, icosahedron
    assert bound <= THOMSON[N] * (1 + 1e-9)
    assert bound >= THOMSON[N] * (1 - 1e-9 if sharp else 0.994)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("N", [2, 3, 4, 5, 9])
def test_simplex_and_axes_are_the_minimum_where_the_bound_says_so(N, options):
    half_space, angular = options["half_space"], options["distance"] == "angular"
    best = torch.eye(N, dtype=torch.float64) if half_space else simplex(N)
    energy = hyperspherical_energy(best, **options).item()
    for d in (N, 3 * N) if half_space else (N - 1, N, 3 * N):
        bound = lower_bound(N, d, **options)
        if half_space or not angular or options["s"] == 2 or N <= 3:
            assert bound == pytest.approx(energy, rel=1e-12)
        else:
            assert bound <= energy + 1e-12


def test_simplex_is_not_the_minimum_for_every_angular_energy():
    """Two orthogonal pairs of antipodes beat the tetrahedron, and the bound knows."""
    axes = torch.eye(3, dtype=torch.float64)[:2]
    pairs = hyperspherical_energy(torch.cat([axes, -axes]), s=0, distance="angular")
    tetrahedron = hyperspherical_energy(simplex(4), s=0, distance="angular")
    assert lower_bound(4, 3, s=0, distance="angular") <= pairs < tetrahedron


@pytest.mark.parametrize("s", [0, 1, 2, 3.5])
@pytest.mark.parametrize("N", [3, 4, 7, 12, 31, 41])
def test_regular_polygons_attain_the_bound(N, s):
    angles = 2 * math.pi * torch.arange(N, dtype=torch.float64) / N
    polygon = torch.stack([angles.cos(), angles.sin()], 1)
    energy = hyperspherical_energy(polygon, s=s).item()
    assert lower_bound(N, 2, s) == pytest.approx(energy, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("d", [2, 5, 40])
def test_cross_polytope_attains_the_bound(d):
    axes = torch.eye(d, dtype=torch.float64)
    for s in (0, 1, 2):
        energy = hyperspherical_energy(torch.cat([axes, -axes]), s=s).item()
        assert lower_bound(2 * d, d, s) == pytest.approx(energy, rel=1e-12)


@pytest.mark.parametrize("distance", ["euclidean", "angular"])
def test_equiangular_lines_attain_the_half_space_bound(distance):
    """Three lines in the plane, and the six diagonals of the icosahedron."""
    third = math.pi / 3 * torch.arange(3, dtype=torch.float64)
    golden = (1 + math.sqrt(5)) / 2
    lines = [[0, 1, golden], [0, 1, -golden], [1, golden, 0], [1, -golden, 0], [golden, 0, 1]]
    icosahedron = torch.tensor([*lines, [golden, 0, -1]], dtype=torch.float64)
    for neurons in (torch.stack([third.cos(), third.sin()], 1), icosahedron):
        N, d = neurons.shape
        for s in (0, 1, 2):
            energy = hyperspherical_energy(neurons, s=s, distance=distance, half_space=True).item()
            bound = lower_bound(N, d, s, distance, half_space=True)
            assert bound == pytest.approx(energy, rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 24), st.integers(2, 8), st.floats(0, 4), st.sampled_from(OPTIONS))
def test_descent_does_not_go_below_the_bound(N, d, s, options):
    options = options | {"s": s}
    neurons = normal(N, d).requires_grad_()
    optimizer = torch.optim.LBFGS([neurons], max_iter=60, line_search_fn="strong_wolfe")

    def energy() -> Tensor:
        optimizer.zero_grad()
        value = hyperspherical_energy(neurons, **options)
        value.backward()
        return value

    optimizer.step(energy)
    reached = hyperspherical_energy(neurons.detach(), **options).item()
    assert reached >= lower_bound(N, d, **options) - 1e-9


@pytest.mark.parametrize("options", OPTIONS)
def test_bound_rises_with_the_number_of_directions_and_stays_below_random(options):
    sizes = [*range(2, 60), 200, 1000, 10**4, 10**6]
    for d in (4, 16, 500):
        bounds = [lower_bound(N, d, **options) for N in sizes]
        for N, lower, higher in zip(sizes, bounds, [*bounds[1:], math.inf], strict=True):
            assert lower <= higher + 1e-12
            assert lower <= random_energy(N, d, **options) + 1e-12


def test_bound_of_many_directions_nears_the_uniform_distribution():
    assert lower_bound(400, 3, s=1) == pytest.approx(random_energy(400, 3, s=1), rel=0.06)
    assert lower_bound(4096, 64) == pytest.approx(random_energy(4096, 64), rel=0.002)


def test_bounds_at_the_edges():
    assert lower_bound(1, 5) == 0
    assert lower_bound(1, 5, half_space=True) == 0.25
    assert lower_bound(2, 1) == 0.25
    assert lower_bound(3, 1) == lower_bound(2, 1, half_space=True) == math.inf
    assert lower_bound(10, 3, s=1e4) >= 0
    for arguments in ((0, 3), (3, 0), (2.0, 3), (2, 3, -1)):
        with pytest.raises(ValueError, match="expected"):
            lower_bound(*arguments)
        with pytest.raises(ValueError, match="expected"):
            random_energy(*arguments)


# Random directions


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("d", [6, 50])
def test_random_energy_is_the_mean_of_random_draws(d, options):
    energies = hyperspherical_energy(normal(4000, 7, d), **options)
    error = energies.std().item() / math.sqrt(len(energies))
    assert energies.mean().item() == pytest.approx(random_energy(7, d, **options), abs=4 * error)


@pytest.mark.parametrize(
    ("d", "s", "distance", "value"),
    [
        (3, 1, "euclidean", 1.0),
        (3, 0, "euclidean", 0.5 - math.log(2)),
        (2, 0, "euclidean", 0.0),
        (5, 2, "euclidean", 0.75),
        (3, 1, "angular", 1.8519370519824662 / 2),  # ½ ∫ sin θ / θ, the sine integral of π
        (2, 0, "angular", 1 - math.log(math.pi)),
        (2, 0.5, "angular", 2 / math.sqrt(math.pi)),
        (2, 0.99, "angular", 100 * math.pi**-0.99),
    ],
)
def test_random_energy_in_closed_form(d, s, distance, value):
    assert random_energy(9, d, s, distance) == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_chord_and_angle_agree_where_all_directions_are_orthogonal():
    for s in (0, 1, 2):
        right_angle = math.pi / 2
        angular = -math.log(right_angle) if s == 0 else right_angle**-s
        assert random_energy(9, 10**6, s, "angular") == pytest.approx(angular, rel=1e-4)


@pytest.mark.parametrize("distance", ["euclidean", "angular"])
def test_random_energy_is_infinite_where_it_diverges(distance):
    for d in (1, 2, 3, 6):
        assert random_energy(9, d, d - 1, distance) == math.inf
        assert random_energy(9, d + 1, d - 0.01, distance) < math.inf


@pytest.mark.parametrize("d", [2, 3, 30])
def test_random_angles_have_their_density(d):
    edges = torch.linspace(0, math.pi, 10**5 + 1, dtype=torch.float64)
    density = random_angle_density(d, (edges[1:] + edges[:-1]) / 2)
    assert density.mean().item() * math.pi == pytest.approx(1, rel=1e-6)
    drawn = angle_histogram(normal(500, d), bins=20)
    expected = density.view(20, -1).mean(1)
    assert (drawn - expected).abs().max() < 0.1


# Angles


@pytest.mark.parametrize("half_space", [False, True])
def test_angle_statistics_are_those_of_a_loop(half_space, monkeypatch):
    monkeypatch.setattr("mhe_core.diagnostics.angles.BLOCK", 30)  # several blocks a layer
    neurons = normal(2, 13, 3)
    angles = torch.full((2, 13, 13), math.inf, dtype=torch.float64)
    for g, i, j in itertools.product(range(2), range(13), range(13)):
        cosine = torch.nn.functional.cosine_similarity(neurons[g, i], neurons[g, j], dim=0)
        if i != j:
            angles[g, i, j] = (abs(cosine) if half_space else cosine).acos()
    between = angles[angles.isfinite()]
    statistics = angle_statistics(neurons, half_space=half_space, near=0.3)
    assert statistics.smallest == pytest.approx(between.min().item())
    assert statistics.mean == pytest.approx(between.mean().item())
    assert statistics.near_duplicates == (angles.amin(-1) < 0.3).sum()
    counts = torch.histc(between, 9, 0, math.pi / 2 if half_space else math.pi)
    histogram = angle_histogram(neurons, 9, half_space=half_space)
    torch.testing.assert_close(histogram / histogram.sum(), counts / counts.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_angles_keep_their_digits(dtype):
    for angle in (1e-2, 1e-4, 1e-6) if dtype == torch.float32 else (1e-2, 1e-4):
        pair = torch.tensor([[1.0, 0.0], [1.0, angle], [-1.0, 0.0]], dtype=dtype)
        assert angle_statistics(pair).smallest == pytest.approx(float(pair[1, 1]), rel=1e-3)
        assert angle_statistics(pair, half_space=True).near_duplicates == 3
    same = torch.ones(4, 7, dtype=dtype)
    assert angle_statistics(same).smallest == 0
    assert angle_statistics(same).near_duplicates == 4


def test_angles_of_opposite_and_zero_neurons():
    opposite = torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    assert angle_statistics(opposite).smallest == pytest.approx(math.pi)
    assert angle_statistics(opposite, half_space=True).smallest == pytest.approx(0, abs=1e-6)
    zero = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert angle_statistics(zero).smallest == pytest.approx(math.pi / 2)
    assert math.isnan(angle_statistics(opposite[:1]).smallest)


# Whole networks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, groups=8),  # one neuron a group: left out
        nn.ConvTranspose2d(8, 6, 3),
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)),
        nn.MultiheadAttention(4, 2),
        nn.Embedding(9, 4),
        nn.Linear(4, 1),  # a single neuron: left out
    )


def test_every_layer_of_a_network_is_reported():
    model = network()
    model.append(nn.Linear(4, 9))
    model[9].weight = model[7].weight  # tied: once
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = {layer.name: layer for layer in inspect(model)}
    shapes = {name: (layer.groups, layer.num_neurons, layer.dim) for name, layer in layers.items()}
    assert shapes == {
        "0": (1, 8, 27),
        "2": (2, 4, 36),
        "4": (1, 6, 72),
        "5": (1, 5, 6),
        "6.in_proj_weight": (3, 4, 4),
        "6.out_proj": (1, 4, 4),
        "7": (1, 9, 4),
    }
    first = model[0].weight.detach().flatten(1)
    assert layers["0"].energy == pytest.approx(hyperspherical_energy(first).item())
    assert layers["0"].lower_bound == lower_bound(8, 27)
    assert layers["0"].random_energy == random_energy(8, 27)
    assert layers["0"].smallest_angle == angle_statistics(first).smallest
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_state_dict_is_read_by_rows():
    state = network().state_dict() | {"steps": torch.tensor([[1, 2], [3, 4]]), "note": "text"}
    layers = {layer.name: (layer.num_neurons, layer.dim) for layer in inspect(state)}
    assert layers == {
        "0": (8, 27),
        "2": (8, 36),
        "3": (8, 9),
        "4": (8, 54),
        "5.parametrizations.weight.original": (5, 6),
        "6.in_proj_weight": (12, 4),
        "6.out_proj": (4, 4),
        "7": (9, 4),
    }


def test_options_reach_energy_and_angles():
    model = nn.Linear(3, 40)
    (layer,) = inspect(model, s=1, distance="angular", half_space=True, near=math.pi)
    weight = model.weight.detach()
    energy = hyperspherical_energy(weight, s=1, distance="angular", half_space=True)
    assert layer.energy == pytest.approx(energy.item())
    assert layer.lower_bound == lower_bound(40, 3, 1, "angular", True)
    assert layer.random_energy == random_energy(40, 3, 1, "angular", True)
    assert layer.mean_angle < math.pi / 2
    assert layer.near_duplicates == 40
    assert layer.excess == layer.energy - layer.random_energy
    (steep,) = inspect(model, s=3)
    assert steep.excess == steep.energy - steep.lower_bound


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="expected a network or a state dict, got list"):
        inspect([torch.ones(3, 3)])
    for empty in ({}, {"bias": torch.ones(3)}, nn.ReLU(), nn.Linear(3, 1)):
        with pytest.raises(ValueError, match="expected a layer with at least two neurons"):
            inspect(empty)


def test_a_wrapped_network_has_its_own_names():
    plain = [name for name, _ in named_neurons(network())]
    assert [name for name, _ in named_neurons(nn.DataParallel(network()))] == plain


def test_zero_neurons_are_counted():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    nn.init.zeros_(model[0].weight)
    with torch.no_grad():
        model[1].weight[1] = 0
    assert [layer.zero_neurons for layer in inspect(model)] == [5, 1]


def test_all_kinds_of_tensors_are_read_or_named():
    weight = torch.randn(6, 4)
    state = {
        "half.weight": weight.half(),
        "eight.weight": weight.to(torch.float8_e4m3fn),
        "sparse.weight": weight.to_sparse(),
        "meta.weight": weight.to("meta"),
        "codes.weight": weight.to(torch.int8),
        "indices": torch.ones(6, 4, dtype=torch.int64),
    }
    with pytest.warns(UserWarning, match=r"meta \(.*no values\); codes \(.*int8.*dequantize"):
        layers = {layer.name: layer for layer in inspect(state)}
    assert list(layers) == ["half", "eight", "sparse"]
    exact = hyperspherical_energy(weight).item()
    for layer in layers.values():
        assert layer.energy == pytest.approx(exact, rel=0.05)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3, device="meta"))
    with pytest.warns(UserWarning, match=r"left out, as it cannot be read: 1 \(.*no values"):
        assert [layer.name for layer in inspect(model)] == ["0"]


FSDP = """
import sys
import torch
from mhe_core import NetworkRegularizer
from mhe_core.diagnostics import inspect
from torch import nn
from torch.distributed.fsdp import fully_shard

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))
torch.save(model.state_dict(), f"{sys.argv[1]}/weights{rank}.pt")
fully_shard(model[0])
fully_shard(model)
reports = inspect(model) + inspect(model.state_dict())
loss = model(torch.ones(2, 4)).sum() * 0 + NetworkRegularizer(model)()
loss.backward()
gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.ndim == 2}
torch.save({"energies": [r.energy for r in reports], "gradients": gradients,
            "near": [r.near_duplicates for r in reports]}, f"{sys.argv[1]}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@fsdp2
def test_a_model_sharded_by_fsdp_is_read_whole(tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(FSDP)
    run_processes(2, script, tmp_path)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))
    model.load_state_dict(torch.load(tmp_path / "weights0.pt"))
    reports = inspect(model)
    NetworkRegularizer(model)().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["energies"] == pytest.approx([r.energy for r in reports] * 2)
        assert found["near"] == [r.near_duplicates for r in reports] * 2
        for name, gradient in found["gradients"].items():
            want = model.get_parameter(name).grad
            torch.testing.assert_close(gradient, want)
