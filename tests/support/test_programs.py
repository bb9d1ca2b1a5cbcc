"""What the tests start ends with them."""

import subprocess
import sys
import time

import psutil
import pytest

from support.programs import run_program, started, torchrun

# Starts a process in a session of its own, which holds the pipes open, says its id, and ends or
# waits for it.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print(child.pid, flush=True)
if sys.argv[1] == "wait":
    child.wait()
"""
RANK = """
import os, pathlib, sys, time
import torch.distributed as dist
dist.init_process_group("gloo")
(pathlib.Path(sys.argv[1]) / os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("then", ["wait", "end"])
def test_a_program_that_hangs_is_an_error_and_leaves_nothing(then):
    began = time.monotonic()
    with pytest.raises(AssertionError, match="not at its end after 1 s") as error:
        run_program(sys.executable, "-c", PARENT, then, timeout=1)
    assert time.monotonic() - began < 30
    assert gone(int(str(error.value).splitlines()[1]))


def test_what_a_killed_program_started_is_killed_too():
    with started(sys.executable, "-c", PARENT, "wait", stdout=subprocess.PIPE) as program:
        child = int(program.stdout.readline())
        program.kill()
        program.wait()
        assert psutil.pid_exists(child)
    assert gone(child)


def test_workers_of_torchrun_end_with_it(tmp_path):
    (tmp_path / "program.py").write_text(RANK)
    files = [tmp_path / rank for rank in "01"]
    with started(*torchrun(2, tmp_path / "program.py", tmp_path)) as program:
        while not all(file.exists() and file.read_text() for file in files):
            assert program.poll() is None
            time.sleep(0.05)
    assert all(gone(int(file.read_text())) for file in files)


def test_another_exit_status_than_expected_shows_what_was_printed():
    with pytest.raises(AssertionError, match=r"expected exit status 0, got 3\nits reason"):
        run_program(sys.executable, "-c", "import sys; print('its reason'); sys.exit(3)")
