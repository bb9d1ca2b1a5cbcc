"""A command of a dataclass and a function: flags, ``--config FILE.yaml``, ``--print_config``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from jsonargparse import ActionYesNo, ArgumentParser

from mhe_core.errors import USER_ERROR, exit_status
from mhe_core.training.processes import end_processes
from mhe_core.training.run import CONFIG_FILE, LENGTH, NOTES
from mhe_core.training.stopping import TrainingInterrupted

__all__ = ["dispatch", "parse", "run_command"]

C = TypeVar("C")


class _Parser(ArgumentParser):
    """Flags with dashes; a bool is a pair --flag, --no-flag; a dict also takes KEY=VALUE ….

    A field whose name is a word of Python's, such as ``class_``, has the flag without underscore.
    """

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        dashed = [a if a == "--print_config" else a.rstrip("_").replace("_", "-") for a in args]
        if args[0].endswith("_"):
            kwargs["dest"] = args[0].removeprefix("--")
        if kwargs.get("type") is bool:
            kwargs["action"] = ActionYesNo(no_prefix="no-")
            del kwargs["type"]
        if dashed[0].removeprefix("--").replace("-", "_") in NOTES:
            kwargs["help"] = argparse.SUPPRESS
        return super().add_argument(*dashed, **kwargs)


def parse(
    config_class: type[C], arguments: Sequence[str], prog: str, positional: Sequence[str] = ()
) -> C:
    """The configuration that the command-line arguments describe.

    With ``--resume``, the settings of the run that is continued stand in for the defaults.

    Args:
        config_class: a dataclass with a docstring that describes its attributes.
        arguments: the command line, without the command's name.
        prog: the command's name, for the help.
        positional: the fields that are given by position.
    """
    parser = _parser(config_class, prog, positional)
    arguments = _spell_out_mappings(arguments)
    settings = parser.parse_args(arguments)
    if settings.get("resume") and (saved := Path(settings.output) / CONFIG_FILE).exists():
        parser = _parser(config_class, prog, positional)
        taken_up = ["--config", str(saved), *_without_length(arguments)]
        settings = parser.parse_args([*taken_up, *arguments])
    del settings["config"], settings["traceback"]
    try:
        return config_class(**settings.as_dict())
    except ValueError as error:
        if "--traceback" in arguments:
            raise
        parser.error(str(error))


def _without_length(arguments: Sequence[str]) -> list[str]:
    """Flags that take away a saved run's length, where another is given."""
    flags = [f"--{name}" for name in sorted(LENGTH)]
    given = any(argument.split("=")[0] in flags for argument in arguments)
    return [f"{flag}=null" for flag in flags] if given else []


def _parser(config_class: type, prog: str, positional: Sequence[str]) -> _Parser:
    parser = _Parser(prog=prog, description=(config_class.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="a YAML file with settings")
    text = "show where an error comes from, in place of one line"
    parser.add_argument("--traceback", action="store_true", help=text)
    parser.add_class_arguments(config_class, skip=set(positional))
    types = get_type_hints(config_class)
    for name in positional:
        several = {"nargs": "+"} if get_origin(types[name]) is list else {}
        parser.add_argument(name, type=str, **several)
    return parser


def _spell_out_mappings(arguments: Sequence[str]) -> list[str]:
    """``--x-options A=1 B=2`` as ``--x-options.A=1 --x-options.B=2``."""
    spelled: list[str] = []
    mapping: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            mapping = argument if argument.endswith("-options") else None
            if mapping is None:
                spelled.append(argument)
        elif mapping is not None:
            spelled.append(f"{mapping}.{argument}")
        else:
            spelled.append(argument)
    return spelled


def dispatch(prog: str, commands: Mapping[str, str]) -> int:
    """Run ``prog COMMAND …``; returns the exit status, see :func:`run_command`.

    Args:
        prog: the program's name.
        commands: the module of each command, whose ``main`` takes the remaining arguments. No
            other one is imported, as that takes seconds.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in commands:
        asked = arguments[0] if arguments else None
        print(f"usage: {prog} {{{','.join(commands)}}} …  (COMMAND --help tells more)")
        if asked in ("-h", "--help"):
            return 0
        print(f"{prog}: expected a command, got {asked!r}", file=sys.stderr)
        return USER_ERROR
    name, *rest = arguments

    def command(arguments: Sequence[str]) -> object:
        return import_module(commands[name]).main(arguments)

    return run_command(f"{prog} {name}", command, rest)


def run_command(
    prog: str, command: Callable[[Sequence[str]], object], arguments: Sequence[str]
) -> int:
    """Run one command; an error that the user can mend is printed in one line.

    Returns:
        0, or 2 for a user's error, or 128 + the signal that stopped it. A bug is raised.
    """
    failed = True
    try:
        traceback = "--traceback" in arguments
        with _log_on_stderr(prog.split()[0].replace("-", "_")):
            status = exit_status(prog, lambda: command(arguments), traceback=traceback)
        failed = status != 0
        return status
    except TrainingInterrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"{prog}: {stopped}", file=sys.stderr)
        return stopped.status
    finally:
        end_processes(failed=failed)


@contextmanager
def _log_on_stderr(package: str) -> Iterator[None]:
    """Show what core and a package log, such as what a folder holds: of several processes, one."""
    loggers = [logging.getLogger(name) for name in ("mhe_core", package)]
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    if os.environ.get("RANK", "0") == "0":
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
