"""The papers' variants against formulas written down anew, loop by loop, in float64."""

import itertools
import math

import pytest
import torch
from mhe_core import create_regularizer
from mhe_uniformity.determinant import JITTER, log_determinants


def neurons_of(N, d):
    return torch.randn(N, d, generator=torch.manual_seed(1), dtype=torch.float64)


def unit(w):
    return w / w.norm()


def both_sides(w):
    return [*w, *(-w)]


def chord(a, b):
    return (unit(a) - unit(b)).norm().item()


def nearest_chords(w):
    return [min(chord(a, b) for j, b in enumerate(w) if j != i) for i, a in enumerate(w)]


def pairs(points):
    return list(itertools.combinations(points, 2))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def spectral(deviation):
    return torch.linalg.matrix_norm(deviation, 2).item()


def minus_log_det(points):
    kernel = torch.tensor([[math.exp(-(chord(a, b) ** 2)) for b in points] for a in points])
    return -torch.logdet(kernel.double() + JITTER * torch.eye(len(points))).item()


def gram_deviation(w):
    return w @ w.T - torch.eye(len(w), dtype=w.dtype)


DEFINITIONS = [
    ("mhs", {}, lambda w: -(min(chord(a, b) for a, b in pairs(both_sides(w))) ** 2)),
    ("mhs", {"half_space": False}, lambda w: -(min(chord(a, b) for a, b in pairs(w)) ** 2)),
    ("mma", {}, lambda w: -mean(2 * math.asin(c / 2) for c in nearest_chords(w))),
    ("regularface", {}, lambda w: mean(1 - c**2 / 2 for c in nearest_chords(w))),
    ("koleo", {}, lambda w: -mean(math.log(c) for c in nearest_chords(w))),
    ("rmhp", {}, lambda w: sum(unit(a) for a in w).norm().item()),
    ("mgd", {"half_space": False}, minus_log_det),
    ("mgd", {}, lambda w: minus_log_det(both_sides(w))),
    ("uniformface", {}, lambda w: mean(1 / (1 + chord(a, b)) for a, b in pairs(w))),
    (
        "uniformity",
        {"t": 3.0},
        lambda w: math.log(mean(math.exp(-3 * chord(a, b) ** 2) for a, b in pairs(w))),
    ),
    ("hug", {}, lambda w: mean(chord(a, b) ** -2 for a, b in pairs(w))),
    ("so", {}, lambda w: gram_deviation(w).norm().item() ** 2),
    ("dso", {}, lambda w: sum(gram_deviation(v).norm().item() ** 2 for v in (w, w.T))),
    ("mc", {}, lambda w: mutual_coherence(smaller(w))),
    ("mc", {"side": "neurons"}, lambda w: mutual_coherence(w)),
    ("srip", {}, lambda w: spectral(gram_deviation(smaller(w)))),
    ("srip", {"variant": "exact", "side": "neurons"}, lambda w: spectral(gram_deviation(w))),
]


def smaller(w):
    return w if len(w) <= w.shape[1] else w.T


def mutual_coherence(w):
    return max(row.abs().sum().item() for row in gram_deviation(w))


@pytest.mark.parametrize(("N", "d"), [(7, 4), (4, 7)])
@pytest.mark.parametrize(("name", "options", "definition"), DEFINITIONS)
def test_value_is_the_papers(name, options, definition, N, d):
    neurons = neurons_of(N, d)
    value = create_regularizer(name, N, d, **options)(neurons)
    assert value.item() == pytest.approx(definition(neurons), rel=1e-6)


@pytest.mark.parametrize("half_space", [True, False])
@pytest.mark.parametrize("name", ["mhp", "mhc"])
def test_loss_at_a_pole_is_the_papers(name, half_space):
    neurons = neurons_of(7, 4)
    regularizer = create_regularizer(name, 7, 4, half_space=half_space).double()
    pole = regularizer.poles[0]
    squares = [chord(pole, w) ** 2 for w in (both_sides(neurons) if half_space else neurons)]
    wanted = -mean(1 / q for q in squares)
    if name == "mhc":
        wanted = -0.1 * math.log(mean(math.exp(-10 * q) for q in squares))
    assert regularizer(neurons).item() == pytest.approx(wanted, rel=1e-9)


DESCENTS = [
    ("mhs", {"half_space": False}, 0.05),
    ("mma", {}, 0.3),
    ("regularface", {}, 0.3),
    ("koleo", {}, 0.3),
    ("uniformface", {}, 6.0),
    ("uniformity", {}, 0.3),
    ("hug", {}, 1.0),
    ("mgd", {"half_space": False}, 0.6),
]


@pytest.mark.parametrize(("name", "options", "lr"), DESCENTS)
def test_descent_finds_the_simplex(name, options, lr):
    """Four directions in three dimensions are furthest apart as a regular tetrahedron's corners."""
    neurons = neurons_of(4, 3).requires_grad_()
    regularizer = create_regularizer(name, 4, 3, **options)
    for step in range(300):
        (slope,) = torch.autograd.grad(regularizer(neurons), neurons)
        with torch.no_grad():
            neurons -= lr * 0.985**step * slope
    angles = [2 * math.asin(chord(a, b) / 2) for a, b in pairs(neurons.detach())]
    assert angles == pytest.approx([math.acos(-1 / 3)] * 6, abs=0.05)


@pytest.mark.parametrize("name", ["so", "dso", "mc", "srip"])
def test_orthonormal_neurons_are_what_orthogonality_wants(name):
    neurons, _ = torch.linalg.qr(neurons_of(6, 4))
    value = create_regularizer(name, 6, 4)(neurons)
    assert value.item() == pytest.approx({"so": 2, "dso": 2}.get(name, 0), abs=1e-9)


def test_log_determinant_stays_finite_where_choleskys_factorization_fails():
    """Of a matrix that rounding has made indefinite: eigenvalues 5 and below the jitter."""
    vectors, _ = torch.linalg.qr(neurons_of(4, 4))
    eigenvalues = torch.tensor([5.0, 2.0, 1e-9, -1e-4], dtype=torch.float64)
    kernel = ((vectors * eigenvalues) @ vectors.T).requires_grad_()
    value = log_determinants(kernel)
    expected = math.log(5 + JITTER) + math.log(2 + JITTER) + math.log(1e-9 + JITTER)
    assert value.item() == pytest.approx(expected + math.log(JITTER), rel=1e-6)
    value.backward()
    assert kernel.grad.isfinite().all()
    assert torch.trace(vectors.T @ kernel.grad @ vectors).item() == pytest.approx(
        sum(1 / max(e + JITTER, JITTER) for e in eigenvalues.tolist()), rel=1e-6
    )


def test_log_determinant_is_finite_in_float32_where_the_program_has_nan(stored):
    neurons = stored["300x3/neurons"].float().requires_grad_()
    value = create_regularizer("mgd", 300, 3, variant="released", half_space=True)(neurons)
    value.backward()
    assert value.item() == pytest.approx(stored["MGD|half|300x3/loss"].item(), rel=1e-4)
    assert neurons.grad.isfinite().all()
