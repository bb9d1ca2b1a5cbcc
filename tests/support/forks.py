"""Python programs without the seconds of imports: forked from a server that has done them.

Each is a process of its own all the same, with its own session, environment and streams, as if
``python …`` had started it. What a test says of a start itself (what is imported, what torchrun
does, threads) needs the real one, see :mod:`support.programs`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["forked", "run_processes", "run_python"]

# The server imports those whose packages the tests have imported.
PRELOADED = ("torch.distributed.tensor.parallel", "mhe_core.cli", "mhe_classification.compare")
PRELOADED += ("mhe_gan.compare", "sphereface_plus.compare", "sphereface_plus.align")
PRELOADED += ("lightning.pytorch", "transformers.trainer", "sklearn.model_selection")


@contextmanager
def forked(function: Callable[..., Any], *arguments: Any) -> Iterator[BaseProcess]:
    """A process that calls the function; at the end of the block it is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([n for n in PRELOADED if n.partition(".")[0] in sys.modules])
    process = context.Process(target=_leading, args=(function, *arguments))
    process.start()
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):  # its own children, too
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def run_python(
    *command: object, env: Mapping[str, str] | None = None, status: int = 0, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """What ``python *command`` prints; its exit status must be ``status``.

    Args:
        *command: a file, ``-c`` and code, or ``-m`` and a module's name, and their arguments.
        env: added to the environment.
        status: the status it must end with.
        timeout: seconds after which it is killed, and the test fails.
    """
    (done,) = _run(command, [env or {}], status, timeout)
    return done


def run_processes(
    number: int, *command: object, env: Mapping[str, str] | None = None, timeout: float = 240
) -> list[subprocess.CompletedProcess[str]]:
    """Run a Python program in several processes that find each other as torchrun's do.

    Each has a rank, and the address of a store that this process keeps. Where one fails, the
    others are killed.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    size = str(number)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        **{"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": "0", **(env or {})},
    }
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    return _run(command, ranks, 0, timeout)


def _run(
    command: Sequence[object],
    environments: Sequence[Mapping[str, str]],
    status: int,
    timeout: float,
) -> list[subprocess.CompletedProcess[str]]:
    words = list(map(str, command))
    with ExitStack() as running, tempfile.TemporaryDirectory() as folder:
        processes = []
        for k, environment in enumerate(environments):
            streams = [Path(folder, f"{k}.{name}") for name in ("stdout", "stderr")]
            whole = os.environ | {"MPLBACKEND": "agg", **environment}
            processes.append(
                running.enter_context(forked(_python, words, whole, os.getcwd(), streams))
            )
        end = time.monotonic() + timeout
        while alive := [process for process in processes if process.is_alive()]:
            left = end - time.monotonic()
            failed = any(process.exitcode not in (None, status) for process in processes)
            if failed or not connection.wait([process.sentinel for process in alive], left):
                break
        found = [
            subprocess.CompletedProcess(
                words,
                process.exitcode,
                *(Path(folder, f"{k}.{name}").read_text() for name in ("stdout", "stderr")),
            )
            for k, process in enumerate(processes)
        ]
    for done in found:
        problem = f"expected exit status {status}, got {done.returncode}"
        if done.returncode is None:
            problem = f"killed: not at its end after {timeout} s, or another one failed"
        assert done.returncode == status, "\n".join(
            [f"{words}: {problem}", *(text for one in found for text in (one.stdout, one.stderr))]
        )
    return found


def _leading(function: Callable[..., Any], *arguments: Any) -> None:
    """Call the function in a session of its own, so that it is killed with its children."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # see programs.heed_signals
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    function(*arguments)


def _python(
    words: list[str], environment: Mapping[str, str], folder: str, streams: Sequence[Path]
) -> None:
    """Be the program; this process was made for it."""
    for descriptor, stream in enumerate(streams, start=1):
        file = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    first, *rest = words
    path = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if first in ("-m", "-c"):
        what, *rest = rest
        sys.path[:0] = [folder, *path]
        sys.argv = [first, *rest]
        if first == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
    else:
        sys.path[:0] = [os.path.dirname(first), *path]
        sys.argv = words
        runpy.run_path(first, run_name="__main__")
