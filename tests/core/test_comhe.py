"""CoMHE: the published programs' values, a plain loop's, and what happens over a training run."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from mhe_core import NetworkRegularizer, create_regularizer, hyperspherical_energy
from mhe_core.testing import check_regularizer
from support.forks import run_processes
from torch import Tensor, nn

REFERENCE = np.load(Path(__file__).parent / "reference_energy.npz")
SMALL = {
    "comhe_random": {"projection_dim": 4, "num_projections": 3},
    "comhe_angle": {"projection_dim": 4},
    "comhe_adversarial": {"projection_dim": 4, "inner_steps": 3},
    "comhe_group": {"num_groups": 3, "group_dim": 4},
}
LEARNED = ("comhe_angle", "comhe_adversarial")
N, D = 6, 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name: str, **hyperparameters: object) -> nn.Module:
    return create_regularizer(name, N, D, **({"seed": 0} | SMALL[name] | hyperparameters)).double()


def reference(case: str, field: str) -> Tensor:
    return torch.from_numpy(np.asarray(REFERENCE[f"{case}|3x3x8x10/{field}"])).double()


def assert_matches(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# Against the published programs


@pytest.mark.parametrize(
    ("case", "name", "hyperparameters"),
    [
        ("comhe_first", "comhe_random", {"projection_dim": 72}),
        ("comhe_rp|pd12_pn4", "comhe_random", {"projection_dim": 12, "num_projections": 4}),
        ("comhe_ap|pd12_lr0.1", "comhe_angle", {"projection_dim": 12}),
        ("comhe_adv|pd12_lr0.1", "comhe_adversarial", {"projection_dim": 12}),
    ],
)
def test_published_loss_and_gradient(case, name, hyperparameters):
    regularizer = create_regularizer(name, 10, 72, convention="released_code", **hyperparameters)
    neurons = reference(case, "neurons").requires_grad_()
    if case != "comhe_first":
        regularizer.projection.copy_(reference(case, "projection"))
    if name in LEARNED:
        regularizer.lr.fill_(0.1)
    loss = regularizer(neurons)
    assert_matches(loss, reference(case, "loss"), 1e-6)
    assert_matches(torch.autograd.grad(loss, neurons)[0], reference(case, "grad"), 5e-6)


@pytest.mark.parametrize(
    ("case", "name", "sign"),
    [("comhe_ap|pd12_lr0.1", "comhe_angle", 1), ("comhe_adv|pd12_lr0.1", "comhe_adversarial", -1)],
)
def test_published_inner_objective_and_gradient(case, name, sign):
    regularizer = create_regularizer(name, 10, 72, projection_dim=12, convention="released_code")
    projection = reference(case, "projection").requires_grad_()
    loss = sign * regularizer.objective(reference(case, "neurons"))(projection)
    assert_matches(loss, reference(case, "projection_loss"), 1e-6)
    gradient = torch.autograd.grad(loss, projection)[0]
    assert_matches(gradient, reference(case, "projection_grad"), 5e-6)


# Against a plain loop


def looped_energy(rows: Tensor, s: float, half_space: bool) -> Tensor:
    u = [row / row.norm() for row in rows]
    u += [-v for v in u] if half_space else []
    chords = [(v - w).norm() for v, w in itertools.combinations(u, 2)]
    return sum(-z.log() if s == 0 else z**-s for z in chords) / len(chords)


@pytest.mark.parametrize("half_space", [True, False])
@pytest.mark.parametrize("s", [0, 1, 2])
def test_random_is_the_mean_of_the_projections_energies(s, half_space):
    regularizer = made("comhe_random", s=s, half_space=half_space)
    neurons = normal(N, D)
    energies = [looped_energy(neurons @ P.mT, s, half_space) for P in regularizer.projection]
    torch.testing.assert_close(regularizer(neurons), sum(energies) / 3)


def test_group_is_the_mean_of_the_groups_energies():
    regularizer = made("comhe_group")
    neurons = normal(N, D)
    energies = [looped_energy(neurons[:, group], 2, True) for group in regularizer.projection]
    torch.testing.assert_close(regularizer(neurons), sum(energies) / 3)


def looped_objective(name: str, neurons: Tensor, projection: Tensor, s: float) -> Tensor:
    projected = [projection @ w for w in neurons]
    if name == "comhe_adversarial":
        return -looped_energy(torch.stack(projected), s, half_space=False)
    cosine = torch.nn.functional.cosine_similarity
    errors = [
        cosine(projected[i], projected[j], dim=0) - cosine(neurons[i], neurons[j], dim=0)
        for i, j in itertools.product(range(len(neurons)), repeat=2)
        if i != j
    ]
    return torch.stack(errors).square().sum().sqrt()


@pytest.mark.parametrize("s", [0, 2])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_projections_take_inner_steps_and_one_that_is_differentiated(name, s):
    lr, steps = 0.05, 3
    regularizer = made(name, s=s, inner_steps=steps)
    neurons = normal(N, D).requires_grad_()
    units = neurons / neurons.norm(dim=1, keepdim=True)
    P = regularizer.projection.clone()

    def stepped(P: Tensor, rows: Tensor) -> Tensor:
        P = P.detach().requires_grad_()
        objective = looped_objective(name, rows, P, s)
        return P - lr * torch.autograd.grad(objective, P, create_graph=True)[0]

    for _ in range(steps):
        P = stepped(P, units.detach()).detach()
    expected = looped_energy(units @ stepped(P, units).mT, s, half_space=True)
    regularizer.update(neurons, lr)
    actual = regularizer(neurons)
    torch.testing.assert_close(regularizer.projection, P)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(value, neurons)[0] for value in (actual, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("distance", ["euclidean", "angular"])
@pytest.mark.parametrize("convention", ["paper", "released_code"])
@pytest.mark.parametrize("name", SMALL)
def test_gradient_is_that_of_finite_differences(name, convention, distance):
    regularizer = made(name, convention=convention, distance=distance)
    neurons = normal(2, N, D).requires_grad_()
    regularizer.update(neurons, 0.1)
    assert torch.autograd.gradcheck(regularizer, neurons)


# The options


@pytest.mark.parametrize("name", LEARNED)
def test_without_second_order_the_projection_is_a_constant(name):
    regularizer = made(name, second_order=False)
    neurons = normal(N, D).requires_grad_()
    regularizer.update(neurons, 0.1)
    energy = regularizer(neurons)
    plain = hyperspherical_energy(neurons @ regularizer.projection.mT, half_space=True)
    torch.testing.assert_close(energy, plain)
    torch.testing.assert_close(
        torch.autograd.grad(energy, neurons)[0], torch.autograd.grad(plain, neurons)[0]
    )


@pytest.mark.parametrize("name", LEARNED)
def test_zero_inner_steps_leave_the_projection_but_for_the_differentiated_step(name):
    regularizer, neurons = made(name, inner_steps=0), normal(N, D)
    before, plain = regularizer.projection.clone(), regularizer(neurons)
    regularizer.update(neurons, 0.5)
    assert torch.equal(regularizer.projection, before)
    assert regularizer(neurons) != plain


@pytest.mark.parametrize("convention", ["paper", "released_code"])
def test_inner_steps_lower_the_angle_loss(convention):
    regularizer = made("comhe_angle", convention=convention)
    neurons = normal(N, D)
    losses = []
    for _ in range(20):
        losses.append(regularizer.objective(neurons)(regularizer.projection).item())
        regularizer.update(neurons, 0.05)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("convention", ["paper", "released_code"])
def test_inner_steps_raise_the_energy_of_an_adversary(convention):
    regularizer = made("comhe_adversarial", convention=convention)
    neurons = normal(N, D)
    energies = []
    for _ in range(10):
        projected = neurons @ regularizer.projection.mT
        energies.append(hyperspherical_energy(projected, convention=convention).item())
        regularizer.update(neurons, 1e-4)  # higher rates step past a pair that coincides
    assert energies == sorted(energies)
    assert energies[-1] > 1.03 * energies[0]


def test_weight_decay_of_the_published_programs_is_theirs_alone():
    parallel = normal(1, D).expand(N, D)  # no angle to change: the gradient is zero
    for convention, factor in (("paper", 1.0), ("released_code", 1 - 1e6 * 5e-7)):
        regularizer = made("comhe_angle", convention=convention)
        before = regularizer.projection.clone()
        regularizer.update(1e5 * parallel, 1e6)
        torch.testing.assert_close(regularizer.projection, factor * before, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("half_space", [True, False])
def test_nothing_is_projected_where_the_dimension_is_low(name, half_space):
    size = "group_dim" if name == "comhe_group" else "projection_dim"
    regularizer = made(name, half_space=half_space, **{size: D})
    neurons = normal(N, D)
    regularizer.update(neurons, 0.1)
    assert "projection" not in regularizer.state_dict()
    expected = hyperspherical_energy(neurons, half_space=half_space)
    torch.testing.assert_close(regularizer(neurons), expected)


@pytest.mark.parametrize("name", SMALL)
def test_groups_of_neurons_share_the_projection_and_are_averaged(name):
    """As in a grouped convolution."""
    regularizer = made(name, **({"inner_steps": 0} if name in LEARNED else {}))
    neurons = normal(3, N, D)
    torch.testing.assert_close(
        regularizer(neurons), sum(regularizer(group) for group in neurons) / 3
    )
    regularizer.update(neurons, 0.1)
    assert regularizer(neurons).shape == ()


@pytest.mark.parametrize("name", SMALL)
def test_anchors_are_held_against_all(name):
    regularizer, neurons = made(name), normal(N, D)
    torch.testing.assert_close(regularizer(neurons, torch.arange(N)), regularizer(neurons))
    assert regularizer(neurons, torch.tensor([0, 1])) != regularizer(neurons)


def test_shapes_of_the_projection():
    shapes = {name: list(made(name).projection.shape) for name in SMALL}
    learned = [4, D]
    assert shapes == {
        "comhe_random": [3, 4, D],
        "comhe_angle": learned,
        "comhe_adversarial": learned,
        "comhe_group": [3, 4],
    }


# Over a training run


@pytest.mark.parametrize("interval", [0, 1, 3])
def test_redraws_come_at_their_interval(interval):
    regularizer, neurons = made("comhe_random", redraw_interval=interval), normal(N, D)
    drawn = [regularizer.projection.clone()]
    for _ in range(7):
        regularizer.update(neurons, 0.1)
        drawn.append(regularizer.projection.clone())
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(drawn)]
    assert changes == [bool(interval) and t % interval == 0 for t in range(1, 8)]
    assert len({float(p.sum()) for p in drawn}) == 1 + sum(changes)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_run_continues_to_the_bit(name, seed):
    """From a state dict taken halfway, in a regularizer that was made under another seed."""

    def steps(regularizer: nn.Module, times: range) -> list[float]:
        energies = []
        for t in times:
            neurons = normal(N, D, seed=t)
            regularizer.update(neurons, 0.1 / (t + 1))
            energies.append(regularizer(neurons).item())
        return energies

    options = {"redraw_interval": 2} if name == "comhe_random" else {}
    torch.manual_seed(0)
    original = made(name, seed=seed, **options)
    steps(original, range(5))
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    resumed = made(name, seed=seed, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    torch.rand(5)
    assert steps(resumed, range(5, 10)) == steps(original, range(5, 10))


@pytest.mark.parametrize("name", SMALL)
def test_layers_share_projections_by_their_seed(name):
    neurons = normal(N, D)
    one, same, other = (made(name, seed=seed) for seed in (1, 1, 2))
    for _ in range(2):
        assert torch.equal(one.projection, same.projection)
        assert not torch.equal(one.projection, other.projection)
        for regularizer in (one, same, other):
            regularizer.update(neurons, 0.1)
    torch.manual_seed(0)
    first, second = made(name, seed=None), made(name, seed=None)
    assert not torch.equal(first.projection, second.projection)
    torch.manual_seed(0)
    assert torch.equal(made(name, seed=None).projection, first.projection)


@pytest.mark.parametrize("name", SMALL)
def test_update_and_forward_leave_the_global_generator_alone(name):
    regularizer, neurons = made(name), normal(N, D)
    state = torch.get_rng_state()
    regularizer.update(neurons, 0.1)
    regularizer(neurons)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", SMALL)
def test_the_value_is_the_same_without_a_graph(name, mode):
    regularizer, weight = made(name), nn.Parameter(normal(N, D))
    regularizer.update(weight, 0.1)
    value = regularizer(weight)
    with mode():
        plain = regularizer(weight.view(N, D))
        again = regularizer(weight * 1.0)
    assert value.requires_grad
    assert not plain.requires_grad
    assert plain.item() == again.item()
    # Rounded otherwise: an adversary's step takes the definition's gradient where it is to be
    # differentiated, and the tiles' where not.
    assert plain.item() == pytest.approx(value.item(), rel=1e-14)


@pytest.mark.parametrize("name", SMALL)
def test_autocast_does_not_reach_the_projection(name):
    regularizer, neurons = made(name).float(), normal(N, D).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        regularizer.update(neurons, 0.1)
        inside = regularizer(neurons)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, regularizer(neurons))


RANKS = """
import sys, torch, torch.distributed as dist
from mhe_core import create_regularizer
dist.init_process_group("gloo")
rank, folder = dist.get_rank(), sys.argv[1]
torch.manual_seed(rank)  # the ranks do not even agree on a seed
states = {}
for name in ("comhe_random", "comhe_angle", "comhe_adversarial", "comhe_group"):
    regularizer = create_regularizer(name, 6, 50)
    neurons = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        regularizer.update(neurons, 0.1)
    states[name] = regularizer.state_dict()
