r"""Potentials: what two directions pay for being near each other.

A potential f is a function of the squared chord :math:`q = \lVert u - v \rVert^2 = 2 - 2c` of two
unit vectors with cosine c. The Riesz s-potential (Liu et al., NeurIPS 2018, eq. 1) is

.. math:: f_s(z) = z^{-s} \;(s > 0), \qquad f_0(z) = \log(1/z),

of a distance z: the chord :math:`\sqrt q` or the angle :math:`\arccos c`. Here are the distances,
the constants of each convention, and the potentials; how many pairs there are and how they are
added up is no matter of this file.
"""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "CONVENTIONS",
    "DISTANCES",
    "NEAR",
    "Convention",
    "ConventionName",
    "Distance",
    "DistanceName",
    "Gaussian",
    "PairPotential",
    "Potential",
    "Riesz",
    "convention_named",
    "value_and_pull",
]

DistanceName = Literal["euclidean", "angular"]
ConventionName = Literal["paper", "released_code"]

# Below this squared chord, 2 − 2c has lost too many digits to cancellation (at 0.25 it keeps six
# of float32's seven): nearer pairs are measured by the difference of the vectors.
NEAR = 0.25


class Distance(ABC):
    """A distance of two unit vectors, by way of a measure that is quick to find.

    Attributes:
        exponent: the distance is the measure to this power.
    """

    exponent: float

    @abstractmethod
    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """The measure, from ‖u − v‖² and ‖u + v‖², both positive."""

    @abstractmethod
    def of_cosines(self, c: Tensor) -> tuple[Tensor, Tensor | float]:
        """The measure and its derivative with respect to the cosine."""

    @abstractmethod
    def of_opposites(self, c: Tensor) -> Tensor:
        """The measure of u and −v, whose derivative is minus that of u and v."""

    @abstractmethod
    def of_cosine(self, c: float) -> float:
        """The measure of one pair."""


class Chord(Distance):
    """‖u − v‖, in [0, 2]; the measure is its square."""

    exponent = 0.5

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """‖u − v‖²."""
        return near

    def of_cosines(self, c: Tensor) -> tuple[Tensor, float]:
        """2 − 2c."""
        return torch.rsub(c, 2, alpha=2), -2.0

    def of_opposites(self, c: Tensor) -> Tensor:
        """2 + 2c."""
        return torch.add(2, c, alpha=2)

    def of_cosine(self, c: float) -> float:
        """2 − 2c."""
        return max(0.0, 2 - 2 * c)


class Angle(Distance):
    """The angle between u and v in radians, in [0, π]."""

    exponent = 1.0

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """2·atan2(‖u − v‖, ‖u + v‖): arccos has no usable gradient near ±1."""
        return 2 * torch.atan2(near.sqrt(), far.sqrt())

    def of_cosines(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Arccos c."""
        return c.acos(), (1 - c.square()).rsqrt_().neg_()

    def of_opposites(self, c: Tensor) -> Tensor:
        """Arccos −c: the difference from π would have fewer digits."""
        return torch.neg(c).acos_()

    def of_cosine(self, c: float) -> float:
        """Arccos c."""
        return math.acos(c)


DISTANCES: dict[str, Distance] = {"euclidean": Chord(), "angular": Angle()}


@dataclass(frozen=True)
class Constants:
    """Of a distance: the potential is factor · f(scale · measure + offset)."""

    scale: float = 1.0
    offset: float = 0.0
    log_factor: float = 1.0  # for s = 0
    power_factor: float = 1.0


@dataclass(frozen=True)
class Convention:
    """The numbers in which the published programs differ from the paper.

    Attributes:
        smoothing: an entry that the neurons' norms have beside their own: 1e-2 is √1e-4.
        constants: by the name of the distance; those of the definition where there are none.
    """

    smoothing: float = 0.0
    constants: Mapping[str, Constants] = field(default_factory=dict)


CONVENTIONS: dict[str, Convention] = {
    "paper": Convention(),
    "released_code": Convention(
        smoothing=1e-2,
        constants={
            "euclidean": Constants(log_factor=2.0),
            "angular": Constants(scale=1 / math.pi, offset=1e-4, power_factor=0.1),
        },
    ),
}


def convention_named(name: str) -> Convention:
    """The convention of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"expected convention to be one of {tuple(CONVENTIONS)}, got {name!r}")
    return CONVENTIONS[name]


_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, Potential] = weakref.WeakValueDictionary()


