"""What a user got wrong, and what a command does about it: one line, or the traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["USER_ERROR", "UserError", "exit_status", "users_request"]

# Exit statuses of every command. A bug ends as Python ends it, in its traceback and 1.
USER_ERROR = 2  # as argparse has it
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
MORE = " (--traceback shows where)"


class UserError(ValueError):
    """What a user asked for cannot be had; the message says what was expected, and what came.

    Commands print it in one line. Everything else is a bug of this project or of a library, and
    its traceback is shown.
    """


@contextmanager
def users_request(what: str) -> Iterator[None]:
    """In this block, a ValueError or TypeError is about what the user asked for.

    For calls that hand a user's settings to a library, which checks them in its own way.

    Args:
        what: the flags, for the message.

    Raises:
        UserError: in their place.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: {error}") from error


def exit_status(prog: str, action: Callable[[], object], *, traceback: bool = False) -> int:
    """Carry out a command's action; returns its exit status.

    A :class:`UserError`, and an error of the operating system (a file that is not there, a disk
    that is full), become one line on stderr and the status 2. Other exceptions pass.

    Args:
        prog: the command's name, for the message.
        action: the command's work.
        traceback: let users' errors pass, too.
    """
    try:
        action()
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (UserError, OSError) as error:
        if traceback:
            raise
        more = "" if isinstance(error, UserError) and error.__cause__ is None else MORE
        print(f"{prog}: error: {error}{more}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        if traceback:
            raise
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
