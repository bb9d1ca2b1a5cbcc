"""One process a run directory, by a lock that a crashed process does not leave behind."""

import errno
import os
import signal
import subprocess
import sys

import psutil
import pytest
from mhe_core.training import lock
from mhe_core.training.lock import FolderLock, Locked
from mhe_core.training.run import RunError
from support.programs import started
from support.tiny import TinyConfig, train

# Holds the lock, and has a child, such as torch's DataLoader forks, that lives on without it.
HOLDER = """
import os, sys, time
from mhe_core.training.lock import FolderLock
FolderLock(sys.argv[1]).acquire()
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


def test_two_processes_do_not_train_one_run_and_a_killed_one_leaves_no_lock(tmp_path):
    config = TinyConfig(output=tmp_path, steps=4, batch_size=16, resume=True)
    train(config)
    (tmp_path / "summary.json").unlink()
    program = (sys.executable, "-c", HOLDER, tmp_path)
    with started(*program, stdout=subprocess.PIPE) as holder:
        child = int(holder.stdout.readline())
        with pytest.raises(RunError, match="in use by another process"):
            train(config)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert psutil.pid_exists(child)
        train(config)
    assert (tmp_path / "summary.json").exists()


def test_two_runs_of_one_process_do_not_share_a_folder(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path / ".")
    first.acquire()
    first.acquire()
    with pytest.raises(Locked, match="in use by this process"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_file_system_without_locks_is_said_and_works(tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refused)
    train(TinyConfig(output=tmp_path, steps=2, batch_size=16))
    assert "cannot be locked" in capsys.readouterr().err
    assert (tmp_path / "summary.json").exists()