class Potential(ABC):
    """A potential of two directions; :meth:`value` is all that one has to write.

    With it, :func:`mhe_core.hyperspherical_energy` has for this potential what it has for its own:
    tiles, half space, anchors, rows spread over processes, second derivatives, and finite values
    (a chord that is too small for the dtype counts as the least that is not). Equal layers of a
    network are computed together where their potentials are equal: make it a frozen dataclass.

    Attributes:
        smoothing: an entry that the neurons' norms have beside their own, 0 for the definition.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from mhe_core import hyperspherical_energy
        >>> @dataclass(frozen=True)
        ... class Hinge(Potential):
        ...     margin: float = 1.0
        ...     def value(self, squared_chord):
        ...         return (self.margin - squared_chord.sqrt()).clamp_min(0.0)
        >>> hyperspherical_energy(torch.eye(3), potential=Hinge(margin=2.0))  # 2 − √2
        tensor(0.5858)
    """

    smoothing: float = 0.0

    def __new__(cls, *args: object, **kwargs: object) -> Potential:
        """Number it: a compiled program holds numbers and strings, and no objects."""
        self = super().__new__(cls)
        if cls.key is Potential.key:
            number = next(_numbers)
            object.__setattr__(self, "_number", number)
            _by_number[number] = self
        return self

    def __getstate__(self) -> dict[str, object]:
        """All but the number, which a copy has of its own."""
        return {name: value for name, value in vars(self).items() if name != "_number"}

    @abstractmethod
    def value(self, squared_chord: Tensor) -> Tensor:
        """The potential of each pair, elementwise and differentiable.

        Args:
            squared_chord: ‖u − v‖², in (0, 4].
        """

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The potential and its derivative with respect to the cosine; by default by autograd.

        Args:
            c: cosines within ±:meth:`largest_cosine`; not to be changed.
        """
        with torch.inference_mode(False):
            value, pull = value_and_pull(lambda c: self.value(2 - 2 * c), c.clone())
            return value, pull(torch.ones_like(value))[0]

    def both_sides(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """f(c) + f(−c), what a pair of lines pays, and its derivative."""
        value, derivative = self.value_and_derivative(c)
        opposite, opposite_derivative = self.value_and_derivative(-c)
        return value + opposite, derivative - opposite_derivative

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """The potential from ‖u − v‖² and ‖u + v‖², the latter with its digits near the antipode.

        Differentiable any number of times; below :meth:`smallest_squared_chord` it stops growing.
        """
        return self.value(near.clamp_min(self.smallest_squared_chord(near.dtype)))

    def of_cosine(self, c: float) -> float:
        """The potential of one pair; infinite where it has no finite value."""
        value = self.value(torch.tensor(2 - 2 * c, dtype=torch.float64))
        return float(value) if value.isfinite() else math.inf

    def smallest_squared_chord(self, dtype: torch.dtype) -> float:
        """The squared chord below which the potential stops growing."""
        return torch.finfo(dtype).eps ** 2

    def largest_cosine(self, dtype: torch.dtype) -> float:
        """Pairs beyond it have cosines with too few digits, or a potential that has to be cut."""
        return 1 - max(NEAR, self.smallest_squared_chord(dtype)) / 2

    @property
    def key(self) -> str:
        """What :func:`potential_with` finds it by, in this process."""
        return f"#{self._number}"  # type: ignore[attr-defined]


def value_and_pull(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Any]:
    """The function's value, and what gives the inputs' gradients for one of the value, once.

    Not by ``torch.func.vjp``, which refuses to work where hooks on saved tensors are set, as
    activation checkpointing does. They are kept out: nothing of this outlives the call.
    """
    with torch.enable_grad(), ExitStack() as stack:
        # Within a transform of torch.func, none can be set, and so none need be kept out.
        with suppress(RuntimeError):
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_itself, _itself))
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = function(*leaves)

    def pull(grad_output: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, leaves, grad_output, materialize_grads=True)

    return value.detach(), pull


def _itself(saved: Tensor) -> Tensor:
    return saved


def potential_with(key: str) -> Potential:
    """The potential whose ``key`` this is."""
    if key.startswith("#"):
        return _by_number[int(key[1:])]
    kind, *fields = key.split("|")
    if kind == "gaussian":
        return Gaussian(float(fields[0]))
    s, distance, convention = fields
    return Riesz(float(s), distance, convention)


@dataclass(frozen=True)
class Riesz(Potential):
    """The Riesz s-potential z⁻ˢ of a distance z, for s = 0 log(1/z).

    Attributes:
        s: the power, a real number ≥ 0.
        distance: ``"euclidean"``, the chord, or ``"angular"``, the angle in radians.
        convention: ``"paper"`` or ``"released_code"``.

    Raises:
        TypeError: if ``s`` is not a number.
        ValueError: if ``s`` is negative or not finite, or there is no such distance or convention.

    Example:
        >>> Riesz(1.0).of_cosine(-1.0)  # u and −u are at a chord of 2
        0.5
    """

    s: float = 2.0
    distance: str = "euclidean"
    convention: str = "paper"

    def __post_init__(self) -> None:
        if isinstance(self.s, bool) or not isinstance(self.s, (int, float)):
            raise TypeError(f"expected s as a number, got {type(self.s).__name__}")
        if not 0 <= self.s < math.inf:
            raise ValueError(f"expected s as a finite number ≥ 0, got {self.s}")
        if self.distance not in DISTANCES:
            known = tuple(DISTANCES)
            raise ValueError(f"expected distance to be one of {known}, got {self.distance!r}")
        convention_named(self.convention)

    @property
    def _constants(self) -> Constants:
        return CONVENTIONS[self.convention].constants.get(self.distance, Constants())

    @property
    def _factor_and_exponent(self) -> tuple[float, float]:
        """Of the logarithm (exponent 0) or the power of the measure."""
        exponent, constants = DISTANCES[self.distance].exponent, self._constants
        if self.s == 0:
            return -exponent * constants.log_factor, 0.0
        return constants.power_factor, -exponent * self.s

    @property
    def smoothing(self) -> float:  # type: ignore[override]
        """Of the convention."""
        return CONVENTIONS[self.convention].smoothing

    def value(self, squared_chord: Tensor) -> Tensor:
        """The potential of pairs at that squared chord."""
        return self.of_chords(squared_chord, 4 - squared_chord)

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """The potential from ‖u − v‖² and ‖u + v‖²."""
        distance, constants = DISTANCES[self.distance], self._constants
        smallest = self.smallest_squared_chord(near.dtype)
        z = distance.of_chords(near.clamp_min(smallest), far.clamp_min(smallest))
        if constants != Constants():
            z = constants.scale * z + constants.offset
        z = z.clamp_min(smallest ** (0.5 / distance.exponent))
        factor, exponent = self._factor_and_exponent
        return factor * (torch.log(z) if exponent == 0 else z**exponent)

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The potential and its derivative with respect to the cosine."""
        z, slope = self._measure(c)
        factor, exponent = self._factor_and_exponent
        if exponent == 0:
            return z.log().mul_(factor), z.reciprocal().mul_(factor).mul_(slope)
        F = z.pow(exponent)
        dF = (F / z).mul_(factor * exponent).mul_(slope)
        return (F if factor == 1 else F.mul_(factor)), dF

    def both_sides(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """f(c) + f(−c) and its derivative."""
        factor, exponent = self._factor_and_exponent
        if self.distance == "euclidean" and self.s == 2 and factor == 1:
            F = torch.rsub(c.square(), 1).reciprocal_()  # 1/(2 − 2c) + 1/(2 + 2c)
            return F, F.square().mul_(c).mul_(2)
        z, slope = self._measure(c)
        opposite = self._shifted(DISTANCES[self.distance].of_opposites(c))
        if exponent == 0:  # log z + log z' = log zz'
            product = z * opposite
            dF = opposite.sub_(z).div_(product).mul_(factor).mul_(slope)
            return product.log_().mul_(factor), dF
        F, F_opposite = z.pow(exponent), opposite.pow(exponent)
        dF = (F / z).sub_(F_opposite.div(opposite)).mul_(factor * exponent).mul_(slope)
        F.add_(F_opposite)
        return (F if factor == 1 else F.mul_(factor)), dF

    def _measure(self, c: Tensor) -> tuple[Tensor, Tensor | float]:
        """What the logarithm or the power is taken of, and its derivative with the cosine."""
        z, slope = DISTANCES[self.distance].of_cosines(c)
        scale = self._constants.scale
        return self._shifted(z), slope if scale == 1 else slope * scale

    def _shifted(self, z: Tensor) -> Tensor:
        constants = self._constants
        if constants.scale == 1 and constants.offset == 0:
            return z
        return z.mul_(constants.scale).add_(constants.offset)

    def of_cosine(self, c: float) -> float:
        """The potential of one pair; infinite where it has no finite value."""
        constants = self._constants
        z = constants.scale * DISTANCES[self.distance].of_cosine(c) + constants.offset
        factor, exponent = self._factor_and_exponent
        try:
            return factor * (math.log(z) if exponent == 0 else z**exponent)
        except (ValueError, ZeroDivisionError, OverflowError):  # coincident, or too near for s
            return math.inf

    def derivative_of_cosine(self, c: float) -> float:
        """The derivative with respect to the cosine of one pair."""
        return float(self.value_and_derivative(torch.tensor(c, dtype=torch.float64))[1])

    def smallest_squared_chord(self, dtype: torch.dtype) -> float:
        """The resolution of the dtype, or where the gradient of the potential would overflow."""
        info = torch.finfo(dtype)
        return max(info.eps**2, (info.max * 1e-2 / (1 + self.s)) ** (-1 / (self.s / 2 + 1)))

    def largest_cosine(self, dtype: torch.dtype) -> float:
        """Where the scaled and shifted angle is below the smallest, the potential is cut."""
        cosine = super().largest_cosine(dtype)
        if self._constants.offset:
            smallest = math.sqrt(self.smallest_squared_chord(dtype)) / self._constants.scale
            cosine = min(cosine, math.cos(min(math.pi, smallest)))
        return cosine

    @property
    def key(self) -> str:
        """Its fields, so that one made in a compiled program is found, too."""
        return f"riesz|{float(self.s)!r}|{self.distance}|{self.convention}"


@dataclass(frozen=True)
class Gaussian(Potential):
    r"""The Gaussian potential :math:`e^{-t \lVert u - v \rVert^2}`.

    The logarithm of its mean over a batch of features is the uniformity of Wang and Isola (ICML
    2020). It is finite for coincident directions, and for small t about quadratic.

    Attributes:
        t: the inverse width, a finite number > 0.

    Raises:
        TypeError: if ``t`` is not a number.
        ValueError: if ``t`` is not positive and finite.

    Example:
        >>> round(Gaussian(2.0).of_cosine(0.0), 6)  # e⁻⁴
        0.018316
    """

    t: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.t, bool) or not isinstance(self.t, (int, float)):
            raise TypeError(f"expected t as a number, got {type(self.t).__name__}")
        if not 0 < self.t < math.inf:
            raise ValueError(f"expected t as a finite number > 0, got {self.t}")

    def value(self, squared_chord: Tensor) -> Tensor:
        """exp(−t·chord²)."""
        return torch.exp(-self.t * squared_chord)

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The potential and its derivative with respect to the cosine."""
        F = (c * (2 * self.t)).sub_(2 * self.t).exp_()
        return F, F * (2 * self.t)

    def both_sides(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """f(c) + f(−c) and its derivative."""
        exponent = c * (2 * self.t)
        opposite = torch.rsub(exponent, -2 * self.t).exp_()
        F = exponent.sub_(2 * self.t).exp_()
        return F + opposite, F.sub_(opposite).mul_(2 * self.t)

    @property
    def key(self) -> str:
        """Its width, so that one made in a compiled program is found, too."""
        return f"gaussian|{float(self.t)!r}"


class PairPotential(NamedTuple):
    """The potential F of a pair of neurons.

    In half space, F is the sum of the potentials of the pairs (u, v) and (u, −v).
    """

    potential: Potential
    half_space: bool

    @property
    def smoothing(self) -> float:
        """An entry that the neurons' norms have beside their own."""
        return self.potential.smoothing

    def value_and_derivative(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """F and dF/dc, for cosines within ±:meth:`Potential.largest_cosine`."""
        if self.half_space:
            return self.potential.both_sides(c)
        return self.potential.value_and_derivative(c)

    def of_pairs(self, u: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
        """F of the pairs of rows ``[P, d]`` of u and v; differentiable, accurate, slow."""
        if self.smoothing == 0:
            near = (u - v).square().sum(-1).to(dtype)
            far = (u + v).square().sum(-1).to(dtype)
            return self.of_chords(near, far)
        cosines = (u * v).sum(-1).to(dtype)  # the rows' norms are not quite 1
        return self.of_chords(2 - 2 * cosines, 2 + 2 * cosines)

    def of_chords(self, near: Tensor, far: Tensor) -> Tensor:
        """F, from ‖u − v‖² and ‖u + v‖²."""
        value = self.potential.of_chords(near, far)
        return value + self.potential.of_chords(far, near) if self.half_space else value

    def neighbours(self, N: int) -> int:
        """How many others each of N neurons makes pairs with."""
        return 2 * N - 1 if self.half_space else N - 1

    def number_of_pairs(self, N: int) -> int:
        """Of N neurons; in half space, of 2N directions."""
        return N * (2 * N - 1) if self.half_space else N * (N - 1) // 2

    def range_of_norms(self, dtype: torch.dtype) -> tuple[float, float]:
        """Norms whose squares, and derivatives divided by their squares, are far from overflow."""
        info = torch.finfo(dtype)
        steepest = steepest_derivative(self, dtype)
        return max(info.tiny**0.4, (steepest / info.max * 100) ** 0.5), info.max**0.4


@lru_cache(maxsize=512)
def steepest_derivative(pair: PairPotential, dtype: torch.dtype) -> float:
    """The largest dF/dc of pairs that are not near."""
    largest = pair.potential.largest_cosine(dtype)
    if largest <= 0:
        return 0.0
    c = torch.linspace(-largest, largest, 65, dtype=torch.float64)
    _, dF = pair.value_and_derivative(c)
    return min(float(dF.abs().max()), sys.float_info.max)
