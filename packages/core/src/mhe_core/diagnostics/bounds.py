r"""How low the hyperspherical energy of N directions in d dimensions can be, and what chance gives.

Both are for the energy of the definition (:func:`mhe_core.hyperspherical_energy` with
``convention="paper"``): the mean over pairs of a decreasing, convex potential f of the chord or
the angle. Full space means N directions, half-space the 2N directions {u, −u}.

**Lower bound.** For N ≤ d+1 the chord's energy is least at the regular simplex (all cosines
−1/(N−1)), for half-space and N ≤ d at orthogonal axes: there the bound is attained. Beyond, it is
not attained except by a few very symmetric configurations, and it comes from:

* *full space, chord*: the universal lower bound of Boyvalenkov, Dragnev, Hardin, Saff and
  Stoyanova (*Universal lower bounds for potential energy of spherical codes*, 2016), after
  Levenshtein and Yudin. Over all pairs of N directions, a direction with itself included, the mean
  of every Gegenbauer polynomial of the cosine is at least 0. Take the density of the cosine of
  random directions less a mass of 1/N at 1 (a direction with itself) and its Gauss rule, Radau if
  the degree is even: the potential's sum over the rule's nodes is a lower bound, because the
  polynomial that interpolates the potential there lies below it. The simplex (N ≤ d+1), regular
  polygons (d = 2), the cross-polytope (N = 2d) and the icosahedron attain it.
* *half-space*: the mean squared cosine is at least (N−d)/(d(N−1)) (Welch, 1974), and a pair's
  potentials f(c) + f(−c) are convex and increasing in c²; attained by equiangular tight frames.
* *full space, angle*: a great sphere drawn at random separates two directions with probability
  angle/π, and N directions into at most ⌊N/2⌋·⌈N/2⌉ pairs, so that the mean angle is at most
  π⌊N²/4⌋/(N(N−1)/2), and the energy at least f of that. Where the tangent of the potential as a
  function of the cosine stays below it, the simplex does better. (For angles the simplex is *not*
  always the minimum: for s = 0 two orthogonal pairs of antipodes beat the tetrahedron.)

**Random directions.** The energy of independent, uniformly distributed directions is the energy of
the uniform distribution. It is an *upper* bound of the least energy of N directions for every N,
since it is a mean over configurations; as N grows, for s < d−1, the least energy rises to it. For
s ≥ d−1 it is infinite.
"""

from __future__ import annotations

import functools
import math
import sys

import torch
from torch import Tensor

from mhe_core.energy.potential import DistanceName, Riesz

__all__ = ["lower_bound", "random_angle_density", "random_energy"]

HIGHEST_DEGREE = 40  # of a Gauss rule; more directions than it is made for take its bound
LARGEST_LOG = math.log(sys.float_info.max)


def lower_bound(
    N: int, d: int, s: float = 2.0, distance: DistanceName = "euclidean", half_space: bool = False
) -> float:
    r"""An energy that no configuration of N directions in d dimensions can go below.

    For N ≤ d + 1 and the chord, it is that of the simplex,

    .. math:: f\left(\sqrt{2 + 2 / (N - 1)}\right), \qquad f(z) = z^{-s}, \; \log (1/z) \;(s = 0),

    in half space and N ≤ d that of orthogonal axes. Beyond, it is the universal lower bound of
    spherical codes (Boyvalenkov et al., Constructive Approximation 44, 2016), in half space one
    from Welch's (1974); for angles, from the largest mean angle. All are derived in the description
    of this module, :mod:`mhe_core.diagnostics.bounds`.

    Args:
        N: number of neurons, at least 1.
        d: their dimension, at least 1.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        half_space: of the half-space energy.

    Returns:
        The bound; infinite where directions must coincide (d = 1).

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> round(lower_bound(4, 3, s=1), 6)  # the tetrahedron: six pairs at a chord of √(8/3)
        0.612372
        >>> round(lower_bound(12, 3, s=1) * 66, 4)  # the icosahedron, Thomson's problem for 12
        49.1653
        >>> round(lower_bound(3, 3, half_space=True), 6)  # orthogonal axes
        0.45
    """
    check_sizes(N, d)
    Riesz(s, distance)  # checks them
    if half_space:
        squared_cosine = max(0.0, (N - d) / (d * (N - 1))) if N > 1 else 0.0
        c = math.sqrt(squared_cosine)
        both_sides = potential(c, s, distance) + potential(-c, s, distance)
        return half_space_mean(N, both_sides, s, distance)
    if N == 1:
        return 0.0
    if d == 1 and N > 2:
        return math.inf
    if distance == "angular":
        return angular_bound(N, d, s)
    if d + 1 >= N:
        return potential(-1 / (N - 1), s, distance)
    return universal_bound(N, d, s)


