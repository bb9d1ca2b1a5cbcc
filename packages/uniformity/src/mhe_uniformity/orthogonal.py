r"""Layers whose energy training cannot change: frozen neurons, and a rotation that is trained.

With neurons :math:`w_i` and an orthogonal R, the neurons :math:`R w_i` have the same lengths and
pairwise angles, and so the same hyperspherical energy. From random neurons, which are spread out,
this is *Orthogonal Over-Parameterized Training* (OPT; Liu et al., CVPR 2021, arXiv 2004.04690);
from pretrained ones *Orthogonal Finetuning* (OFT; Qiu et al., NeurIPS 2023, arXiv 2306.07280).

R is the image of a skew-symmetric matrix A: by the Cayley transform :math:`(I + A)(I - A)^{-1}`,
computed exactly, or by the matrix exponential :math:`e^A`. A block-diagonal R costs less.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from mhe_core import neuron_matrix
from mhe_core.autocast import without_autocast
from mhe_core.diagnostics import inspect
from mhe_core.network import named_weights
from mhe_core.regularizers.arguments import check_integer, check_number
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.parametrize import register_parametrization

from mhe_uniformity._base import check_choice

__all__ = ["Rotation", "assert_energy_preserved", "rotate_neurons"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
MAPS = ("cayley", "matrix_exp")


class Rotation(nn.Module):
    """Parametrization of a weight: its neurons, rotated by one trained orthogonal matrix.

    Starts as the identity.

    Args:
        weight: the weight that is to be rotated; its shape is what counts.
        map: ``"cayley"`` or ``"matrix_exp"``: from a skew-symmetric matrix to a rotation.
        block_size: of the blocks on the rotation's diagonal; the last one is smaller where the
            neurons' dimension is no multiple. Default: one block of all dimensions.
        groups: of the convolution, whose neurons all have the same rotation.
        transposed: whether the weight is that of a transposed convolution, whose neurons are along
            the second dimension.

    Raises:
        ValueError: if an argument is out of range, or the weight has less than two dimensions.

    Example:
        >>> import torch
        >>> from torch.nn.utils.parametrize import register_parametrization
        >>> from mhe_uniformity.orthogonal import Rotation
        >>> layer = torch.nn.Linear(6, 4)
        >>> _ = register_parametrization(layer, "weight", Rotation(layer.weight, block_size=3))
        >>> layer.weight.shape
        torch.Size([4, 6])
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        map: str = "cayley",  # as in torch.nn.utils.parametrizations.orthogonal
        block_size: int | None = None,
        groups: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        check_choice("map", map, MAPS)
        check_integer("groups", groups, 1)
        if weight.ndim < 2:
            raise ValueError(f"expected a weight of at least two dimensions, got {weight.ndim}")
        self.map = map
        self.groups = groups
        self.transposed = transposed
        d = self.to_rows(weight.detach()).shape[-1]
        if block_size is not None:
            check_integer("block_size", block_size, 1)
        size = d if block_size is None else min(block_size, d)
        self.block_size = size
        self.dim = d
        blocks = -(-d // size)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        # Of each block the entries above the diagonal; those beyond the last dimension stay 0.
        upper = size * (size - 1) // 2
        self.angles = nn.Parameter(torch.zeros(blocks, upper, dtype=dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its neurons rotated."""
        with without_autocast(weight.device):
            rows = self.to_rows(weight).to(self.angles.dtype)
            blocks, size = len(self.angles), self.block_size
            padded = pad(rows, (0, blocks * size - self.dim)).unflatten(-1, (blocks, size))
            rotated = torch.einsum("gnbj,bij->gnbi", padded, self.rotations())
            rotated = rotated.flatten(-2)[..., : self.dim].to(weight.dtype)
        return self._from_rows(rotated, weight.shape)

    def rotations(self) -> Tensor:
        """The blocks of R, ``[blocks, block_size, block_size]``."""
        size, blocks = self.block_size, len(self.angles)
        i, j = torch.triu_indices(size, size, 1, device=self.angles.device)
        angles: Tensor = self.angles
        if (left := self.dim % size) > 0:  # of the last block
            outside = j[None].expand(blocks, -1).ge(left).clone()
            outside[:-1] = False
            angles = angles.masked_fill(outside, 0.0)
        above = angles.new_zeros(blocks, size, size)
        above[:, i, j] = angles
        A = above - above.mT
        if self.map == "matrix_exp":
            return torch.linalg.matrix_exp(A)
        identity = torch.eye(size, dtype=A.dtype, device=A.device)
        return torch.linalg.solve(identity - A, identity + A)

    def to_rows(self, weight: Tensor) -> Tensor:
        """The neurons, ``[groups, N / groups, d]``."""
        grouped = weight.unflatten(0, (self.groups, -1))
        return (grouped.transpose(1, 2) if self.transposed else grouped).flatten(2)

    def _from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        if not self.transposed:
            return rows.reshape(shape)
        inputs = shape[0] // self.groups
        grouped = rows.unflatten(2, (inputs, *shape[2:])).transpose(1, 2)
        return grouped.reshape(shape)

    def extra_repr(self) -> str:
        """Sizes and options."""
        return f"dim={self.dim}, block_size={self.block_size}, map={self.map!r}"


def rotate_neurons(
    model: nn.Module,
    *,
    map: str = "cayley",
    block_size: int | None = None,
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
) -> list[str]:
    """Freeze the weights of a network's layers, and train a rotation of each in their place.

    Changes the model: Linear, Conv1d/2d/3d and ConvTranspose1d/2d/3d layers get a
    :class:`Rotation` as a parametrization of their ``weight``. At first the network computes what
    it did before. Biases, and all else, are trained as before.
    ``torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")`` leaves plain weights.

    Make the optimizer afterwards, of the parameters that have ``requires_grad``. The gradient with
    respect to an angle is larger than to a weight: a smaller learning rate may be wanted.

    Args:
        model: the network, with random weights for OPT, with pretrained ones for OFT.
        map: ``"cayley"`` or ``"matrix_exp"``.
        block_size: of the rotations' blocks; default: one block, which costs d × d parameters and
            a d × d linear system a step.
        include: names of layers to rotate, or patterns such as ``"features.*"``.
        exclude: names or patterns of layers to leave as they are.

    Returns:
        The names of the layers that are now rotated.

    Raises:
        ValueError: if an option is out of range, a pattern fits no layer, no layer is left, or a
            weight is already parametrized, or also another module's, such as an embedding's, or is
            changed by the layer's forward, such as by weight standardization, after which rotated
            neurons would have other angles.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from mhe_uniformity.orthogonal import rotate_neurons
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4))
        >>> rotate_neurons(model, block_size=9)
        ['0', '2']
    """
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, *CONVOLUTIONS))
    }
    chosen = _matching(layers, include, "include") - _matching(layers, exclude, "exclude")
    names = [name for name in layers if name in chosen]
    _check_layers(model, {name: layers[name] for name in names})
    for name in names:
        layer: Any = layers[name]
        rotation = _rotation_of(layer, map=map, block_size=block_size)
        layer.weight.requires_grad_(False)
        register_parametrization(layer, "weight", rotation)
    return names


def assert_energy_preserved(
    model_before: nn.Module,
    model_after: nn.Module,
    *,
    tolerance: float = 1e-5,
    exclude: Iterable[str] = (),
) -> None:
    """Raise unless each layer of a network has the hyperspherical energy that it had before.

    Compared are the energies with s = 2, in full and in half space, of all Linear and convolution
    layers of at least two neurons, with or without a rotation; no embeddings, and no others that
    :func:`rotate_neurons` leaves to be trained.

    Args:
        model_before: the network before training, such as a copy.
        model_after: the network after training, with the same layers.
        tolerance: the largest change allowed, relative to the energy before.
        exclude: names of layers, or patterns, that may change.

    Raises:
        AssertionError: if an energy changed, naming every such layer and both energies, or if the
            models have different layers.
        ValueError: if the tolerance is out of range, a pattern fits no layer, or no layer is left.

    Example:
        >>> import copy, torch
        >>> from mhe_uniformity.orthogonal import assert_energy_preserved, rotate_neurons
        >>> model = torch.nn.Linear(8, 4)
        >>> before = copy.deepcopy(model)
        >>> _ = rotate_neurons(model)
        >>> _ = torch.nn.init.normal_(model.parametrizations.weight[0].angles)
        >>> torch.equal(model.weight, before.weight)
        False
        >>> assert_energy_preserved(before, model)
    """
    check_number("tolerance", tolerance)
    changed = []
    for half_space, space in ((False, "full"), (True, "half")):
        before, after = (_energies(model, half_space) for model in (model_before, model_after))
        if before.keys() != after.keys():
            raise AssertionError(
                f"expected the same layers before and after, got {list(before)} and {list(after)}"
            )
        compared = before.keys() - _matching(before, exclude, "exclude")
        if not compared:
            raise ValueError("expected a Linear or convolution layer to compare, got none")
        for name in compared:
            if not abs(after[name] - before[name]) <= tolerance * abs(before[name]):
                changed.append(f"{name!r}, {space} space: {before[name]:.9g} to {after[name]:.9g}")
    if changed:
        raise AssertionError("expected the energies to stay, got " + "; ".join(sorted(changed)))


def _energies(model: nn.Module, half_space: bool) -> dict[str, float]:
    """Of the Linear and convolution layers, by name."""
    weights = named_weights(model)
    return {
        report.name: report.energy
        for report in inspect(model, half_space=half_space)
        if isinstance(weights[report.name].module, (nn.Linear, *CONVOLUTIONS))
    }


def _check_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Raise a ValueError unless each has a plain weight that nothing else in the model has."""
    if not layers:
        raise ValueError("expected at least one Linear or convolution layer, got none")
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{own}".lstrip("."))
    for name, layer in layers.items():
        if not isinstance(layer._parameters.get("weight"), nn.Parameter):
            raise ValueError(f"expected a plain weight, got a parametrized one in {name!r}")
        if len(names := owners[id(layer.weight)]) > 1:
            shared = " and ".join(map(repr, names))
            raise ValueError(f"expected layers with weights of their own, one is {shared}")
        if not _is_used_as_stored(layer):
            raise ValueError(
                f"expected layers that use their weight as it is, got one that changes it, a "
                f"{type(layer).__name__}, in {name!r}"
            )


def _is_used_as_stored(layer: Any) -> bool:
    """Whether forward hands on the very weight; taken for granted where there are no values."""
    if layer.weight.is_meta:
        return True
    try:
        used = neuron_matrix(layer)
    except TypeError:  # what forward makes of it cannot be known
        return False
    stored = _rotation_of(layer).to_rows(layer.weight)
    return torch.equal(used.flatten(0, -2), stored.flatten(0, -2))


def _rotation_of(layer: Any, **options: Any) -> Rotation:
    return Rotation(
        layer.weight,
        groups=layer.groups if isinstance(layer, CONVOLUTIONS) else 1,
        transposed=isinstance(layer, TRANSPOSED),
        **options,
    )


def _matching(names: Iterable[str], patterns: Iterable[str], option: str) -> set[str]:
    names = list(names)
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting and pattern != "*":
            raise ValueError(f"expected {option} to fit one of {names}, got {pattern!r}")
        found |= fitting
    return found
