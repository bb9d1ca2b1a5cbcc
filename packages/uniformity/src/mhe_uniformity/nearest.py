r"""Losses of the nearest neighbours: MHS, MMA, RegularFace and KoLeo.

With directions :math:`u_i = w_i / \lVert w_i \rVert`, each acts on pairs of nearest neighbours
only, :math:`j(i) = \operatorname{argmax}_{j \ne i} u_i^\top u_j`, which are found tile by tile.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from mhe_core.energy.rows import directions
from torch import Tensor

from mhe_uniformity._base import Published
from mhe_uniformity._rows import released_rows, squared_chords
from mhe_uniformity._search import losses_of_pairs, nearest_neighbours, sum_over_pairs

__all__ = ["MHS", "MMA", "KoLeo", "RegularFace"]


class NearestNeighbours(Published):
    """What the losses of nearest neighbours share."""

    compiles = False  # the search's sizes, and who is whose neighbour, are known by its values only

    def prepared(self, neurons: Tensor) -> Tensor:
        """As they are, if their dtype allows: the sum over pairs has a gradient in its range."""
        wide = neurons.dtype in (torch.float32, torch.float64)
        return neurons if wide else super().prepared(neurons)


class MHS(NearestNeighbours):
    r"""Maximum hyperspherical separation: minus the smallest squared chord.

    .. math:: -\min_{i < j} \lVert u_i - u_j \rVert^2

    in half space with :math:`u_j` and :math:`-u_j`. Liu et al., *Learning with Hyperspherical
    Uniformity*, AISTATS 2021, arXiv 2103.01649. Published weights: 0.1 in hidden layers (half
    space), 1 in the output layer (full space).

    The program normalises twice, each time with 1e-4 under the root (``variant="released"``), and
    adds up all entries that equal the smallest one: in half space there are two, (i, j) and
    (−i, −j), so that its value is twice this one. The value is in [−4, 0]; 0 for a single neuron.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"`` or ``"released"``.
        half_space: count every neuron together with its antipode.
        count_ties: add up all pairs that are equally near, each twice in half space, as the
            program does; else the smallest squared chord counts once.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("mhs", 3, 3)(torch.eye(3))
        tensor(-2.)
    """

    paper = "Liu et al., AISTATS 2021, arXiv 2103.01649"
    published_weight = 0.1
    published_output_weight = 1.0
    published_output_options: ClassVar[dict[str, Any]] = {"half_space": False}

    def __init__(
        self,
        num_neurons: int,
        dim: int,
        *,
        variant: str = "paper",
        half_space: bool = True,
        count_ties: bool = False,
    ) -> None:
        super().__init__(num_neurons, dim, variant=variant)
        self.half_space = half_space
        self.count_ties = count_ties

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        if len(x) == 1:
            return x.sum() * 0
        rows, scale = scaled_rows(x) if self.variant == "paper" else (x, released_scale(x))
        j, cosines = nearest_neighbours(rows, scale, half_space=self.half_space)
        # The cosines of the search are rounded: among those next to the largest, look again.
        slack = 0.0 if self.count_ties else 16 * torch.finfo(x.dtype).eps
        i = (cosines >= cosines.max() - slack).nonzero().squeeze(1)
        i, j = torch.stack([i, j[i]]).sort(0).values.unique(dim=1)
        if self.count_ties:
            copies = 2 if self.half_space else 1
            return -copies * sum_over_pairs(x, i, j, self.squared_chords)
        nearest = losses_of_pairs(x, i, j, self.squared_chords).argmin(keepdim=True)
        return -sum_over_pairs(x, i[nearest], j[nearest], self.squared_chords)

    def squared_chords(self, w: Tensor, v: Tensor) -> Tensor:
        """Of pairs of neurons ``[n, d]``, with the nearer of v and −v in half space."""
        if self.variant == "paper":
            w, v = directions(w), directions(v)
        else:
            w, v = released_rows(w), released_rows(v)
        cosines = (w * v).sum(-1)
        if self.half_space:
            sign = cosines.detach().sign()
            cosines, v = cosines * sign, v * sign.unsqueeze(-1)
        return squared_chords(w, v) if self.variant == "paper" else 2 - 2 * cosines

    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        own = {"half_space": self.half_space, "count_ties": self.count_ties}
        return {**super().options(), **own}


class NearestNeighbourMean(NearestNeighbours):
    """Mean over neurons of a loss of the neuron and its nearest neighbour."""

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        if len(x) == 1:
            return x.sum() * 0
        j, _ = nearest_neighbours(*scaled_rows(x))
        i = torch.arange(len(x), device=x.device)
        limits = torch.finfo(x.dtype)
        return sum_over_pairs(x, i, j, lambda w, v: self.pair_loss(w, v, limits)) / len(x)

    def pair_loss(self, w: Tensor, v: Tensor, limits: torch.finfo) -> Tensor:
        """Of neurons ``[n, d]`` and their neighbours; ``limits`` are those of the loss's dtype."""
        raise TypeError(f"{type(self).__name__} does not define pair_loss(w, v, limits)")


