"""What the shared loop and MHE add to a training step of DCGAN with SNDCGAN's discriminator.

Every variant takes one step in turn, again and again; a ratio is the median over rounds of the
variant's time over the reference's time in the same round.

    python packages/mhe_gan/benchmarks/training_step.py [--rounds 9] [--width 1]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mhe_core.training.images import ImageSet
from mhe_core.training.processes import make_accelerator
from mhe_core.training.run import Run
from mhe_core.training.timing import Ratio, interleaved, report
from mhe_gan.config import GANConfig
from mhe_gan.losses import discriminator_loss, generator_loss
from mhe_gan.networks import create_networks
from mhe_gan.train import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/mhe_gan.json"))
    arguments = parser.parse_args()

    images = ImageSet(
        labels=torch.zeros(1024, dtype=torch.int64),
        classes=("noise",),
        size=(32, 32),
        pixels=torch.randint(256, (1024, 3, 32, 32), dtype=torch.uint8),
    )
    with tempfile.TemporaryDirectory() as folder:
        steps = {"bare PyTorch": bare_step(images, arguments.width, arguments.batch_size)}
        settings: dict[str, dict[str, Any]] = {
            "none, no average": {"regularizer": "none", "ema": 0},
            "none": {"regularizer": "none"},
            "mhe": {},
            "mhe every 4th": {"penalty_every": 4},
        }
        for name, own in settings.items():
            config = GANConfig(
                output=Path(folder) / name,
                data="random",
                width=arguments.width,
                batch_size=arguments.batch_size,
                **own,
            )
            steps[name] = our_step(config, images)
        steps["four, none"] = partial(four_times, steps["none"])
        steps["four, mhe every 4th"] = partial(four_times, steps.pop("mhe every 4th"))
        steps["none + products"] = with_products(steps["none"], arguments.width)
        times = interleaved(steps, arguments.rounds)
    ratios = [
        Ratio("the loop, over bare PyTorch", "none, no average", "bare PyTorch", "≤ 1.05"),
        Ratio("the loop with EMA, over bare PyTorch without", "none", "bare PyTorch", "≤ 1.05"),
        Ratio("mhe, over none", "mhe", "none", "≤ 1.03"),
        Ratio("mhe every 4th step, over none", "four, mhe every 4th", "four, none", "≤ 1.03"),
        Ratio("two matrix products a layer, over none", "none + products", "none", ""),
    ]
    title = f"dcgan with spectral norm, width {arguments.width}, batch {arguments.batch_size}"
    report(title, ratios, times, arguments.output)


def bare_step(images: ImageSet, width: float, batch_size: int) -> Callable[[], None]:
    """The same networks and optimizers, as one would write the step by hand."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator, discriminator = (n.to(device) for n in create_networks("dcgan", width=width))
    generator_adam, discriminator_adam = (
        torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.5, 0.999))
        for network in (generator, discriminator)
    )

    def step() -> None:
        index = torch.randint(len(images), (batch_size,))
        real = images.pixels[index].to(device).float() / 127.5 - 1
        discriminator.requires_grad_(False)
        generator_adam.zero_grad()
        fake = generator(torch.randn(batch_size, 128, device=device))
        generator_loss(discriminator(fake)).backward()
        generator_adam.step()
        discriminator.requires_grad_(True)
        discriminator_adam.zero_grad()
        with torch.no_grad():
            fake = generator(torch.randn(batch_size, 128, device=device))
        logits = discriminator(torch.cat([real, fake]))
        discriminator_loss(logits[:batch_size], logits[batch_size:]).backward()
        discriminator_adam.step()

    return step


def our_step(config: GANConfig, images: ImageSet) -> Callable[[], None]:
    loop = Trainer(config, images, make_accelerator(config.device, config.amp)).loop(Run(config))
    batches, numbers = loop.batches(0), itertools.count()
    return lambda: loop.advance(next(numbers), next(batches))


def four_times(step: Callable[[], None]) -> None:
    for _ in range(4):
        step()


def with_products(step: Callable[[], None], width: float) -> Callable[[], None]:
    """A step without MHE, then what no energy can do without: the cosines, and their gradient."""
    _, discriminator = create_networks("dcgan", width=width, spectral_normed=False)
    discriminator.to("cuda" if torch.cuda.is_available() else "cpu")
    weights = [p.detach().flatten(1) for p in discriminator.parameters() if p.ndim == 4]

    def both() -> None:
        step()
        for weight in weights:
            (weight @ weight.mT) @ weight

    return both


if __name__ == "__main__":
    main()
