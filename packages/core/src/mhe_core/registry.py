"""Regularizers by name: those of installed distributions, and those registered in this process.

A distribution offers a regularizer through an entry point in the group ``mhe_core.regularizers``::

    [project.entry-points."mhe_core.regularizers"]
    my_name = "my_package.my_module:MyRegularizer"

Core's own are registered in the same way. The entry point's object is called as
``factory(num_neurons, dim, **hyperparameters)`` and returns an ``nn.Module`` that maps neurons
``[N, d]`` to a scalar; a method ``update(neurons, lr)`` is optional.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, cast

from torch import nn

from mhe_core.entry_points import (
    PluginError,
    claimed,
    distribution_of,
    installed,
    load,
    matching,
    metadata_of,
    normalized,
    target_of,
)
from mhe_core.regularizers import Regularizer
from mhe_core.summaries import summarize

__all__ = [
    "HyperparameterError",
    "PluginError",
    "RegularizerInfo",
    "RegularizerNameError",
    "canonical_name",
    "create_regularizer",
    "find_regularizer",
    "hyperparameters_of",
    "list_regularizers",
    "register_regularizer",
]

GROUP = "mhe_core.regularizers"
IN_PROCESS = "in-process"  # stands for the distribution of what register_regularizer was given

# Names of distributions that belong to the project, for who asks for one that is not installed.
OFFERED = {
    "mhe-uniformity": (
        *("mhs", "mhp", "mhc", "rmhp", "mgd", "mma", "regularface", "uniformface", "koleo"),
        *("uniformity", "hug", "so", "dso", "mc", "srip"),
    )
}

Factory = Callable[..., nn.Module]


class RegularizerNameError(PluginError, LookupError):
    """No regularizer has this name, or more than one has."""


class HyperparameterError(PluginError, TypeError):
    """The regularizer's factory does not take these hyperparameters."""


