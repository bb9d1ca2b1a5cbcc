"""What the shared loop and the regularizers add to a training step of vgg9.

Every variant takes one step in turn, again and again; a ratio is the median over rounds of the
variant's time over the reference's time in the same round.

    python packages/classification/benchmarks/training_step.py [--rounds 15] [--width 1]
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mhe_classification.config import ClassificationConfig
from mhe_classification.data import Splits
from mhe_classification.train import Trainer
from mhe_core.training.augment import normalize, random_crop, random_flip
from mhe_core.training.images import ImageSet
from mhe_core.training.loop import make_accelerator
from mhe_core.training.run import Run

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
    rows = [
        ratio("the loop, over bare PyTorch", times["none"], times["bare PyTorch"], "≤ 1.05"),
        ratio("mhe, over none", times["mhe"], times["none"], "≤ 1.03"),
        ratio("half_mhe, over none", times["half_mhe"], times["none"], "≤ 1.03"),
        ratio("comhe_random 20×40, over none", times["comhe_random"], times["none"], "≤ 1.12"),
    ]
    print(f"vgg9, width {arguments.width}, batch {arguments.batch_size}, float32, {hardware()}")
    print("| step | ratio (median) | quartiles | aim |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['name']} | {row['median']:.3f} | {row['quartiles']} | {row['aim']} |")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"hardware": hardware(), "torch": torch.__version__, "rows": rows, "seconds": times}
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")


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
    accelerator = make_accelerator(config)
    loop = Trainer(config, Splits(images, None, images), accelerator).loop(Run(config))
    batches, numbers = loop.batches(0), itertools.count()
    return lambda: loop.advance(next(numbers), next(batches))


def interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 2:  # after the warm-up
                times[name].append(time.perf_counter() - began)
    return times


def ratio(name: str, times: list[float], reference: list[float], aim: str) -> dict[str, object]:
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    quartiles = f"{low:.3f} to {high:.3f}"
    return {"name": name, "median": statistics.median(ratios), "quartiles": quartiles, "aim": aim}


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
