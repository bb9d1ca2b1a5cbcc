"""What the shared loop and the regularizers add to a training step of vgg9.

Every variant takes one step in turn, again and again; a ratio is the median over rounds of the
variant's time over the reference's time in the same round.

    python packages/classification/benchmarks/training_step.py [--rounds 15] [--width 1]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mhe_classification.config import ClassificationConfig
from mhe_classification.data import Splits
from mhe_classification.train import Trainer
from mhe_core.training.augment import normalize, random_crop, random_flip
from mhe_core.training.images import ImageSet
from mhe_core.training.processes import make_accelerator
from mhe_core.training.run import Run
from mhe_core.training.timing import Ratio, interleaved, report

REGULARIZERS = {
    "none": {},
    "mhe": {},
    "half_mhe": {},
    "comhe_random": {"projection_dim": 40, "num_projections": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/classification.json"))
    arguments = parser.parse_args()

    images = ImageSet(
        labels=torch.randint(10, (1024,)),
        classes=tuple("0123456789"),
        size=(32, 32),
        pixels=torch.randint(256, (1024, 3, 32, 32), dtype=torch.uint8),
    )
    with tempfile.TemporaryDirectory() as folder:
        steps = {"bare PyTorch": bare_step(images, arguments.width, arguments.batch_size)}
        for name, options in REGULARIZERS.items():
            config = ClassificationConfig(
                output=Path(folder) / name,
                data="random",
                width=arguments.width,
                batch_size=arguments.batch_size,
                regularizer=name,
                **options,
            )
            steps[name] = our_step(config, images)
        times = interleaved(steps, arguments.rounds)
    ratios = [
        Ratio("the loop, over bare PyTorch", "none", "bare PyTorch", "≤ 1.05"),
        Ratio("mhe, over none", "mhe", "none", "≤ 1.03"),
        Ratio("half_mhe, over none", "half_mhe", "none", "≤ 1.03"),
        Ratio("comhe_random 20×40, over none", "comhe_random", "none", "≤ 1.15"),
    ]
    title = f"vgg9, width {arguments.width}, batch {arguments.batch_size}, float32"
    report(title, ratios, times, arguments.output)


def bare_step(images: ImageSet, width: float, batch_size: int) -> Callable[[], None]:
    """The same network, augmentation and optimizer, as one would write them by hand."""
    from mhe_classification.models import vgg9

    model = vgg9(num_classes=10, width=width)
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    criterion = torch.nn.CrossEntropyLoss()

    def step() -> None:
        index = torch.randint(len(images), (batch_size,))
        pixels, labels = images.pixels[index], images.labels[index]
        optimizer.zero_grad()
        criterion(model(normalize(random_flip(random_crop(pixels)))), labels).backward()
        optimizer.step()

    return step


def our_step(config: ClassificationConfig, images: ImageSet) -> Callable[[], None]:
    accelerator = make_accelerator(config.device, config.amp)
    loop = Trainer(config, Splits(images, None, images), accelerator).loop(Run(config))
    batches, numbers = loop.batches(0), itertools.count()
    return lambda: loop.advance(next(numbers), next(batches))


if __name__ == "__main__":
    main()
