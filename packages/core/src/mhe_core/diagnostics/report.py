"""What the neurons of a network look like: energies, and what they are to be compared with.

``mhe inspect`` prints these; here they are as functions. Angles are in radians.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mhe_core.diagnostics._checkpoint import Checkpoint
from mhe_core.diagnostics.angles import NEAR_DUPLICATE, angle_statistics
from mhe_core.diagnostics.bounds import lower_bound, random_energy
from mhe_core.energy import hyperspherical_energy
from mhe_core.energy.distances import DistanceName
from mhe_core.errors import UserError
from mhe_core.network import dense, named_weights

__all__ = ["LayerReport", "inspect", "named_neurons"]

NO_VALUES = "it is on the meta device, and has no values"
CODES = (torch.int8, torch.uint8)  # what quantized weights are stored as


@dataclass(frozen=True)
class LayerReport:
    """One layer's neurons and their hyperspherical energy.

    Attributes:
        name: of the layer in the model, or of the tensor in the state dict.
        num_neurons: N, of each group.
        dim: d.
        groups: of a grouped convolution; energies and angles are within groups.
        energy: hyperspherical energy, the mean over groups.
        lower_bound: what no N directions can go below, see :mod:`mhe_core.diagnostics.bounds`.
        random_energy: expected energy of N random directions; may be infinite.
        smallest_angle: between the two nearest neurons, in radians.
        mean_angle: over all pairs, in radians.
        near_duplicates: how many neurons have another one nearer than the threshold.
        zero_neurons: how many neurons, of all groups, are zero: they have no direction, and count
            as orthogonal to all others.
    """

    name: str
    num_neurons: int
    dim: int
    groups: int
    energy: float
    lower_bound: float
    random_energy: float
    smallest_angle: float
    mean_angle: float
    near_duplicates: int
    zero_neurons: int = 0

    @property
    def excess(self) -> float:
        """Energy above that of random directions, or where this is infinite above the bound."""
        random = self.random_energy
        return self.energy - (random if math.isfinite(random) else self.lower_bound)


@torch.no_grad()
def inspect(
    model_or_state_dict: nn.Module | Mapping[str, Any],
    *,
    s: float = 2.0,
    distance: DistanceName = "euclidean",
    half_space: bool = False,
    near: float = NEAR_DUPLICATE,
) -> list[LayerReport]:
    """Report on every layer of a network that has at least two neurons.

    Args:
        model_or_state_dict: see :func:`named_neurons`.
        s: power of the Riesz potential, a real number ≥ 0.
        distance: of the energy: ``"euclidean"`` (chord) or ``"angular"`` (radians).
        half_space: count every neuron together with its antipode: in the energies, and in the
            angles, which are then those between lines, in [0, π/2].
        near: angle in radians below which two neurons are near-duplicates.

    Returns:
        One report a layer, in the network's order.

    Raises:
        ValueError: if an option is out of range, or the network has no such layer.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> [(layer.name, layer.num_neurons, layer.dim) for layer in inspect(model)]
        [('0', 16, 8), ('1', 4, 16)]
    """
    if not 0 <= near <= math.pi:
        raise UserError(f"expected near as an angle from 0 to π, in radians, got {near}")
    reports = []
    for name, neurons in named_neurons(model_or_state_dict):
        *groups, N, d = neurons.shape
        energy = hyperspherical_energy(neurons, s=s, distance=distance, half_space=half_space)
        angles = angle_statistics(neurons, half_space=half_space, near=near)
        report = LayerReport(
            name=name,
            num_neurons=N,
            dim=d,
            groups=math.prod(groups),
            energy=float(energy.mean()),
            lower_bound=lower_bound(N, d, s, distance, half_space),
            random_energy=random_energy(N, d, s, distance, half_space),
            smallest_angle=angles.smallest,
            mean_angle=angles.mean,
            near_duplicates=angles.near_duplicates,
            zero_neurons=int((neurons == 0).all(-1).sum()),
        )
        reports.append(report)
    return reports


def named_neurons(
    model_or_state_dict: nn.Module | Mapping[str, Any],
) -> Iterator[tuple[str, Tensor]]:
    """Name and neurons ``[N, d]`` or ``[groups, N, d]`` of every layer with at least two neurons.

    Args:
        model_or_state_dict: a network, possibly wrapped, or its state dict. Of a network, layers
            are read as by :func:`mhe_core.neuron_matrix`, and other parameters of two or more
            dimensions (such as attention's) by their rows. Of a state dict, all floating-point
            tensors of two or more dimensions are read by their rows, since it does not tell
            grouped and transposed convolutions.

    What cannot be read (weights of integers, on the meta device) is left out, with a warning that
    names it.

    Raises:
        TypeError: if it is neither.
        ValueError: if there is no layer with at least two neurons.
    """
    if isinstance(model_or_state_dict, nn.Module):
        layers = model_layers(model_or_state_dict)
    elif isinstance(model_or_state_dict, Mapping):
        layers = state_dict_layers(model_or_state_dict)
    else:
        got = type(model_or_state_dict).__name__
        raise TypeError(f"expected a network or a state dict, got {got}")
    found, problems = False, []
    for name, neurons in layers:
        if isinstance(neurons, str):
            problems.append(f"{name} ({neurons})")
        elif neurons.shape[-2] >= 2 and neurons.numel() > 0:
            found = True
            yield name, neurons.detach()
    if problems:
        warnings.warn(f"left out, as it cannot be read: {'; '.join(problems)}", stacklevel=2)
    if not found:
        raise UserError("expected a layer with at least two neurons, found none")


def model_layers(model: nn.Module) -> Iterator[tuple[str, Tensor | str]]:
    """The network's weights by name, or why one cannot be read; a tied one once."""
    seen = set()
    for name, weight in named_weights(model).items():
        if weight.identity in seen:
            continue
        seen.add(weight.identity)
        if weight.problem is not None:
            yield name, weight.problem
            continue
        neurons = weight.neurons()
        yield name, NO_VALUES if neurons.is_meta else neurons


def state_dict_layers(state_dict: Mapping[str, Any]) -> Iterator[tuple[str, Tensor | str]]:
    """Tensors of two or more dimensions by their key, without ``.weight``.

    Those of integers that are no weights, such as indices and masks, are passed over.
    """
    seen = set()
    for key in state_dict:
        if isinstance(state_dict, Checkpoint):
            if state_dict.identity(key) in seen:
                continue
            seen.add(state_dict.identity(key))
        tensor = state_dict[key]
        if not isinstance(tensor, Tensor) or tensor.ndim < 2:
            continue
        name = str(key).removesuffix(".weight")
        if tensor.dtype in CODES:
            yield name, f"it is of {tensor.dtype}, and codes have no angles: dequantize it first"
        if not tensor.is_floating_point() and not tensor.is_quantized:
            continue
        if tensor.is_meta:
            yield name, NO_VALUES
            continue
        if isinstance(state_dict, dict) and is_plain(tensor) and tensor.numel() > 0:
            identity = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if identity in seen:
                continue
            seen.add(identity)
        yield name, dense(tensor).flatten(1)


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor has its values in its own memory."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
