"""The command ``mhe check``: a regularizer held against the rules of the interface."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mhe_core.errors import UserError, users_request
from mhe_core.registry import find_regularizer
from mhe_core.testing import RULES, rules

__all__ = ["add_check"]


def add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mhe check``."""
    text = "whether a regularizer keeps the rules that all must keep; exits 1 if not"
    command = commands.add_parser("check", help=text, description=f"Print {text}.")
    add = command.add_argument
    add("name", metavar="NAME", help="a name of mhe list, or distribution:name")
    add("options", metavar="KEY=VALUE", nargs="*", help="hyperparameters, values as in JSON")
    add("--num-neurons", type=int, default=16, metavar="N", help="neurons (default: 16)")
    add("--dim", type=int, default=8, metavar="D", help="their dimension (default: 8)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``mhe check``."""
    find_regularizer(arguments.name)  # an unknown name is no broken rule
    options = dict(map(parsed, arguments.options))
    with users_request("cannot check"):
        checks = rules(arguments.name, arguments.num_neurons, arguments.dim, **options)
    broken = 0
    for name, check in checks.items():
        says, problem = (RULES[name].__doc__ or "").partition("\n")[0], ""
        try:
            check()
        except AssertionError as error:
            broken, problem = broken + 1, f"\n        {error}"
        print(f"{'FAILED' if problem else 'passed'}  {name}: {says}{problem}", flush=True)
    print(f"{len(checks)} rules, {broken} broken")
    if broken:
        sys.exit(1)


def parsed(option: str) -> tuple[str, Any]:
    """Name and value; what is no JSON is a string."""
    name, equals, value = option.partition("=")
    if not name or not equals:
        raise UserError(f"expected hyperparameters as KEY=VALUE, got {option!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
