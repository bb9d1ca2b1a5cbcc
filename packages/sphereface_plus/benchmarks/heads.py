"""What a head costs: forward and backward, over the bare linear layer's with cross entropy.

    python packages/sphereface_plus/benchmarks/heads.py [--rounds 9] [--classes 10572] [--batch 256]

Each round times all of them one after another, so that what else the machine does falls on all
alike; each figure is the median over the rounds of the ratio to the linear layer of that round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from sphereface_plus.heads import create_head, list_heads
from torch import Tensor, nn
from torch.nn import functional


class Linear(nn.Linear):
    """The layer without a margin, and its cross entropy."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(super().forward(features), labels)


def seconds(head: nn.Module, features: Tensor, labels: Tensor) -> float:
    head.zero_grad()
    features.grad = None
    began = time.perf_counter()
    head(features, labels).backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rounds", 9), ("classes", 10572), ("dim", 512), ("batch", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.manual_seed(0)
    features = torch.randn(args.batch, args.dim, requires_grad=True)
    labels = torch.randint(args.classes, (args.batch,))
    heads: dict[str, nn.Module] = {"linear": Linear(args.dim, args.classes, bias=False)}
    heads |= {name: create_head(name, args.dim, args.classes) for name in list_heads()}
    taken: dict[str, list[float]] = {name: [] for name in heads}
    for counts in range(-1, args.rounds):  # the first one warms up
        for name, head in heads.items():
            found = seconds(head, features, labels)
            if counts >= 0:
                taken[name].append(found)
    print(
        f"{args.classes:,} x {args.dim}, batch {args.batch}, float32, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, median of {args.rounds} rounds"
    )
    print("| head | ms | over linear |\n|---|---|---|")
    for name, times in taken.items():
        ratio = statistics.median(a / b for a, b in zip(times, taken["linear"], strict=True))
        print(f"| {name} | {1000 * statistics.median(times):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
