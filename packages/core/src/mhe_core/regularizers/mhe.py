"""Minimum hyperspherical energy in full and in half space, as regularizers."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mhe_core.energy import hyperspherical_energy
from mhe_core.energy.potential import ConventionName, DistanceName, Potential, Riesz
from mhe_core.regularizers.base import Regularizer

__all__ = ["MHE", "HalfSpaceMHE"]


class MHE(Regularizer):
    r"""Minimum hyperspherical energy: full-space energy (Liu et al., NeurIPS 2018, eq. 1).

    .. math:: \frac{1}{N (N - 1)} \sum_{i \ne j} \lVert u_i - u_j \rVert^{-s}, \qquad
        u_i = w_i / \lVert w_i \rVert,

    for s = 0 with :math:`\log (1 / \lVert u_i - u_j \rVert)`, for ``distance="angular"`` with the
    angle in place of the chord; see :func:`mhe_core.hyperspherical_energy`. arXiv 1805.09298;
    published weights: 1 in hidden layers, 10 in the output layer.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        convention: ``"paper"`` or ``"released_code"``.

    Raises:
        ValueError: if a size, ``s`` or an option is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> energy = create_regularizer("mhe", num_neurons=3, dim=3, s=1)
        >>> energy(torch.eye(3))
        tensor(0.7071)
    """

    half_space = False
    paper = "Liu et al., NeurIPS 2018, arXiv 1805.09298"
    published_weight: ClassVar[float | None] = 1.0
    published_output_weight: ClassVar[float | None] = 10.0

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        s: float = 2.0,
        distance: DistanceName = "euclidean",
        convention: ConventionName = "paper",
    ) -> None:
        super().__init__(num_neurons, dim)
        Riesz(s, distance, convention)  # checks them
        self.s = s
        self.distance: DistanceName = distance
        self.convention: ConventionName = convention

    @property
    def potential(self) -> Potential | None:  # type: ignore[override]
        """Riesz's: the energy is its mean over all pairs and nothing else."""
        return Riesz(self.s, self.distance, self.convention)

    @property
    def depends_on_lengths(self) -> bool:  # type: ignore[override]
        """Only by the released programs' smoothing of norms."""
        return self.convention != "paper"

    def forward(self, neurons: Tensor, anchors: Tensor | None = None) -> Tensor:
        """Scalar energy of ``[..., N, d]``, of the ``anchors`` [M] against all if given."""
        return hyperspherical_energy(
            neurons,
            s=self.s,
            distance=self.distance,
            half_space=self.half_space,
            anchors=anchors,
            convention=self.convention,
        ).mean()

    def extra_repr(self) -> str:
        """The sizes and options, for ``print(module)``."""
        options = f"s={self.s}, distance={self.distance!r}, convention={self.convention!r}"
        return f"{super().extra_repr()}, {options}"


class HalfSpaceMHE(MHE):
    r"""Half-space energy: every neuron also counts with its antipode (NeurIPS 2018, section 3.2).

    .. math:: \frac{1}{2N (2N - 1)} \sum_{i \ne j} \lVert v_i - v_j \rVert^{-s}, \qquad
        v = (u_1, \dots, u_N, -u_1, \dots, -u_N)

    Liu et al., arXiv 1805.09298; published weight: 1 in hidden layers.

    Two collinear neurons are redundant in a hidden layer even where they point in opposite
    directions; here they repel each other. Arguments and errors are those of :class:`MHE`.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("half_mhe", num_neurons=3, dim=3)(torch.eye(3))  # orthogonal axes
        tensor(0.4500)
    """

    half_space = True
    published_output_weight = None  # the published program has full space there
