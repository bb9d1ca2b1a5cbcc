"""What the exact energy and its gradient cost in time and memory.

Times are ratios of steps that take turns: the median over rounds of one step's time over the
other's in the same round. Memory is the peak of a fresh process, beyond what it held before.

    python packages/core/benchmarks/energy.py [--quick | --curve] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from mhe_core import hyperspherical_energy
from mhe_core.energy._tiles import value_and_gradient
from mhe_core.energy.pair_potential import PairPotential
from mhe_core.energy.potential import Gaussian, Riesz
from mhe_core.energy.potential_base import Potential
from mhe_core.plotting import drawing
from mhe_core.training.files import write_atomically
from mhe_core.training.timing import Ratio, hardware, interleaved, report, resident
from torch import Tensor
from torch.nn.functional import normalize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MIB = 2**20
DIM = 512  # of the neurons whose number varies
MOST_BEYOND_GRADIENT, MOST_EXTRA = 64, 512  # MiB, the latter at MS1M's 85,742 classes
Times = dict[str, list[float]]
Step = Callable[[], object]


class Size(NamedTuple):
    """Neurons to measure, in how many rounds, and what is aimed at (None: not measured)."""

    N: int
    d: int
    rounds: int
    most_products: float  # times the two products
    least_speedup: float | None  # over the direct formula
    variants: bool = False  # whether other potentials are measured, too

    def __str__(self) -> str:
        return f"{self.N}×{self.d}"


SIZES = [
    Size(64, 576, 400, 3, 4),
    Size(256, 2304, 100, 1.4, 7, variants=True),
    Size(512, 4608, 50, 1.2, 6),
    Size(2048, 512, 20, 1.1, 15, variants=True),
    Size(10572, 512, 7, 0.95, None),
]
QUICK_SIZES = [Size(64, 576, 10, 3, 4), Size(256, 2304, 3, 1.4, 7, variants=True)]
VARIANTS: dict[str, dict[str, Any]] = {
    "half-space s=0": {"s": 0},
    "half-space s=1": {"s": 1},
    "half-space s=3": {"s": 3},
    "half-space angular s=2": {"distance": "angular"},
}


@dataclass(frozen=True)
class ValueAlone(Potential):
    """A third party's potential: a Gaussian of which only the value was written."""

    def value(self, squared_chord: Tensor) -> Tensor:
        return torch.exp(-2 * squared_chord)


SECOND: dict[str, Potential] = {"Gaussian": Gaussian(2.0), "Gaussian by its value": ValueAlone()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--curve", action="store_true", help="memory at all sizes, for the plot")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/energy.json"))
    arguments = parser.parse_args()
    quick, output = arguments.quick, arguments.output

    ratios: list[Ratio] = []
    times: Times = {}
    for size in QUICK_SIZES if quick else SIZES:
        measure_size(size, ratios, times)
    measure_processes(*((1024, 2) if quick else (8192, 7)), ratios, times)
    report("Energy, value and gradient, float32", ratios, times, output)

    curve = sorted([*(2**k for k in range(10, 17)), 50000, 85742])
    numbers = [256, 1024] if quick else curve if arguments.curve else [1024, 8192, 50000]
    costs = measure_costs(numbers)
    plot(costs, output.with_suffix(".png"))
    content = json.loads(output.read_text())
    content["costs"] = [asdict(cost) for cost in costs]
    content["versions"] = {"python": platform.python_version(), "torch": str(torch.__version__)}
    content["machine"] = machine()
    write_atomically(output, json.dumps(content, indent=2) + "\n")


# Times


def measure_size(size: Size, ratios: list[Ratio], times: Times) -> None:
    """Time the energies of one size against the two products and the direct formula."""
    neurons = draw(size.N, size.d)
    energy, products = f"{size}, half-space s=2", f"{size}, two products"
    steps = {energy: energy_step(neurons), products: products_step(neurons)}
    most = size.most_products
    ratios.append(Ratio(f"{energy}, over the products", energy, products, f"≤ {most}"))
    if size.least_speedup is not None:
        direct = f"{size}, direct formula"
        steps[direct] = partial(slope_of, direct_energy, neurons)
        ratios.append(Ratio(f"{direct}, over ours", direct, energy, f"≥ {size.least_speedup}"))
    if size.variants:
        for name, options in VARIANTS.items():
            step = f"{size}, {name}"
            steps[step] = energy_step(neurons, **options)
            ratios.append(
                Ratio(f"{step}, over the products", step, products, f"≤ {1.5 * most:.4g}")
            )
        for name, potential in SECOND.items():
            step = f"{size}, half-space {name}"
            steps[step] = energy_step(neurons, potential=potential)
            ratios.append(Ratio(f"{step}, over s=2", step, energy, "≤ 1.3"))
    times |= interleaved(steps, size.rounds)


def draw(N: int, d: int) -> Tensor:
    generator = torch.Generator().manual_seed(N)
    return torch.randn(N, d, generator=generator).to(DEVICE).requires_grad_()


def slope_of(energy: Callable[[Tensor], Tensor], neurons: Tensor) -> Tensor:
    """Forward and backward."""
    (slope,) = torch.autograd.grad(energy(neurons), neurons)
    return slope


def energy_step(neurons: Tensor, **options: Any) -> Step:
    return partial(slope_of, partial(hyperspherical_energy, half_space=True, **options), neurons)


