"""Programs that tests start: none outlives its test, nor does anything that it started itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

__all__ = ["Program", "run_program", "script", "started", "torchrun"]

# Inherited by all that a program starts: torchrun puts its workers into sessions of their own,
# and where it dies they have no parent any more, but they still carry this.
MARK = "MHE_TEST_PROGRAM"


class Program(subprocess.Popen):
    """A program, and whatever it starts, of one thread each."""

    def __init__(self, *command: object, env: dict[str, str] | None = None, **options: object):
        self.mark = uuid.uuid4().hex
        settings = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", **(env or {}), MARK: self.mark}
        super().__init__(
            list(map(str, command)),
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for pytest alone, which then kills it
            preexec_fn=heed_signals,
            text=True,
            **options,
        )

    def kill_all(self) -> None:
        """Kill it and everything that it has started."""
        while found := [process for process in psutil.process_iter() if self._started(process)]:
            for process in found:
                process.kill()
            psutil.wait_procs(found, timeout=0.2)  # zombies, too, are no longer found
        self.wait()

    def _started(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            return False


def heed_signals() -> None:
    """Undo what the tests' own parent may have set: nohup, and shells for what runs behind."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def started(*command: object, **options: object) -> Iterator[Program]:
    """A running program; at the end of the block it is killed, with all that it has started."""
    program = Program(*command, **options)
    try:
        yield program
    finally:
        program.kill_all()


def run_program(
    *command: object, status: int = 0, timeout: float = 240, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and return what it printed; its exit status must be ``status``."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(*command, **pipes, **options) as program:
        try:
            stdout, stderr = program.communicate(timeout=timeout)
            problem = f"expected exit status {status}, got {program.returncode}"
        except subprocess.TimeoutExpired:
            program.kill_all()  # or those that it started would hold the pipes open
            stdout, stderr = program.communicate()
            problem = f"not at its end after {timeout} s"
            raise AssertionError(f"{program.args}: {problem}\n{stdout}\n{stderr}") from None
    assert program.returncode == status, f"{program.args}: {problem}\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)


def torchrun(processes: int, *command: object) -> tuple[object, ...]:
    """The command that starts a program in several gloo processes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    return (*launcher, f"--nproc-per-node={processes}", "--rdzv-conf=join_timeout=60", *command)


def script(name: str) -> Path:
    """The installed command of that name."""
    return Path(sys.executable).with_name(name)