torch.save(states, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_all_ranks_of_a_distributed_run_have_the_same_projections(tmp_path):
    (tmp_path / "program.py").write_text(RANKS)
    run_processes(2, tmp_path / "program.py", tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in SMALL:
        assert first[name].keys() == second[name].keys()
        assert all(torch.equal(first[name][key], second[name][key]) for key in first[name])


@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_regularized(name):
    """Gradient descent on the energy alone lowers it, grouped and low-dimensional layers too."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=2), nn.Flatten(), nn.Linear(16, 8)]
    model = nn.Sequential(*layers)
    regularizer = NetworkRegularizer(model, hidden=name, output=name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    energies = []
    for _ in range(40):
        regularizer.update(lr=0.01)
        energy = regularizer()
        optimizer.zero_grad()
        energy.backward()
        optimizer.step()
        energies.append(energy.item())
    assert np.mean(energies[-5:]) < np.mean(energies[:5])


# Whatever comes


@pytest.mark.parametrize("convention", ["paper", "released_code"])
@pytest.mark.parametrize("name", SMALL)
def test_conforms(name, convention):
    check_regularizer(name, 16, 12, convention=convention, **SMALL[name])


ROWS = normal(N, D).float()
DIFFICULT = {
    "duplicates": torch.cat([ROWS, ROWS[:2]]),
    "antipodes": torch.cat([ROWS, -ROWS[:2]]),
    "nearly duplicates": torch.cat([ROWS, ROWS[:2] + 1e-6 * ROWS[2:4]]),
    "all equal": ROWS[:1].repeat(N, 1),
    "nearly all equal": ROWS[:1] + 1e-5 * ROWS,
    "a zero row": torch.cat([ROWS, torch.zeros(1, D)]),
    "only zeros": torch.zeros(N, D),
    "one neuron": ROWS[:1],
    "tiny": 1e-30 * ROWS,
    "huge": 1e37 * ROWS,
    "of any length": ROWS * torch.logspace(-30, 30, N).unsqueeze(1),
}


@pytest.mark.parametrize("neurons", DIFFICULT.values(), ids=DIFFICULT.keys())
@pytest.mark.parametrize("name", SMALL)
def test_value_gradient_and_projection_stay_finite(name, neurons):
    options = (("paper", "released_code"), ("euclidean", "angular"), (0, 2, 8), (True, False))
    for convention, distance, s, half_space in itertools.product(*options):
        regularizer = made(
            name, convention=convention, distance=distance, s=s, half_space=half_space
        ).float()
        leaf = neurons.clone().requires_grad_()
        for _ in range(3):
            regularizer.update(leaf, 1.0)
            energy = regularizer(leaf)
            (gradient,) = torch.autograd.grad(energy, leaf)
            assert energy.isfinite()
            assert gradient.isfinite().all()
            assert regularizer.projection.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_by_the_definition_lengths_do_not_matter(name):
    neurons, lengths = normal(N, D), normal(N, 1, seed=1).exp()
    if name in LEARNED:
        one, other = made(name), made(name)
        one.update(neurons, 0.1)
        other.update(lengths * neurons, 0.1)
        torch.testing.assert_close(one(neurons), other(lengths * neurons))
    else:
        torch.testing.assert_close(made(name)(neurons), made(name)(lengths * neurons))


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("comhe_random", {"projection_dim": 0}, "expected projection_dim as an integer ≥ 1, got 0"),
        ("comhe_random", {"num_projections": 1.5}, "expected num_projections as an integer ≥ 1"),
        ("comhe_random", {"redraw_interval": -1}, "expected redraw_interval as an integer ≥ 0"),
        ("comhe_random", {"seed": -1}, "expected seed as an integer ≥ 0, got -1"),
        ("comhe_angle", {"inner_steps": -1}, "expected inner_steps as an integer ≥ 0, got -1"),
        ("comhe_adversarial", {"projection_dim": True}, "expected projection_dim as an integer"),
        ("comhe_group", {"num_groups": 0}, "expected num_groups as an integer ≥ 1, got 0"),
        ("comhe_group", {"group_dim": "4"}, "expected group_dim as an integer ≥ 1, got '4'"),
        ("comhe_group", {"s": -1}, "expected s as a finite number ≥ 0, got -1"),
        ("comhe_random", {"inner_steps": 1}, "inner_steps"),
    ],
)
def test_bad_hyperparameters_are_named(name, hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        made(name, **hyperparameters)


@pytest.mark.parametrize("name", SMALL)
def test_neurons_of_another_dimension_are_refused(name):
    for call in (made(name), lambda neurons: made(name).update(neurons, 0.1)):
        with pytest.raises(
            ValueError, match=r"expected neurons as rows, \[..., N, 12\], got \[6, 5"
        ):
            call(normal(N, 5))
