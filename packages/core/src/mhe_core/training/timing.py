"""Ratios of the times that steps take, for the benchmarks.

All take one step in turn, again and again, so that a busy machine is unfair to none of them.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mhe_core.training.files import write_atomically

__all__ = ["Ratio", "hardware", "interleaved", "report", "resident"]


@dataclass(frozen=True)
class Ratio:
    """What to compare: one step's time over another's, and what it should be."""

    name: str
    step: str
    reference: str
    aim: str


def interleaved(
    steps: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds that each step takes, in ``rounds`` rounds in which all take their turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warm_up + rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                times[name].append(time.perf_counter() - began)
    return times


def report(
    title: str, ratios: Sequence[Ratio], times: Mapping[str, Sequence[float]], output: Path
) -> None:
    """Print the median over rounds of each ratio, and write it with the times to ``output``."""
    rows = []
    print(f"{title}, {hardware()}")
    print("| step | ratio (median) | quartiles | aim |\n|---|---|---|---|")
    for ratio in ratios:
        both = zip(times[ratio.step], times[ratio.reference], strict=True)
        low, median, high = statistics.quantiles([a / b for a, b in both], n=4)
        rows.append({**asdict(ratio), "median": median, "quartiles": [low, high]})
        print(f"| {ratio.name} | {median:.3f} | {low:.3f} to {high:.3f} | {ratio.aim} |")
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "hardware": hardware(), "rows": rows, "seconds": dict(times)}
    write_atomically(output, json.dumps(content, indent=2) + "\n")


def hardware() -> str:
    """What the times were measured on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"{threads} threads of {processor()}, torch {torch.__version__}"


def processor() -> str:
    """The processor's name where the system tells it (Linux), else its architecture."""
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        described = ""
    found = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def resident(field: str) -> int:
    """Bytes of memory this process has (``VmRSS``) or had at its peak (``VmHWM``).

    On a GPU, of its memory. Not getrusage's ru_maxrss, which starts from the peak of the parent.
    """
    if torch.cuda.is_available():
        peak = field == "VmHWM"
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
