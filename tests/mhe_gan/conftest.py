"""The real commands, on tiny networks."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from mhe_core.training.images import load_images
from mhe_core.training.processes import make_accelerator
from mhe_gan import cli
from mhe_gan.config import GANConfig
from mhe_gan.train import Trainer

TINY = ("--width", "0.0625", "--batch-size", "16", "--device", "cpu")
SCHEDULE = ("--steps", "24", "--log-every", "5", "--checkpoint-every", "4", "--sample-every", "8")


@pytest.fixture(scope="session")
def command():
    """``mhe-gan …`` as a list for subprocess; ``train`` gets tiny settings."""

    def command(name, *arguments):
        tiny = (*TINY, *SCHEDULE) if name == "train" else ()
        program = Path(sys.executable).with_name("mhe-gan")
        return [str(x) for x in (program, name, *tiny, *arguments)]

    return command


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture
def run_command(command, monkeypatch, capsys):
    """Run ``mhe-gan …`` in this process, which spares its imports; it succeeds, or not, as said."""

    def run(*arguments, ok=True):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", command(*arguments))
        with pytest.raises(SystemExit) as exit:
            cli.main()
        done = Done(*capsys.readouterr())
        assert (exit.value.code == 0) == ok, done
        return done

    return run


@pytest.fixture(scope="session")
def run_process(command):
    """Run ``mhe-gan …`` as a process of its own, to its end."""

    def run(*arguments):
        done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, run_process):
    """A run that was never interrupted."""
    path = tmp_path_factory.mktemp("trained") / "run"
    run_process("train", "--output", path)
    return path


@pytest.fixture
def make_trainer(tmp_path):
    """A trainer of tiny networks on digits, and its first batch."""

    def make(**settings):
        tiny = {"width": 0.0625, "steps": 10, "batch_size": 8, "device": "cpu"}
        config = GANConfig(output=tmp_path / "run", **{**tiny, **settings})
        images = load_images("digits", "train")
        trainer = Trainer(config, images, make_accelerator(config.device, config.amp))
        num = config.batch_size * config.n_dis
        return trainer, (images.pixels[:num], images.labels[:num])

    return make
