"""The real commands, on tiny networks."""

import pytest
from mhe_classification.config import ClassificationConfig
from mhe_classification.train import train as train_classifier
from mhe_core.training.images import load_images
from mhe_core.training.processes import make_accelerator
from mhe_gan.config import GANConfig
from mhe_gan.train import Trainer
from support.forks import run_python
from support.programs import script

TINY = ("--width", "0.0625", "--batch-size", "16", "--device", "cpu", "--steps", "24")
TINY += ("--log-every", "5", "--checkpoint-every", "4", "--sample-every", "8")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run that was never interrupted."""
    path = tmp_path_factory.mktemp("trained") / "run"
    run_python(script("mhe-gan"), "train", "--output", path, *TINY)
    return path


@pytest.fixture
def make_trainer(tmp_path):
    """A trainer of tiny networks on digits, and its first batch."""

    def make(**settings):
        tiny = {"width": 0.0625, "steps": 10, "batch_size": 8, "device": "cpu"}
        config = GANConfig(output=tmp_path / "run", **{**tiny, **settings})
        size = config.image_size and (config.image_size, config.image_size)
        images = load_images("digits", "train", size=size)
        trainer = Trainer(config, images, make_accelerator(config.device, config.amp))
        num = config.batch_size * config.n_dis
        return trainer, (images.pixels[:num], images.labels[:num])

    return make


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory):
    """Two classifiers to score with; the second has a moving average, which is then used."""
    folder = tmp_path_factory.mktemp("classifiers")
    tiny = {"width": 0.0625, "image_size": 8, "steps": 1, "device": "cpu"}
    for seed in (0, 1):
        average = {"seed": seed, "ema": 0.9 * seed}
        train_classifier(ClassificationConfig(output=folder / str(seed), **average, **tiny))
    return [str(folder / "0"), str(folder / "1")]
