"""One step over very many classes, whose vectors are shared out over processes: time and memory.

    torchrun --nproc-per-node 2 packages/sphereface_plus/benchmarks/many_classes.py \\
        [--classes 1000000] [--dim 512] [--batch 16] [--sample-rate 1] [--energy none|sampled]

Forward and backward of the CosFace head and a step of SGD with momentum, of random features. Each
process says what it held at most (resident set, with torch itself) and how long the step took.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
import torch.distributed as dist
from mhe_core import sharded_hyperspherical_energy
from sphereface_plus.sampling import sample_classes
from sphereface_plus.sharded import ShardedSphereFaceHead, loss_parallel


def peak_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("classes", 1_000_000), ("dim", 512), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--sample-rate", type=float, default=1.0)
    parser.add_argument("--energy", choices=("none", "sampled"), default="none")
    args = parser.parse_args()
    if args.energy == "sampled" and args.sample_rate == 1:
        parser.error("expected --sample-rate below 1 with --energy sampled, got 1")
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    head = ShardedSphereFaceHead(args.dim, args.classes, variant="cosface")
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    everyones = torch.randint(args.classes, (world * args.batch,), generator=generator)
    labels = everyones[rank * args.batch : (rank + 1) * args.batch]
    torch.manual_seed(rank + 1)
    features = torch.randn(args.batch, args.dim, requires_grad=True)
    before = peak_gib()
    began = time.perf_counter()
    classes = None
    if args.sample_rate < 1:
        own = everyones - head.start
        classes = sample_classes(own, len(head.weight), args.sample_rate, 0, 0, rank)
    with loss_parallel():
        loss = head(features, labels, classes)
        if args.energy == "sampled":
            loss = loss + sharded_hyperspherical_energy(head.weight[classes])
        loss.backward()
    optimizer.step()
    dist.barrier()
    print(
        f"process {rank} of {world}: {len(head.weight):,} of {args.classes:,} class vectors of "
        f"{args.dim}, {world * args.batch} images, loss {loss.item():.3f}: "
        f"{time.perf_counter() - began:.1f} s, peak {peak_gib():.2f} GiB "
        f"({before:.2f} GiB before the step)",
        flush=True,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
