"""The command ``mhe``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mhe_core.cli.check import add_check
from mhe_core.cli.diff import add_diff
from mhe_core.cli.info import add_info
from mhe_core.cli.inspect import add_inspect
from mhe_core.cli.list import add_list
from mhe_core.errors import exit_status

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mhe COMMAND``; ends in an exit status, see :func:`mhe_core.errors.exit_status`."""
    parser = argparse.ArgumentParser(prog="mhe", description="Minimum hyperspherical energy.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_list(commands)
    add_info(commands)
    add_check(commands)
    add_inspect(commands)
    add_diff(commands)
    for command in commands.choices.values():
        text = "show where an error comes from, in place of one line"
        command.add_argument("--traceback", action="store_true", help=text)
    arguments = parser.parse_args(argv)

    def run() -> None:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            arguments.run(arguments)

    if status := exit_status("mhe", run, traceback=arguments.traceback):
        sys.exit(status)


def show_warning(message: Warning | str, *where: Any) -> None:
    """One line on stderr, without the line of our code that warned."""
    print(f"mhe: warning: {message}", file=sys.stderr)