def random_energy(
    N: int, d: int, s: float = 2.0, distance: DistanceName = "euclidean", half_space: bool = False
) -> float:
    r"""Expected energy of N independent, uniformly distributed directions in d dimensions.

    The angle θ of two such directions has a density proportional to :math:`\sin^{d-2}\theta`. For
    the chord the mean potential has a closed form: with a = (d−1)/2, (1−cos θ)/2 is
    Beta(a, a)-distributed, hence

    .. math:: 4^{-s/2}\,\frac{\Gamma(a - s/2)\,\Gamma(2a)}{\Gamma(a)\,\Gamma(2a - s/2)},
              \qquad -\log 2 - (\psi(a) - \psi(2a))/2 \;(s = 0).

    For the angle it is a one-dimensional quadrature. In half-space, each neuron's antipode is
    added.

    Args:
        N: number of neurons, at least 1 (in full space the value does not depend on it).
        d: their dimension, at least 1.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        half_space: of the half-space energy.

    Returns:
        The expected energy; infinite for s ≥ d−1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> round(random_energy(64, 3, s=1), 6)  # the mean inverse chord of the unit sphere
        1.0
    """
    check_sizes(N, d)
    Riesz(s, distance)  # checks them
    if N == 1:
        return potential(-1.0, s, distance) if half_space else 0.0
    if s >= d - 1:
        return math.inf
    mean = mean_chord_potential(d, s) if distance == "euclidean" else mean_angle_potential(d, s)
    return half_space_mean(N, 2 * mean, s, distance) if half_space else mean


def random_angle_density(d: int, angles: Tensor) -> Tensor:
    r"""Density of the angle between two independent, uniformly distributed directions.

    .. math:: p(\theta) = \frac{\Gamma(d/2)}{\sqrt{\pi}\,\Gamma((d-1)/2)} \sin^{d-2}\theta

    Args:
        d: their dimension, at least 2.
        angles: in radians, in [0, π], any shape.

    Returns:
        The density, per radian, of the shape of ``angles``.
    """
    factor = math.lgamma(d / 2) - math.lgamma((d - 1) / 2) - math.log(math.pi) / 2
    if d == 2:
        return torch.full_like(angles, math.exp(factor))
    return torch.exp(factor + (d - 2) * angles.sin().clamp_min(0.0).log())


def potential(cosine: float, s: float, distance: DistanceName) -> float:
    """f_s of a pair with the given cosine."""
    return Riesz(s, distance).of_cosine(cosine)


def half_space_mean(N: int, both_sides: float, s: float, distance: DistanceName) -> float:
    """Mean over the N(2N−1) pairs of {u, −u} where f(c) + f(−c) is ``both_sides`` in the mean."""
    antipodes = N * potential(-1.0, s, distance)
    between = N * (N - 1) * both_sides if N > 1 else 0.0
    return (between + antipodes) / (N * (2 * N - 1))


