"""The command ``mhe info``: one regularizer's hyperparameters, paper, weights and capabilities."""

from __future__ import annotations

import argparse
import json
from typing import Any

from torch import nn

from mhe_core.registry import (
    create_regularizer,
    find_regularizer,
    hyperparameters_of,
)
from mhe_core.regularizers import Regularizer

__all__ = ["add_info", "described"]

SIZES = 16, 64  # of the one that is made to ask it; CoMHE's projections are at work there
CAPABILITIES = {
    "potential": "the mean of a potential over pairs: equal layers are computed together",
    "batched": "takes groups of neurons [..., N, d] in one call",
    "takes_anchors": "takes the energy of some neurons against all others",
    "depends_on_lengths": "may depend on the neurons' lengths",
    "updates": "has a state that update(neurons, lr) advances each step",
}


def add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mhe info``."""
    text = "a regularizer's hyperparameters, paper, published weights and capabilities"
    command = commands.add_parser("info", help=text, description=f"Print {text}.")
    command.add_argument("name", metavar="NAME", help="a name of mhe list, or distribution:name")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``mhe info``."""
    info = described(arguments.name)
    print(json.dumps(info, indent=2, default=repr) if arguments.json else as_text(info))


def described(name: str) -> dict[str, Any]:
    """What is known about a regularizer, as plain values.

    Raises:
        PluginError: if the name is unknown or the plug-in cannot be imported.
    """
    origin, factory = find_regularizer(name)
    hyperparameters = {
        parameter.name: None if parameter.default is parameter.empty else parameter.default
        for parameter in hyperparameters_of(factory)
    }
    required = [p.name for p in hyperparameters_of(factory) if p.default is p.empty]
    problem, capable = "some hyperparameters are required", None
    if not required:
        problem, capable = capabilities_by_default(name)
    return {
        "name": origin.name,
        "summary": origin.summary,
        "distribution": origin.distribution,
        "version": origin.version,
        "target": origin.target,
        "paper": getattr(factory, "paper", ""),
        "published_weight": getattr(factory, "published_weight", None),
        "published_output_weight": getattr(factory, "published_output_weight", None),
        "published_output_options": dict(getattr(factory, "published_output_options", {})),
        "hyperparameters": hyperparameters,
        "required": required,
        "capabilities": capable,
        "problem": problem,
    }


def capabilities_by_default(name: str) -> tuple[str, dict[str, bool] | None]:
    """What is in the way of knowing, or nothing; and what one that is made by default can do."""
    try:
        return "", capabilities(create_regularizer(name, *SIZES))
    except Exception as error:  # the plug-in's own
        N, d = SIZES
        return f"{type(error).__name__} for {N} neurons of {d} dimensions: {error}", None


def capabilities(regularizer: nn.Module) -> dict[str, bool]:
    """Those of :data:`CAPABILITIES` that it has with its default hyperparameters."""
    update = getattr(type(regularizer), "update", None)
    updates = update not in (None, Regularizer.update)
    return {
        "potential": getattr(regularizer, "potential", None) is not None,
        "batched": bool(getattr(regularizer, "batched", False)),
        "takes_anchors": bool(getattr(regularizer, "takes_anchors", False)),
        "depends_on_lengths": bool(getattr(regularizer, "depends_on_lengths", True)),
        "updates": updates and bool(getattr(regularizer, "needs_update", True)),
    }


def as_text(info: dict[str, Any]) -> str:
    """A few lines to read."""
    version = f"{info['distribution']} {info['version']}".strip()
    lines = [
        f"{info['name']}: {info['summary']}",
        f"origin: {version} ({info['target']})",
        f"paper: {info['paper'] or 'not said'}",
        f"published weight: {published(info)}",
        "hyperparameters:" + ("" if info["hyperparameters"] else " none"),
    ]
    for name, default in info["hyperparameters"].items():
        lines.append(f"  {name}" + (" (required)" if name in info["required"] else f"={default!r}"))
    lines.append("capabilities, with the defaults:")
    if info["capabilities"] is None:
        lines.append(f"  unknown: {info['problem']}")
    else:
        lines += [
            f"  {name}: {'yes' if has else 'no'} ({CAPABILITIES[name]})"
            for name, has in info["capabilities"].items()
        ]
    return "\n".join(lines)


def published(info: dict[str, Any]) -> str:
    """The published weights, in words."""
    hidden, output = info["published_weight"], info["published_output_weight"]
    words = [] if hidden is None else [f"{hidden:g} in hidden layers"]
    if output is not None:
        options = [f"{name}={value!r}" for name, value in info["published_output_options"].items()]
        words.append(f"{output:g} in the output layer" + "".join(f", {o}" for o in options))
    return "; ".join(words) or "none"
