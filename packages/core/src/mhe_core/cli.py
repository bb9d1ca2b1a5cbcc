"""The command ``mhe``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mhe_core.inspection import add_inspect
from mhe_core.plugins import RegularizerInfo, list_regularizers

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mhe COMMAND``; what the user got wrong is one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="mhe", description="Minimum hyperspherical energy.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_list(commands)
    add_inspect(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        parser.exit(2, f"mhe: error: {error}\n")


def add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mhe list``."""
    text = "the regularizers found, and where each comes from"
    command = commands.add_parser("list", help=text, description=f"Print {text}.")
    command.set_defaults(run=lambda arguments: print(table(list_regularizers())))


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


if __name__ == "__main__":
    main()
