"""The command ``mhe list``: the regularizers that are installed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from mhe_core.registry import RegularizerInfo, list_regularizers

__all__ = ["add_list"]


def add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mhe list``."""
    text = "the regularizers found, and where each comes from"
    command = commands.add_parser("list", help=text, description=f"Print {text}.")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Carry out ``mhe list``."""
    infos = list_regularizers()
    print(
        json.dumps([asdict(info) for info in infos], indent=2) if arguments.json else table(infos)
    )


def table(infos: Sequence[RegularizerInfo]) -> str:
    """One line a regularizer, in columns, and under them one line a name that two claim."""
    rows = [("name", "distribution", "summary")]
    rows += [(info.name, info.origin, info.summary) for info in infos]
    name_width, origin_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [
        f"{name:{name_width}}  {origin:{origin_width}}  {summary}".rstrip()
        for name, origin, summary in rows
    ]
    return "\n".join(lines + clashes(infos))


def clashes(infos: Sequence[RegularizerInfo]) -> list[str]:
    """What to write for each name that more than one distribution claims."""
    claims: dict[str, list[str]] = {}
    for info in infos:
        claims.setdefault(info.name, []).append(f"{info.distribution}:{info.name}")
    return [
        f"{name!r} is claimed {len(picks)} times: write {' or '.join(picks)}"
        for name, picks in claims.items()
        if len(picks) > 1
    ]