@dataclass(frozen=True)
class RegularizerInfo:
    """Where a regularizer comes from.

    Attributes:
        name: what :func:`create_regularizer` is given.
        distribution: the installed distribution, or ``"in-process"``.
        version: the distribution's version, empty where there is none.
        target: the factory, as ``module:object``.
        summary: one line about it; starts with "broken:" where its import is known to fail.
    """

    name: str
    distribution: str
    version: str
    target: str
    summary: str

    @property
    def origin(self) -> str:
        """Distribution and version, for messages and tables."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class _Candidate:
    info: RegularizerInfo
    load: Callable[[], Any]


_registered: dict[str, _Candidate] = {}


def create_regularizer(
    name: str | Factory, num_neurons: int, dim: int, **hyperparameters: Any
) -> Regularizer:
    """Make the regularizer of that name for a layer of ``num_neurons`` neurons.

    Args:
        name: a name of :func:`list_regularizers`, or ``distribution:name`` where two
            distributions claim one name; or a class or factory that needs no name.
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        **hyperparameters: handed to the regularizer's factory.

    Returns:
        A module that maps neurons ``[N, d]`` to their scalar energy, and has the methods of
        :class:`~mhe_core.Regularizer`. A plug-in's that is not of that class has what its author
        wrote: a method ``update`` may be missing there.

    Raises:
        RegularizerNameError: (a ValueError and LookupError) if the name is unknown, or claimed
            by two distributions.
        HyperparameterError: (a ValueError and TypeError) if the factory does not take these
            hyperparameters.
        PluginError: (a ValueError) if the plug-in fails to import, or returns something else than
            an ``nn.Module``. What the factory itself raises is passed on as it is.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer
        >>> energy = create_regularizer("half_mhe", num_neurons=3, dim=3, s=2)
        >>> energy(torch.eye(3))
        tensor(0.4500)
    """
    candidate = _in_process("", name) if callable(name) else _find(name)
    factory = _load_factory(candidate)
    _check_hyperparameters(candidate.info, factory, hyperparameters)
    regularizer = factory(num_neurons, dim, **hyperparameters)
    if not isinstance(regularizer, nn.Module):
        raise _broken(candidate.info, f"expected it to return an nn.Module, got {regularizer!r}")
    return cast(Regularizer, regularizer)


def list_regularizers() -> list[RegularizerInfo]:
    """All regularizers that are installed or registered now, by name; no plug-in is imported.

    Example:
        >>> from mhe_core import list_regularizers
        >>> [info.distribution for info in list_regularizers() if info.name == "mhe"]
        ['mhe-core']
    """
    _installed.cache_clear()
    infos = [candidate.info for candidate in _candidates()]
    return sorted(infos, key=lambda info: (info.name, info.distribution))


def register_regularizer(name: str, factory: Factory) -> None:
    """Add a regularizer to this process only, for notebooks and tests.

    Registering a name again replaces what was registered before. A name that an installed
    distribution has as well is a clash, as between two distributions: ``in-process:name`` picks
    this one.

    Args:
        name: what :func:`create_regularizer` will be given.
        factory: called as ``factory(num_neurons, dim, **hyperparameters)``, returns an
            ``nn.Module``.

    Raises:
        ValueError: if ``name`` is empty or contains a colon.
        TypeError: if ``name`` is not a string or ``factory`` cannot be called.

    Example:
        >>> import torch
        >>> from mhe_core import create_regularizer, register_regularizer
        >>> class LargestCosine(torch.nn.Module):
        ...     def __init__(self, num_neurons, dim):
        ...         super().__init__()
        ...     def forward(self, neurons):
        ...         u = torch.nn.functional.normalize(neurons, dim=-1)
        ...         return (u @ u.mT).fill_diagonal_(-1.0).max()
        >>> register_regularizer("largest_cosine", LargestCosine)
        >>> create_regularizer("largest_cosine", num_neurons=3, dim=3)(torch.eye(3))
        tensor(0.)
    """
    _check_name(name)
    if not name or ":" in name:
        raise ValueError(f"expected a name that is not empty and has no colon, got {name!r}")
    if not callable(factory):
        raise TypeError(f"expected factory to be callable, got {type(factory).__name__}")
    _registered[name] = _in_process(name, factory)


def _in_process(name: str, factory: Factory) -> _Candidate:
    target = f"{factory.__module__}:{getattr(factory, '__qualname__', type(factory).__name__)}"
    summary = inspect.cleandoc(factory.__doc__ or "").partition("\n")[0]
    return _Candidate(RegularizerInfo(name, IN_PROCESS, "", target, summary), lambda: factory)


def find_regularizer(name: str) -> tuple[RegularizerInfo, Factory]:
    """Where the regularizer of that name comes from, and its factory, imported.

    Raises:
        RegularizerNameError: if the name is unknown, or claimed by two distributions.
        PluginError: if the plug-in fails to import.

    Example:
        >>> info, factory = find_regularizer("half_mhe")
        >>> info.target, factory.__name__
        ('mhe_core.regularizers.mhe:HalfSpaceMHE', 'HalfSpaceMHE')
    """
    candidate = _find(name)
    return candidate.info, _load_factory(candidate)


def hyperparameters_of(factory: Factory) -> list[inspect.Parameter]:
    """What a regularizer's factory takes beside the two sizes; nothing where it does not say.

    Raises:
        TypeError: if it does not take the two sizes.

    Example:
        >>> from mhe_core import MHE
        >>> [parameter.name for parameter in hyperparameters_of(MHE)]
        ['s', 'distance', 'convention']
    """
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # some compiled callables have none
        return []
    sizes = signature.bind_partial(None, None).arguments
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [
        parameter
        for parameter in signature.parameters.values()
        if parameter.name not in sizes and parameter.kind not in variadic
    ]


def canonical_name(name: str) -> str:
    """What a regularizer is to be compared by: core's own bare, all others with distribution.

    ``mhe`` and ``mhe-core:mhe`` are one regularizer, and ``other:mhe`` is another.

    Raises:
        RegularizerNameError: if the name is unknown, or claimed by two distributions.

    Example:
        >>> canonical_name("mhe-core:half_mhe")
        'half_mhe'
    """
    info = _find(name).info
    core = normalized(info.distribution) == "mhe-core"
    return info.name if core else f"{info.distribution}:{info.name}"


def _candidates() -> list[_Candidate]:
    return [*_installed(), *_registered.values()]


@functools.cache
def _installed() -> tuple[_Candidate, ...]:
    """What installed distributions offer; a scan takes too long to repeat for every layer."""
    return tuple(
        _Candidate(_describe(point), functools.partial(load, point, "regularizer"))
        for point in installed(GROUP)
    )


def _describe(entry_point: EntryPoint) -> RegularizerInfo:
    try:
        summary = summarize(*target_of(entry_point), default=metadata_of(entry_point, "Summary"))
    except ValueError as error:
        summary = f"broken: {error}"
    origin = distribution_of(entry_point), metadata_of(entry_point, "Version")
    return RegularizerInfo(entry_point.name, *origin, entry_point.value, summary)


def _find(name: str) -> _Candidate:
    """The one candidate of that name, or of that ``distribution:name``."""
    _check_name(name)
    matches = _matches(name)
    if not matches:
        _installed.cache_clear()
        matches = _matches(name)
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise RegularizerNameError(_unknown(name))
    claims = [f"{match.info.origin} ({match.info.target})" for match in matches]
    picks = [f"{match.info.distribution}:{match.info.name}" for match in matches]
    raise RegularizerNameError(claimed(name, "regularizer", claims, picks))


def _matches(name: str) -> list[_Candidate]:
    return matching(name, ((c.info.distribution, c.info.name, c) for c in _candidates()))


def _unknown(name: str) -> str:
    known = sorted({c.info.name for c in _candidates()})
    if not known:
        return (
            f"unknown regularizer {name!r}: none is installed, not even core's own; "
            "is mhe-core installed as a distribution (pip install), or only on the path?"
        )
    short = name.rpartition(":")[2].lower()
    for distribution, names in OFFERED.items():
        if short in names and short not in known:
            folder = distribution.removeprefix("mhe-")
            return (
                f"unknown regularizer {name!r}: {short!r} is one of {distribution}'s; pip install "
                f"{distribution} (in a copy of the repository: pip install ./packages/{folder})"
            )
    near = difflib.get_close_matches(short, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"unknown regularizer {name!r}; {hint}known: {', '.join(known)}"


def _load_factory(candidate: _Candidate) -> Factory:
    try:
        factory: Factory = candidate.load()
    except PluginError:
        _installed.cache_clear()  # it may be repaired and asked for again in the same session
        raise
    return factory


def _broken(info: RegularizerInfo, cause: str) -> PluginError:
    _installed.cache_clear()  # it may be repaired and asked for again in the same session
    return PluginError(f"regularizer {info.name!r} of {info.origin} ({info.target}): {cause}")


def _check_hyperparameters(
    info: RegularizerInfo, factory: Factory, hyperparameters: dict[str, Any]
) -> None:
    """Hold the call against the factory's signature, so that its own TypeErrors stay its own."""
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # some compiled callables have none
        return
    try:
        signature.bind_partial(None, None)
    except TypeError:
        raise _broken(
            info, f"expected it to take (num_neurons, dim, **hyperparameters), got {signature}"
        ) from None
    try:
        signature.bind(None, None, **hyperparameters)
    except TypeError as error:
        takes = [_spelled(parameter) for parameter in hyperparameters_of(factory)]
        raise HyperparameterError(
            f"regularizer {info.name!r} of {info.origin}: {error}; "
            f"expected hyperparameters: {', '.join(takes) or 'none'}"
        ) from None


def _spelled(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"expected the regularizer's name as a string, got {type(name).__name__}")
