"""The weight that a module's forward pass uses, where it is computed from what is stored.

Parametrizations, pruning masks and weights that forward itself computes (such as weight
standardization) are computed as forward does, without changing the module: its buffers are copied
before anything runs. What only scales the whole weight, or neurons by positive factors, leaves the
directions as they are: it is passed over where only these are wanted. What is sharded over
processes is gathered before anything is computed from it, as few such computations know shards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from mhe_core.network._weight import gathered

__all__ = ["CONVOLUTIONS", "Computed", "tensor_names", "weight_in_use"]

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

Read = Callable[[], Tensor]


class Computed(NamedTuple):
    """What a weight is computed from, and how.

    Attributes:
        sources: the tensors that the neurons' directions are computed from.
        read: returns the weight, with neurons of any lengths that have the lengths' signs.
        scales: the tensors that only the lengths are computed from, too.
        read_whole: returns the weight with its lengths; None where ``read`` does.
    """

    sources: tuple[Tensor, ...]
    read: Read
    scales: tuple[Tensor, ...] = ()
    read_whole: Read | None = None


def tensor_names(module: nn.Module) -> list[str]:
    """Names of the module's own tensors that may be weights; of a computed one, the name in use."""
    parametrizations: Any = module._modules.get("parametrizations") or ()
    pruned = [name.removesuffix("_mask") for name in module._buffers if name.endswith("_mask")]
    hooks = [_hook(module, kind=kind) for kind in ("WeightNorm", "SpectralNorm")]
    computed = [*parametrizations, *pruned, *(hook.name for hook in hooks if hook is not None)]
    hidden = {f"{name}_{suffix}" for name in computed for suffix in ("orig", "g", "v")}
    hidden |= {f"{name}_bias" for name in module._parameters}
    names = [*computed, *(name for name in module._parameters if name not in hidden)]
    if "weight" not in names and _has_weight(module):
        names.append("weight")
    return names


def _has_weight(module: nn.Module) -> bool:
    """Whether there is a ``weight`` that is a buffer or computed, and not only a child's."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and all(weight is not p for p in module.parameters())


def weight_in_use(module: nn.Module, name: str = "weight", neuron_dim: int = 0) -> Computed | None:
    """What a module's neurons are computed from, and how.

    Args:
        module: the module.
        name: of its tensor.
        neuron_dim: the dimension of that tensor that counts neurons.

    Returns:
        How to compute it; None if the module has no such tensor.
    """
    stored = _stored(module, name, neuron_dim)
    if stored is None or name != "weight" or not _has_own_forward(module):
        return stored
    whole = stored.read_whole or stored.read  # what forward does may depend on the lengths
    sources = (*stored.sources, *stored.scales)
    return Computed(sources, lambda: _handed_over(module, gathered(whole())))


def _stored(module: nn.Module, name: str, neuron_dim: int) -> Computed | None:
    """The weight as attribute lookup in the forward pass would give it."""
    if is_parametrized(module, name):
        chain: Any = module.get_submodule(f"parametrizations.{name}")
        return _parametrized(chain, neuron_dim)
    original: Any = module._parameters.get(f"{name}_orig")
    if original is not None:
        mask = module._buffers.get(f"{name}_mask")
        if mask is not None:  # torch.nn.utils.prune
            return Computed((original,), lambda: gathered(original) * mask)
        hook = _hook(module, name, kind="SpectralNorm")
        if hook is not None:

            def spectral_normed() -> Tensor:  # on copies of the vectors, which it moves
                u, v = (getattr(module, f"{name}_{suffix}").clone() for suffix in "uv")
                tensors = {"orig": gathered(original), "u": u, "v": v}
                return _by_hook(hook, tensors, do_power_iteration=module.training)

            return Computed((original,), lambda: original, read_whole=spectral_normed)
    hook = _hook(module, name, kind="WeightNorm")
    if hook is not None:  # of torch.nn.utils.weight_norm
        length, direction = (getattr(module, f"{name}_{suffix}") for suffix in "gv")

        def weight_normed() -> Tensor:
            return _by_hook(hook, {"g": gathered(length), "v": gathered(direction)})

        return _weight_normed(length, direction, hook.dim, neuron_dim, weight_normed)
    tensor = getattr(module, name, None)
    return Computed((tensor,), lambda: tensor) if isinstance(tensor, Tensor) else None


def _hook(module: nn.Module, name: str | None = None, *, kind: str) -> Any:
    """The module's old-style hook of that kind; by name, as these classes are deprecated."""
    for hook in module._forward_pre_hooks.values():
        if type(hook).__name__ == kind and name in (None, getattr(hook, "name", None)):
            return hook
    return None


