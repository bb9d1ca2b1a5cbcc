"""The command ``mhe``."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mhe_core.cli.diff import add_diff
from mhe_core.cli.inspect import add_inspect
from mhe_core.cli.list import add_list

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mhe COMMAND``; what the user got wrong is one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="mhe", description="Minimum hyperspherical energy.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_list(commands)
    add_inspect(commands)
    add_diff(commands)
    arguments = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            arguments.run(arguments)
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        parser.exit(2, f"mhe: error: {error}\n")


def show_warning(message: Warning | str, *where: Any) -> None:
    """One line on stderr, without the line of our code that warned."""
    print(f"mhe: warning: {message}", file=sys.stderr)