def products_step(neurons: Tensor, rows: int | None = None) -> Step:
    """U·Uᵀ and A·U, or as many rows of both, into memory that is there."""
    u = neurons.detach()
    block = u[:rows]
    gram, slope = u.new_empty(len(block), len(u)), torch.empty_like(block)

    def step() -> None:
        torch.mm(block, u.mT, out=gram)
        torch.mm(gram, u, out=slope)

    return step


def direct_energy(neurons: Tensor) -> Tensor:
    """The half-space energy as one would write it down: pairs of 2N neurons."""
    u = normalize(neurons, dim=1)
    u = torch.cat([u, -u])
    i, j = torch.triu_indices(len(u), len(u), offset=1, device=u.device)
    return (1 / (2 - 2 * (u @ u.mT)[i, j])).mean()


# Processes


def measure_processes(N: int, rounds: int, ratios: list[Ratio], times: Times) -> None:
    """Time two processes' shares of the tiles against the whole, one thread in each."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(time_share, (Path(folder), N, rounds), nprocs=2)
        measured: Times = json.loads((Path(folder) / "times.json").read_text())
    one, two = measured
    times |= measured
    ratios.append(Ratio(f"{two}, over one", two, one, "0.5 is ideal"))


def time_share(rank: int, folder: Path, N: int, rounds: int) -> None:
    """In each of two processes: the whole in the first, then both do their share.

    That both wait for the slower is in the time; the sum of the gradients is not, as data-parallel
    training adds them up with or without a regularizer.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    neurons, pair = draw(N, DIM), PairPotential(Riesz(), half_space=True)

    def whole() -> None:
        if rank == 0:
            value_and_gradient(neurons, None, pair, True)
        dist.barrier()

    def share() -> None:
        value_and_gradient(neurons, None, pair, True, share=(rank, 2))
        dist.barrier()

    names = f"{N}×{DIM}, one process", f"{N}×{DIM}, two processes"
    times = interleaved(dict(zip(names, (whole, share), strict=True)), rounds, warm_up=1)
    if rank == 0:
        (folder / "times.json").write_text(json.dumps(times))
    dist.destroy_process_group()


# Memory


@dataclass(frozen=True)
class Cost:
    """Of N neurons in DIM dimensions; memory in MiB."""

    N: int
    seconds: float
    products_seconds: float
    extra: float
    gradient: float


def measure_costs(numbers: Iterable[int]) -> list[Cost]:
    """Cost of each number of neurons, printed as it is found."""
    print(f"\nHalf-space s=2 in a fresh process, {hardware()}")
    print("| N × d | seconds | over the products | extra MiB | beyond gradient | aim |")
    print("|---|---|---|---|---|---|", flush=True)
    costs = []
    for N in numbers:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            cost = fresh.submit(cost_of, N).result()
        costs.append(cost)
        aim = f"beyond ≤ {MOST_BEYOND_GRADIENT}" if N <= 50000 else f"extra < {MOST_EXTRA}"
        print(
            f"| {N}×{DIM} | {cost.seconds:.3g} | {cost.seconds / cost.products_seconds:.2f} "
            f"| {cost.extra:.0f} | {cost.extra - cost.gradient:.0f} | {aim} |",
            flush=True,
        )
    return costs


def cost_of(N: int) -> Cost:
    """Cost of N neurons, in a process that has done nothing else."""
    energy_step(draw(8, DIM))()  # loads what is loaded once
    neurons = draw(N, DIM)
    step = energy_step(neurons)
    before = resident("VmRSS")
    seconds = interleaved({"energy": step}, rounds=1, warm_up=0)["energy"]
    extra = resident("VmHWM") - before
    if N <= 2**14:
        seconds += interleaved({"energy": step}, rounds=4, warm_up=0)["energy"]
    # A block of rows, as the whole matrix may not fit; it is never the time of more.
    rows = min(N, 2048)
    products = interleaved({"products": products_step(neurons, rows)}, rounds=3)["products"]
    return Cost(
        N,
        statistics.median(seconds),
        statistics.median(products) * N / rows,
        extra / MIB,
        neurons.nbytes / MIB,
    )


def machine() -> dict[str, object]:
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "system": platform.platform(),
    }


def plot(costs: list[Cost], file: Path) -> None:
    """Time and memory against N, with their limits."""
    N = [cost.N for cost in costs]
    with drawing(file, 11, 4.5) as figure:
        time, memory = figure.subplots(1, 2)
        time.plot(N, [cost.seconds for cost in costs], "o-", label="energy and gradient")
        limit = "limit: 1.1 × (from 10,572: 0.95 ×) U·Uᵀ and A·U"
        time.plot(N, limit_of_time(costs), "k--", label=limit)
        time.set(ylabel="seconds", title=f"Time, half-space s=2, d = {DIM}")
        memory.plot(N, [cost.extra for cost in costs], "o-", label="energy and gradient")
        limits = [cost.gradient + MOST_BEYOND_GRADIENT for cost in costs]
        limit = f"limit: gradient + {MOST_BEYOND_GRADIENT} MiB"
        memory.plot(N, limits, "k--", label=limit)
        memory.axhline(MOST_EXTRA, color="k", ls=":", label=f"limit at 85,742: {MOST_EXTRA} MiB")
        memory.plot(N, [4 * n * n / MIB for n in N], color="tab:gray", label="one N × N matrix")
        memory.set(ylabel="MiB", title="Memory beyond the neurons")
        for axes in (time, memory):
            axes.set(xscale="log", yscale="log", xlabel="neurons N")
            axes.legend()


def limit_of_time(costs: list[Cost]) -> list[float]:
    return [(1.1 if cost.N < 10572 else 0.95) * cost.products_seconds for cost in costs]


if __name__ == "__main__":
    main()
