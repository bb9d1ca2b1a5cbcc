"""A download that takes its time, for processes that may be in each other's way."""

import time
from pathlib import Path

import numpy as np
from mhe_core.training.images import load_images, named

__all__ = ["load_slowly"]


class SlowDownload:
    """As torchvision's data sets: writes where it is, looks at nobody else, knows what it has."""

    classes = ("a", "b")
    targets = (0, 1)
    data = np.zeros((2, 32, 32, 3), dtype=np.uint8)

    def __init__(self, root, train, download):
        archive, whole = Path(root, "archive"), Path(root, "whole")
        if download and not whole.exists():
            with archive.open("x") as file:  # fails where another process writes it
                time.sleep(1)
                file.write("downloaded")
            archive.rename(whole)
        assert whole.read_text() == "downloaded"


def load_slowly(data_dir: Path, ready: Path) -> None:
    """Load a data set that has to be downloaded, at the time at which another process does."""
    named.datasets.CIFAR10 = SlowDownload
    ready.touch()
    while len(list(ready.parent.glob("ready*"))) < 2:
        time.sleep(0.01)
    assert len(load_images("cifar10", "train", data_dir=data_dir, download=True)) == 2