def _parametrized(chain: Any, neuron_dim: int) -> Computed:
    """Of a ParametrizationList; of the directions without the rescalings at its end."""
    steps = every_step = list(chain)
    while steps and _is_torchs(steps[-1], "_SpectralNorm"):
        steps = steps[:-1]
    if hasattr(chain, "original"):
        originals = [chain.original]
    else:
        originals = [getattr(chain, f"original{k}") for k in range(chain.ntensors)]

    def compute(steps: list[nn.Module]) -> Tensor:
        values: Any = [gathered(original) for original in originals]
        for step in steps:
            values = [_unchanged(step, *values)]
        value: Tensor = values[0]
        return value

    whole = partial(compute, every_step)
    if len(steps) == 1 and _is_torchs(steps[0], "_WeightNorm"):
        length, direction = originals
        return _weight_normed(length, direction, steps[0].dim, neuron_dim, whole)
    parameters = [p for step in steps for p in step.parameters()]
    rescaled = len(steps) < len(every_step)
    return Computed(
        (*originals, *parameters), partial(compute, steps), read_whole=whole if rescaled else None
    )


def _weight_normed(
    length: Tensor, direction: Tensor, dim: int, neuron_dim: int, whole: Read
) -> Computed:
    """Weight norm by neuron, or of all: the direction, turned where the length is negative."""
    if dim in (neuron_dim, neuron_dim - direction.ndim, -1):

        def turned() -> Tensor:
            return gathered(direction) * gathered(length.detach()).sign()

        return Computed((direction,), turned, (length,), whole)
    return Computed((length, direction), whole)


def _by_hook(hook: Any, tensors: dict[str, Tensor], **options: Any) -> Tensor:
    """What an old-style hook computes from these tensors, which have the names' suffixes."""
    held = {f"{hook.name}_{suffix}": tensor for suffix, tensor in tensors.items()}
    weight: Tensor = hook.compute_weight(SimpleNamespace(**held), **options)
    return weight


def _is_torchs(step: nn.Module, name: str) -> bool:
    return type(step).__name__ == name and type(step).__module__.startswith("torch.nn.utils")


def _unchanged(step: nn.Module, *arguments: Tensor) -> Any:
    """What the step returns, on copies of its buffers: a power iteration would move them."""
    held = {name: buffer.clone() for name, buffer in step.named_buffers()}
    whole = ((name, parameter, gathered(parameter)) for name, parameter in step.named_parameters())
    held |= {name: tensor for name, parameter, tensor in whole if tensor is not parameter}
    return functional_call(step, held, arguments) if held else step(*arguments)


def _has_own_forward(module: nn.Module) -> bool:
    """Whether the class of a Linear or convolution layer has a forward pass of its own."""
    own = type(module)
    for known in (nn.Linear, *CONVOLUTIONS):
        if isinstance(module, known):
            names = ("forward", "_conv_forward")
            return any(getattr(own, n, None) is not getattr(known, n, None) for n in names)
    return False


def _handed_over(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight that forward hands to the linear or convolution function, given a stored one.

    Forward runs on a stand-in up to that call: a shallow copy of the module with copies of its
    buffers and a copy of the weight, so that nothing of the module can change.
    """
    classes = type(module).__mro__  # those up to a parametrization's would compute the weight
    injected = [k for k, c in enumerate(classes) if c.__module__ == "torch.nn.utils.parametrize"]
    plain = classes[injected[-1] + 1 if injected else 0]
    stand_in: Any = object.__new__(plain)
    stand_in.__dict__.update(module.__dict__)
    others = {k: p for k, p in module._parameters.items() if k != "weight"}
    stand_in._parameters = {k: p if p is None else gathered(p) for k, p in others.items()}
    stand_in._buffers = {k: b if b is None else b.clone() for k, b in module._buffers.items()}
    stand_in.__dict__["weight"] = weight.clone()
    layer: Any = module
    if isinstance(module, nn.Linear):
        shape = [1, layer.in_features]
    else:
        extents = zip(layer.kernel_size, layer.dilation, strict=True)
        shape = [1, layer.in_channels, *(d * (k - 1) + 1 for k, d in extents)]
    x = weight.new_zeros(shape, dtype=weight.dtype)
    try:
        with _Catcher(weight.shape):
            stand_in.forward(x)
        reason = f"it hands no weight of shape {list(weight.shape)} to one of torch's functions"
    except _CaughtError as caught:
        return caught.weight
    except Exception as error:  # whatever forward of somebody's class does with our input
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"cannot see the weight that {plain.__name__}.forward uses ({reason}); "
        "the stored weight is read",
        stacklevel=2,
    )
    return weight


class _CaughtError(Exception):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight


class _Catcher(TorchFunctionMode):
    """Stops at the first call of a linear or convolution function with a weight of this shape."""

    FUNCTIONS = ("linear", "conv1d", "conv2d", "conv3d")

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").replace("_transpose", "")
        if name in self.FUNCTIONS:
            weight = (kwargs or {}).get("weight", args[1] if len(args) > 1 else None)
            if isinstance(weight, Tensor) and weight.shape == self.shape:
                raise _CaughtError(weight)
        return func(*args, **(kwargs or {}))
