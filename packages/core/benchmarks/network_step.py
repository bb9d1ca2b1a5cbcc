"""What a regularizer adds to a training step of networks as they are, by the default settings.

Steps without and with one take turns; a ratio is the median over rounds of one step's time over the
other's in the same round. On a GPU in bfloat16's autocast, with batches of 128 images.

    python packages/core/benchmarks/network_step.py [--models resnet50 vit_small_patch16_224]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from mhe_core import NetworkRegularizer
from mhe_core.training.timing import Ratio, interleaved, report
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH_SIZE = 128 if DEVICE.type == "cuda" else 4
REGULARIZERS = ("half_mhe", "comhe_random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="*", default=["resnet50", "vit_small_patch16_224"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/network_step.json"))
    arguments = parser.parse_args()
    ratios: list[Ratio] = []
    times: dict[str, list[float]] = {}
    for name in arguments.models:
        model = timm.create_model(name).to(DEVICE)
        images = torch.randn(BATCH_SIZE, *timm.data.resolve_model_data_config(model)["input_size"])
        steps = {f"{name}, none": training_step(model, images.to(DEVICE), None)}
        for regularizer in REGULARIZERS:
            added = NetworkRegularizer(model, regularizer, "mhe").to(DEVICE)
            step = f"{name}, {regularizer}"
            steps[step] = training_step(model, images.to(DEVICE), added)
            ratios.append(Ratio(f"{step}, over none", step, f"{name}, none", ""))
        times |= interleaved(steps, arguments.rounds, warm_up=3)
    report(f"Forward and backward, {BATCH_SIZE} images", ratios, times, arguments.output)


def training_step(
    model: nn.Module, images: Tensor, regularizer: NetworkRegularizer | None
) -> Callable[[], None]:
    """Forward and backward, with the penalty computed first, while the GPU has nothing to do."""

    def step() -> None:
        model.zero_grad()
        penalty: Tensor | float = 0.0
        if regularizer is not None:
            regularizer.update(0.1)
            penalty = regularizer()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = model(images).float().logsumexp(1).mean()
        (loss + penalty).backward()

    return step


if __name__ == "__main__":
    main()
