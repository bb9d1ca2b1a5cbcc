"""What every test relies on."""

import os
import signal
import subprocess
import sys
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from support import programs

# Tiny networks run faster on one thread, and the processes that tests start inherit it. Read when
# torch is imported, so that nothing here may import it before.
assert "torch" not in sys.modules
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Whoever starts pytest in the background ignores these, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(getattr(signal, "SIGHUP", signal.SIGINT)) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def example_plugin(tmp_path_factory):
    """A folder for PYTHONPATH in which pip has installed tests/example_plugin."""
    target = tmp_path_factory.mktemp("site")
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline]
    source = Path(__file__).parent / "example_plugin"
    programs.run_program(*command, "--target", target, source)
    return target


@pytest.fixture
def command(monkeypatch, capsys):
    """Run an installed command in this process, which spares its imports.

    Returns what it printed; its exit status must be ``status``.
    """

    def run(name, *arguments, status=0):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        (script,) = entry_points(group="console_scripts", name=name)
        try:
            found = script.load()() or 0
        except SystemExit as stop:
            found = stop.code or 0
        printed = capsys.readouterr()
        assert found == status, printed.out + printed.err
        return subprocess.CompletedProcess(sys.argv, found, printed.out, printed.err)

    return run


@pytest.fixture
def traced_graphs(monkeypatch):
    """torch.compile without the minutes of generating code: what it traces runs as it is.

    Returns how many graphs were traced of each network, by the name of its class.
    """
    import torch

    found = Counter()
    original = torch.compile

    def trace(called):
        def backend(graph, inputs):
            found[type(called).__name__] += 1
            return graph.forward

        return original(called, backend=backend)

    monkeypatch.setattr(torch, "compile", trace)
    torch.compiler.reset()
    yield found
    torch.compiler.reset()


@pytest.fixture
def clash(monkeypatch):
    """A third party's mhe, half_mhe and koleo, under the distribution in-process."""
    from mhe_core import register_regularizer
    from torch import nn

    class Another(nn.Module):
        def __init__(self, num_neurons, dim):
            super().__init__()

        def forward(self, neurons):
            return neurons.square().sum()

    registry = sys.modules[register_regularizer.__module__]
    monkeypatch.setattr(registry, "_registered", {})
    for name in ("mhe", "half_mhe", "koleo"):
        register_regularizer(name, Another)
