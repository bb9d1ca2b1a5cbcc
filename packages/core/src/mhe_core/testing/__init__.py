"""The conformance kit: what every regularizer must do, for plug-in authors to run in one line.

::

    def test_conforms():
        check_regularizer("my_name")

or with one test case a rule::

    @pytest.mark.parametrize("check", regularizer_checks("my_name"))
    def test_conforms(check):
        check()
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mhe_core.testing._rules import CHECKS, Subject

__all__ = ["check_regularizer", "regularizer_checks", "rules"]

RULES = {check.__name__.removeprefix("check_"): check for check in CHECKS}


def check_regularizer(
    regularizer: str | Callable[..., nn.Module],
    num_neurons: int = 16,
    dim: int = 8,
    **hyperparameters: Any,
) -> None:
    """Hold a regularizer against the rules of the interface.

    It maps neurons ``[N, d]`` to a finite scalar with a finite and right gradient, whatever the
    neurons and their order; its forward is pure; it takes float32 and bfloat16; its state dict
    holds all of its state, it can be copied and pickled, and is the same on all ranks; its
    ``update``, if it has one, can be called once a step; and it gives the same on every device
    there is. The caller's random state is left as it was.

    Args:
        regularizer: a name for :func:`~mhe_core.create_regularizer`, or a factory called as
            ``factory(num_neurons, dim, **hyperparameters)``.
        num_neurons: N, at least 4.
        dim: d, at least 2. Choose both so that all of the regularizer is at work.
        **hyperparameters: handed to the factory.

    Raises:
        AssertionError: at the first rule that is broken, saying which, and how.
        ValueError: if ``num_neurons`` or ``dim`` is too small for the checks.

    Example:
        >>> from mhe_core.testing import check_regularizer
        >>> check_regularizer("mhe", s=1)
        >>> check_regularizer(lambda num_neurons, dim: torch.nn.Identity())
        Traceback (most recent call last):
            ...
        AssertionError: forward: expected a scalar tensor, got shape [16, 8]
    """
    for check in rules(regularizer, num_neurons, dim, **hyperparameters).values():
        check()


def rules(
    regularizer: str | Callable[..., nn.Module],
    num_neurons: int = 16,
    dim: int = 8,
    **hyperparameters: Any,
) -> dict[str, Callable[[], None]]:
    """Each rule by its name: a function that raises an AssertionError if the rule is broken.

    Arguments and errors are those of :func:`check_regularizer`.

    Example:
        >>> list(rules("mhe"))[:3]
        ['scalar', 'degenerate', 'pure']
    """
    if num_neurons < 4 or dim < 2:
        raise ValueError(f"expected num_neurons ≥ 4 and dim ≥ 2, got {num_neurons} and {dim}")
    subject = Subject(regularizer, num_neurons, dim, hyperparameters)
    return {name: functools.partial(_run, check, subject) for name, check in RULES.items()}


def regularizer_checks(
    regularizer: str | Callable[..., nn.Module],
    num_neurons: int = 16,
    dim: int = 8,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **hyperparameters: Any,
) -> list[Any]:
    """One case a rule for ``pytest.mark.parametrize``, whose test calls what it is given.

    Args:
        regularizer: as in :func:`check_regularizer`, and so are the others.
        num_neurons: N.
        dim: d.
        expected_failures: the rules that the regularizer breaks, each with the reason why it may;
            one that it keeps after all fails the test.
        **hyperparameters: handed to the factory.

    Raises:
        ValueError: if a size is too small, or an expected failure is of no rule.

    Example:
        >>> from mhe_core.testing import regularizer_checks
        >>> cases = regularizer_checks("mhe", expected_failures={"order": "counts by index"})
        >>> [case.id for case in cases if case.marks]
        ['order']
    """
    import pytest

    reasons = dict(expected_failures or {})
    if unknown := sorted(reasons.keys() - RULES.keys()):
        raise ValueError(f"expected failures of rules among {', '.join(RULES)}, got {unknown}")
    fails = pytest.mark.xfail
    return [
        pytest.param(
            check,
            id=name,
            marks=[fails(reason=reasons[name], raises=AssertionError, strict=True)]
            if name in reasons
            else [],
        )
        for name, check in rules(regularizer, num_neurons, dim, **hyperparameters).items()
    ]


def _run(check: Callable[[Subject], None], subject: Subject) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        check(subject)
