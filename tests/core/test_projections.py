"""Projections: applied, drawn and trained, each against a plain formulation in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mhe_core.regularizers.projections import (
    angle_objective,
    cosine_matrix,
    dimension_groups,
    draw_gaussian_,
    gradient_step,
    project,
    select,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_all_projections_at_once_are_each_of_them():
    neurons, projections = normal(2, 5, 7), normal(3, 4, 7, seed=1)
    projected = project(neurons, projections)
    assert projected.shape == (2, 3, 5, 4)
    for group in range(2):
        for p in range(3):
            for i in range(5):
                expected = projections[p] @ neurons[group, i]
                torch.testing.assert_close(projected[group, p, i], expected)
    torch.testing.assert_close(project(neurons, projections[1]), projected[:, 1])


def test_a_projection_is_taken_in_the_neurons_dtype():
    assert project(normal(5, 7).float(), normal(3, 7)).dtype == torch.float32


def test_groups_select_their_dimensions():
    neurons, groups = normal(2, 5, 7), torch.tensor([[6, 0], [1, 3], [0, 5]])
    selected = select(neurons, groups)
    assert selected.shape == (2, 3, 5, 2)
    for g, (a, b) in enumerate(groups.tolist()):
        assert torch.equal(selected[:, g], torch.stack([neurons[..., a], neurons[..., b]], -1))


def test_draws_are_a_function_of_seed_count_and_shape():
    def drawn(seed: int, count: int, *shape: int) -> torch.Tensor:
        return draw_gaussian_(torch.empty(shape), seed, count)

    state = torch.get_rng_state()
    one = drawn(5, 2, 3, 4, 20)
    torch.randn(10)
    assert torch.equal(one, drawn(5, 2, 3, 4, 20))
    for other in (drawn(5, 3, 3, 4, 20), drawn(6, 2, 3, 4, 20), drawn(2, 5, 3, 4, 20)):
        assert (one != other).all()
    assert abs(torch.corrcoef(torch.stack([drawn(0, 0, 9999), drawn(0, 1, 9999)]))[0, 1]) < 0.05
    torch.set_rng_state(state)
    drawn(5, 2, 3, 4, 20)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    one, more = torch.empty(2, 30, 999), torch.empty(2, 30, 999)
    try:
        torch.set_num_threads(1)
        draw_gaussian_(one, 3, 1)
        torch.set_num_threads(3)
        draw_gaussian_(more, 3, 1)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, more)
    quarters = torch.stack(one.view(-1).chunk(4))
    assert (torch.corrcoef(quarters) - torch.eye(4)).abs().max() < 0.05


def test_draws_are_standard_normal():
    sample = draw_gaussian_(torch.empty(100, 1000, dtype=torch.float64), 0, 0)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert sample.pow(power).mean().item() == pytest.approx(moment, abs=0.2)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(1, 30), st.data())
def test_groups_are_disjoint_as_far_as_the_dimension_allows(dim, num_groups, data):
    group_dim = data.draw(st.integers(1, dim))
    groups = dimension_groups(dim, num_groups, group_dim, seed=3)
    assert groups.shape == (num_groups, group_dim)
    assert torch.equal(groups, dimension_groups(dim, num_groups, group_dim, seed=3))
    assert set(groups.flatten().tolist()) <= set(range(dim))
    assert all(len(set(group)) == group_dim for group in groups.tolist())
    disjoint = dim // group_dim
    for first in range(0, num_groups, disjoint):  # each round of a permutation
        together = groups[first : first + disjoint].flatten().tolist()
        assert len(set(together)) == len(together)


def test_groups_differ_between_seeds():
    assert not torch.equal(dimension_groups(60, 2, 30, seed=0), dimension_groups(60, 2, 30, seed=1))


def looped_angle_loss(neurons: torch.Tensor, projection: torch.Tensor, smooth: float):
    total = torch.zeros((), dtype=torch.float64)
    for v in neurons:
        for w in neurons:
            cosines = [
                (a @ b) / ((a @ a + smooth).sqrt() * (b @ b + smooth).sqrt())
                for a, b in ((v, w), (projection @ v, projection @ w))
            ]
            total = total + (cosines[1] - cosines[0]) ** 2
    return total.sqrt()


@pytest.mark.parametrize(("convention", "smooth"), [("paper", 0.0), ("released_code", 1e-4)])
def test_angle_objective_is_the_norm_of_the_change_of_cosines(convention, smooth):
    neurons, projection = normal(5, 8) * 0.1, normal(3, 8, seed=1)
    expected = looped_angle_loss(neurons, projection, smooth)
    torch.testing.assert_close(angle_objective(neurons, convention)(projection), expected)
    both = torch.stack([neurons, normal(5, 8, seed=2)])
    expected = (expected + looped_angle_loss(both[1], projection, smooth)) / 2
    torch.testing.assert_close(angle_objective(both, convention)(projection), expected)


@pytest.mark.parametrize("convention", ["paper", "released_code"])
def test_angle_objective_has_two_derivatives(convention):
    neurons = normal(4, 6).requires_grad_()
    projection = normal(3, 6, seed=1).requires_grad_()

    def objective(neurons, projection):
        return angle_objective(neurons, convention)(projection)

    assert torch.autograd.gradcheck(objective, (neurons, projection))
    assert torch.autograd.gradgradcheck(objective, (neurons, projection))


def test_a_rotation_preserves_all_angles():
    rotation = torch.linalg.qr(normal(6, 6))[0].requires_grad_()
    neurons = normal(4, 6, seed=1).requires_grad_()
    loss = angle_objective(neurons, "paper")(rotation)
    (gradient,) = torch.autograd.grad(loss, rotation, create_graph=True)
    assert loss == 0
    assert (gradient == 0).all()
    (second,) = torch.autograd.grad(gradient.sum(), neurons, materialize_grads=True)
    assert (second == 0).all()


def test_cosines_of_a_zero_neuron_are_zero():
    neurons = torch.cat([normal(2, 3), torch.zeros(1, 3, dtype=torch.float64)])
    assert (cosine_matrix(neurons, "paper")[2] == 0).all()


def test_a_gradient_step_descends():
    projection, target, lr = normal(3, 4), normal(3, 4, seed=1), torch.tensor(0.1)

    def squares(p: torch.Tensor) -> torch.Tensor:
        return (p - target).square().sum() / 2

    expected = projection - 0.1 * (projection - target) - 0.1 * 0.01 * projection
    stepped = gradient_step(squares, projection, lr, weight_decay=0.01)
    torch.testing.assert_close(stepped, expected)
    assert torch.equal(projection, normal(3, 4))
    assert not stepped.requires_grad


def test_a_steep_step_is_shortened():
    projection = normal(3, 4)
    for slope in (1e3, 1e30):
        stepped = gradient_step(lambda p, k=slope: k * p.sum(), projection, torch.tensor(1.0))
        torch.testing.assert_close((stepped - projection).abs().max(), projection.abs().max())
    still = gradient_step(lambda p: (0 * p).sum(), projection, torch.tensor(1.0))
    assert torch.equal(still, projection)


def test_angles_are_kept_better_in_more_dimensions():
    """The error of the angle falls about as 1/√k (Johnson and Lindenstrauss)."""
    neurons = normal(40, 500)
    rows, columns = torch.triu_indices(40, 40, 1)
    angles = cosine_matrix(neurons, "paper")[rows, columns].acos()
    errors = []
    for k in (5, 20, 80, 320):
        projections = draw_gaussian_(torch.empty(20, k, 500, dtype=torch.float64), 0, 0)
        projected = cosine_matrix(project(neurons, projections), "paper")[:, rows, columns].acos()
        errors.append((projected - angles).abs().mean().item())
    for coarse, fine in itertools.pairwise(errors):
        assert 0.4 < fine / coarse < 0.6
