"""``mhe-uniformity bench``: what each regularizer costs in time and memory; extra ``bench``.

Each regularizer and size has a fresh process, so that its peak of memory is its own. There, value
and gradient take turns with the two dense products U·Uᵀ and A·U, which no gradient of all pairs
does without; times are given as the median ratio to these, memory as the peak beyond the neurons.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from mhe_core import create_regularizer, list_regularizers
from mhe_core.plotting import drawing
from mhe_core.training.files import write_atomically
from mhe_core.training.naming import asked_for
from mhe_core.training.timing import hardware, interleaved, resident
from torch import Tensor

__all__ = [
    "QUICK_SIZES",
    "SIZES",
    "Cost",
    "as_table",
    "bench",
    "distribution_names",
    "plot",
]

SIZES = ((64, 576), (256, 2304), (512, 4608), (2048, 512), (10572, 512))
QUICK_SIZES = ((16, 8), (64, 32))
PAUSE = 0.5  # seconds that rounds at one size may take, about
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Of one regularizer, value and gradient, at N neurons in d dimensions, in float32.

    Attributes:
        name: of the regularizer.
        N: the number of neurons.
        d: their dimension.
        seconds: the median over rounds.
        ratio: the median over rounds of its time over that of the two products; None where it was
            left out, as it would take too long.
        memory: peak beyond the neurons, in MiB; the gradient is a part of it.
    """

    name: str
    N: int
    d: int
    seconds: float | None
    ratio: float | None
    memory: float | None


def distribution_names() -> list[str]:
    """The names that this distribution registers, and core's two, to compare with."""
    this = "mhe-uniformity"
    ours = [info.name for info in list_regularizers() if info.distribution == this]
    cores = [asked_for("mhe"), asked_for("half_mhe")]
    return [*cores, *(asked_for(name, this) for name in ours)]


def bench(
    names: Sequence[str], sizes: Sequence[tuple[int, int]], output: Path, most_seconds: float
) -> str:
    """Measure all, write ``table.md``, ``table.json`` and ``costs.png``, and return the table.

    Args:
        names: of the regularizers.
        sizes: N and d of the neurons, from small to large.
        output: the folder.
        most_seconds: a regularizer whose step would take longer, judging by the size before, is
            left out from there on.
    """
    costs = []
    for name in names:
        last: Cost | None = None
        for N, d in sizes:
            if last is not None and _expected_seconds(last, N, d) > most_seconds:
                cost = Cost(name, N, d, None, None, None)
            else:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    cost = last = fresh.submit(measure, name, N, d).result()
            costs.append(cost)
            print(f"{name} {N}×{d}: {_shown(cost) or 'left out'}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    content = {
        "hardware": hardware(),
        "most_seconds": most_seconds,
        "costs": [asdict(cost) for cost in costs],
    }
    plot(content, output / "costs.png")
    return write_table(content, output)


def _expected_seconds(last: Cost, N: int, d: int) -> float:
    """If the time grows with the number of products N²·d, or N³ where N is larger."""
    work, before = N**2 * max(N, d), last.N**2 * max(last.N, last.d)
    return (last.seconds or 0.0) * work / before


def measure(name: str, N: int, d: int) -> Cost:
    """Cost of one regularizer at one size; to be called in a process that has done nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step(create_regularizer(name, 4, 4), torch.eye(4, device=device))  # loads what is loaded once
    generator = torch.Generator().manual_seed(N)
    neurons = torch.randn(N, d, generator=generator).to(device)
    regularizer = create_regularizer(name, N, d).to(device)
    before = resident("VmRSS")
    first = interleaved({"step": lambda: step(regularizer, neurons)}, 1, warm_up=0)["step"][0]
    memory = (resident("VmHWM") - before) / MIB
    gram, slope = neurons.new_empty(N, N), torch.empty_like(neurons)

    def products() -> None:
        torch.mm(neurons, neurons.mT, out=gram)
        torch.mm(gram, neurons, out=slope)

    steps = {"step": lambda: step(regularizer, neurons), "products": products}
    rounds = min(200, max(3, round(PAUSE / first)))
    times = interleaved(steps, rounds, warm_up=1)
    ratios = [a / b for a, b in zip(times["step"], times["products"], strict=True)]
    return Cost(name, N, d, statistics.median(times["step"]), statistics.median(ratios), memory)


def step(regularizer: torch.nn.Module, neurons: Tensor) -> Tensor:
    """Value and gradient."""
    leaf = neurons.detach().requires_grad_()
    (slope,) = torch.autograd.grad(regularizer(leaf), leaf)
    return slope


def write_table(content: Mapping[str, Any], output: Path) -> str:
    """Write ``table.md`` and ``table.json``, and return the former."""
    write_atomically(output / "table.json", json.dumps(content, indent=2) + "\n")
    table = as_table(content)
    write_atomically(output / "table.md", table)
    return table


def as_table(content: Mapping[str, Any]) -> str:
    """What ``table.json`` has, as Markdown."""
    costs = [Cost(**cost) for cost in content["costs"]]
    heads = [f"{N}×{d}" for N, d in _sizes(costs)]
    lines = [f"| regularizer | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(cost.name for cost in costs):
        cells = [_shown(cost) or "–" for cost in costs if cost.name == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Value and gradient over the two dense products (median), and peak memory beyond"]
    lines[-1] += f" the neurons; float32, {content['hardware']}."
    if any(cost.ratio is None for cost in costs):
        lines[-1] += (
            f" –: left out, as a step would take more than {content['most_seconds']:g} seconds."
        )
    return "\n".join(lines) + "\n"


def _sizes(costs: Sequence[Cost]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((cost.N, cost.d) for cost in costs))


def _shown(cost: Cost) -> str:
    if cost.ratio is None:
        return ""
    return f"{cost.ratio:.3g}, {cost.memory:.0f} MiB"


def plot(content: Mapping[str, Any], file: Path) -> None:
    """Draw ``table.json``: time over the products, and memory, a line for each regularizer."""
    costs = [Cost(**cost) for cost in content["costs"]]
    sizes = _sizes(costs)
    with drawing(file, 11, 4.8) as figure:
        time, memory = figure.subplots(1, 2)
        names = list(dict.fromkeys(cost.name for cost in costs))
        for k, name in enumerate(names):
            own = [cost for cost in costs if cost.name == name and cost.ratio is not None]
            where = [sizes.index((cost.N, cost.d)) for cost in own]
            style = {"color": f"C{k % 10}", "marker": "o^"[k // 10 % 2], "label": name, "lw": 1.2}
            time.plot(where, [cost.ratio for cost in own], **style)
            memory.plot(where, [max(cost.memory or 0, 0.1) for cost in own], **style)
        time.axhline(1, color="black", lw=1, ls="--")
        time.set(title="value and gradient, over the two products", ylabel="ratio")
        memory.set(title="peak memory beyond the neurons", ylabel="MiB")
        for axes in (time, memory):
            axes.set_xticks(range(len(sizes)), [f"{N}×{d}" for N, d in sizes])
            axes.set_yscale("log")
        handles, labels = time.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