def angular_bound(N: int, d: int, s: float) -> float:
    """Lower bound of the full-space energy of angles, N ≥ 2."""
    largest_mean_angle = math.pi * (N * N // 4) / (N * (N - 1) / 2)
    bound = potential(math.cos(largest_mean_angle), s, "angular")
    n = min(N, d + 1)  # more directions than n have no less energy
    if n < 3:
        return bound
    cosine = -1 / (n - 1)
    angle = math.acos(cosine)
    at_simplex = potential(cosine, s, "angular")
    slope = (s * angle ** (-s - 1) if s else 1 / angle) / math.sin(angle)
    # As a function of the cosine the potential is concave near −1 and convex from there on.
    convex = (s + 1) * math.sin(angle) + angle * math.cos(angle) >= 0
    if convex and potential(-1.0, s, "angular") >= at_simplex - slope * (1 + cosine):
        bound = max(bound, at_simplex)
    return bound


def universal_bound(N: int, d: int, s: float) -> float:
    """Universal lower bound of the full-space energy of chords, N ≥ 2 directions in d ≥ 2."""
    degree = 1
    while degree < HIGHEST_DEGREE and levenshtein_size(d, degree + 1) <= N:
        degree += 1
    # More directions than the next degree begins with have no less energy than that many.
    N = min(N, levenshtein_size(d, degree + 1))
    k = (degree + 1) // 2
    nodes, weights = cosine_rule(d, k + 1)
    nodes = torch.cat([nodes, torch.ones(1, dtype=torch.float64)])
    weights = torch.cat([weights, torch.full((1,), -1 / N, dtype=torch.float64)])
    mass = 1 - 1 / N
    if degree % 2:
        nodes, weights = gauss_rule(nodes, weights, k)
    else:  # Gauss–Radau: a node at −1
        inner, weighted = gauss_rule(nodes, weights * (1 + nodes), k)
        weights = weighted / (1 + inner)
        nodes = torch.cat([inner, -torch.ones(1, dtype=torch.float64)])
        weights = torch.cat([weights, (mass - weights.sum()).reshape(1)])
    values = [potential(min(c, 1.0), s, "euclidean") for c in nodes.tolist()]
    total: float = sum(w * value for w, value in zip(weights.tolist(), values, strict=True))
    return total / mass


def levenshtein_size(d: int, degree: int) -> int:
    """The number of directions from which on a rule of this degree is the best."""
    k, odd = divmod(degree, 2)
    if odd:
        return 2 * math.comb(d + k - 1, d - 1)
    return math.comb(d + k - 1, d - 1) + math.comb(d + k - 2, d - 1)


def cosine_rule(d: int, k: int) -> tuple[Tensor, Tensor]:
    """Gauss rule of k nodes for the cosine of two random directions in d ≥ 2 dimensions."""
    j = torch.arange(2, k, dtype=torch.float64)
    squares = j * (j + d - 3) / ((2 * j + d - 2) * (2 * j + d - 4))
    first = torch.full((1,), 1 / d, dtype=torch.float64)
    return rule_of_recurrence(
        torch.zeros(k, dtype=torch.float64), torch.cat([first, squares])[: k - 1]
    )


def gauss_rule(nodes: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Gauss rule of k nodes for a discrete measure (Stieltjes' procedure)."""
    previous, p = torch.zeros_like(nodes), torch.ones_like(nodes)
    norms, centres = [], []
    for _ in range(k):
        norms.append((weights * p * p).sum())
        centres.append((weights * nodes * p * p).sum() / norms[-1])
        square = norms[-1] / norms[-2] if len(norms) > 1 else 0.0
        previous, p = p, (nodes - centres[-1]) * p - square * previous
    squares = torch.stack(norms)[1:] / torch.stack(norms)[:-1]
    rule_nodes, rule_weights = rule_of_recurrence(torch.stack(centres), squares)
    return rule_nodes, rule_weights * norms[0]


def rule_of_recurrence(centres: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss rule of a measure of mass 1 from its recurrence coefficients (Golub and Welsch)."""
    off = squares.sqrt()
    matrix = torch.diag(centres) + torch.diag(off, 1) + torch.diag(off, -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes, vectors[0].square()


def mean_chord_potential(d: int, s: float) -> float:
    """Mean of f_s of the chord of two random directions, s < d−1."""
    a = (d - 1) / 2
    if s == 0:
        psi = torch.digamma(torch.tensor([a, 2 * a], dtype=torch.float64))
        return -math.log(2) - float(psi[0] - psi[1]) / 2
    logs = math.lgamma(a - s / 2) - math.lgamma(a) + math.lgamma(2 * a) - math.lgamma(2 * a - s / 2)
    return math.exp(min(logs - s * math.log(2), LARGEST_LOG))


@functools.lru_cache(maxsize=1024)
def mean_angle_potential(d: int, s: float) -> float:
    """Mean of f_s of the angle of two random directions, s < d−1.

    Trapezoidal rule after the double-exponential substitution θ = π / (1 + exp(−π sinh t)), in
    logarithms: exact to rounding though the integrand may be infinite at 0.
    """
    t = torch.linspace(-9, 9, 2**16 + 1, dtype=torch.float64)
    x = math.pi * t.sinh()
    log_angle = math.log(math.pi) + torch.nn.functional.logsigmoid(x)
    log_other = math.log(math.pi) + torch.nn.functional.logsigmoid(-x)  # of π − θ
    smaller = torch.minimum(log_angle, log_other)
    log_sine = torch.where(smaller < -20, smaller, smaller.exp().sin().log())
    log_weight = (d - 2) * log_sine + log_angle + log_other + t.cosh().log()
    weight = torch.softmax(log_weight, 0)
    if s == 0:
        return -float((weight * log_angle).sum())
    log_total, log_mass = (torch.logsumexp(x, 0) for x in (log_weight - s * log_angle, log_weight))
    return math.exp(min(float(log_total - log_mass), LARGEST_LOG))


def check_sizes(N: int, d: int) -> None:
    """Raise a ValueError unless both are positive integers."""
    for name, value in (("N", N), ("d", d)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} as a positive integer, got {value!r}")