class MMA(NearestNeighbourMean):
    r"""Maximizing the minimal angle: minus the mean angle to the nearest neighbour, in radians.

    .. math:: -\frac1N \sum_i \min_{j \ne i} \theta_{ij}, \qquad \theta_{ij} = \arccos u_i^\top u_j

    Wang et al., *MMA Regularization*, NeurIPS 2020, arXiv 2006.06527. Published weight: 0.07 on
    all layers, or 0.03 in networks with skip connections.

    The paper's variant finds the angle from ‖u_i − u_j‖ and ‖u_i + u_j‖, so that near neighbours,
    too, have a gradient. The program (``"released"``) clamps the cosine to ±0.99999: neighbours
    nearer than 0.00447 rad have none.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"`` or ``"released"``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("mma", 3, 3)(torch.eye(3))
        tensor(-1.5708)
    """

    paper = "Wang et al., NeurIPS 2020, arXiv 2006.06527"
    published_weight = 0.07
    published_output_weight = 0.07
    directional = ("paper", "released")

    def pair_loss(self, w: Tensor, v: Tensor, limits: torch.finfo) -> Tensor:
        """Minus the angles."""
        u, v = directions(w), directions(v)
        if self.variant == "released":
            return -(u * v).sum(-1).clamp(-0.99999, 0.99999).acos()
        near, far = (torch.linalg.vector_norm(x, dim=-1) for x in (u - v, u + v))
        return -2 * torch.atan2(near, far)


class RegularFace(NearestNeighbourMean):
    r"""RegularFace, or exclusive regularization: the mean cosine to the nearest neighbour.

    .. math:: \frac1N \sum_i \max_{j \ne i} u_i^\top u_j

    Zhao, Xu and Cheng, *RegularFace*, CVPR 2019; meant for class vectors. Published weight: 10 in
    the authors' program. The programs of the authors and of pytorch-metric-learning agree with
    the formula, so that both variants are the same.

    A cosine's slope is the sine of the angle, so that neurons next to each other are hardly pushed
    apart: up to d + 1 neurons become a simplex, but of many more than d some come to coincide.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"`` or ``"released"``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("regularface", 3, 3)(torch.eye(3))
        tensor(0.)
    """

    paper = "Zhao et al., CVPR 2019"
    published_weight = 10.0
    published_output_weight = 10.0
    directional = ("paper", "released")

    def pair_loss(self, w: Tensor, v: Tensor, limits: torch.finfo) -> Tensor:
        """The cosines."""
        return (directions(w) * directions(v)).sum(-1)


class KoLeo(NearestNeighbourMean):
    r"""KoLeo, the Kozachenko–Leonenko estimate of the differential entropy, with its sign changed.

    .. math:: -\frac1N \sum_i \log \min_{j \ne i} \lVert u_i - u_j \rVert

    Sablayrolles et al., *Spreading vectors for similarity search*, ICLR 2019, arXiv 1806.03198; a
    loss on features, here on neurons. Published weights: 0.05 there, 0.1 in DINOv2.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        variant: ``"paper"``, where the chord stops at the dtype's resolution; ``"lightly"``, with
            1e-8 added to each coordinate of the difference, and to the chord; or
            ``"spreadingvectors"``, the authors' program, with 1e-6 added to each coordinate and
            N times the chord in the logarithm.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> create_regularizer("koleo", 3, 3)(torch.eye(3))  # −log √2
        tensor(-0.3466)
    """

    paper = "Sablayrolles et al., ICLR 2019, arXiv 1806.03198"
    published_weight = 0.05
    published_output_weight = 0.05
    variants = ("paper", "lightly", "spreadingvectors")
    directional = variants

    def loss(self, x: Tensor) -> Tensor:
        """Of one matrix ``[N, d]``."""
        shift = math.log(len(x)) if self.variant == "spreadingvectors" else 0.0
        return super().loss(x) - shift

    def pair_loss(self, w: Tensor, v: Tensor, limits: torch.finfo) -> Tensor:
        """Minus the logarithms of the chords."""
        u, v = directions(w), directions(v)
        if self.variant == "paper":
            return -0.5 * squared_chords(u, v).clamp_min(limits.eps**2).log()
        on_coordinates, on_chord = (1e-8, 1e-8) if self.variant == "lightly" else (1e-6, 0.0)
        chords = torch.linalg.vector_norm(u - v + on_coordinates, dim=-1)
        return -(chords + on_chord).log()


def scaled_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[N, d]`` and what to multiply them by for directions, ``[N]``, 0 for a row of zeros.

    The rows are the given ones, unless squares of their lengths overflow or vanish.
    """
    x = x.detach()
    lengths = torch.linalg.vector_norm(x, dim=-1)
    zero = lengths == 0
    shortest, longest = lengths.masked_fill(~x.any(-1), 1.0).aminmax()
    if shortest < 1e-10 or longest > 1e10:
        return directions(x), torch.ones_like(lengths)
    return x, lengths.reciprocal().masked_fill(zero, 0.0)


def released_scale(x: Tensor) -> Tensor:
    """What :func:`released_rows` multiplies each row ``[N, d]`` by, ``[N]``."""
    squares = x.detach().square().sum(-1)
    first = (squares + 1e-4).rsqrt()
    return first * (squares * first.square() + 1e-4).rsqrt()
