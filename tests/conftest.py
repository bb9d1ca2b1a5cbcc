"""What every test relies on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Tiny networks run faster on one thread, and the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def example_plugin(tmp_path_factory):
    """A folder for PYTHONPATH in which pip has installed tests/example_plugin."""
    target = tmp_path_factory.mktemp("site")
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline]
    source = Path(__file__).parent / "example_plugin"
    subprocess.run([*command, "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture(scope="session")
def torchrun():
    """Run a program in several gloo processes of one thread each."""

    def run(processes, *command):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        result = subprocess.run(
            [*launcher, f"--nproc-per-node={processes}", *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 0, result.stderr

    return run
