"""Does a network train with the default regularizer as it does without one?

For the smallest model of each family of timm's: eight steps on eight fixed random images, with
AdamW 5e-4 and with SGD 0.01, without and with ``NetworkRegularizer(model)``. Cross entropy at the
end is to be at most 1.1 times that without, plus 0.05. One JSON line a model and optimizer, so that
a run that was stopped goes on where it was:

    python packages/core/benchmarks/do_no_harm.py [--models 'vit*' ...] [--table | --again]

Eight steps from a random start are chaotic for some models. ``--again`` shows how much, for those
trials that were worse: it repeats them from starts whose weights are moved by a thousandth.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import warnings
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import timm
import torch
from mhe_core import NetworkRegularizer
from torch import nn

STEPS, IMAGES, CLASSES = 8, 8, 10
SIZES = (64, 96, 128)  # of images: the smallest that a model takes
MOST_PARAMETERS = 60e6
STARTS, MOVED_BY = 5, 1e-3  # of ``--again``; in standard deviations of each parameter
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=5e-4),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
}
# What timm's names call a size, from small to large, as far as they say it in words.
SIZE_WORDS = [
    *["test", "zepto", "atto", "femto", "pico", "nano", "xxtiny", "xxs", "xtiny", "xs"],
    *["ti", "tiny", "t", "mini", "lite", "s", "small"],
]


def families() -> dict[str, list[str]]:
    """Names of timm's models, small ones first, by file and by the letters that they begin with."""
    found: dict[str, list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            found.setdefault(f"{module}/{re.match('[a-z]+', name)[0]}", []).append(name)
    return {family: sorted(names, key=size_key) for family, names in found.items()}


def size_key(name: str) -> tuple[int, list[int], str]:
    words = name.split("_")
    rank = min((SIZE_WORDS.index(w) for w in words if w in SIZE_WORDS), default=len(SIZE_WORDS))
    return rank, [int(number) for number in re.findall(r"\d+", name)], name


def build(name: str) -> tuple[nn.Module, int] | None:
    """The model and the size of its images; None if it is too large or takes no small ones."""
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in timm.create_model(name).parameters())
    except Exception:  # some are only built on a real device
        size = 0
    if size > MOST_PARAMETERS:
        return None
    for image_size in SIZES:
        for options in ({"img_size": image_size}, {}):
            try:
                torch.manual_seed(0)
                model = timm.create_model(name, num_classes=CLASSES, **options)
                if sum(p.numel() for p in model.parameters()) > MOST_PARAMETERS:
                    return None
                with torch.no_grad():
                    output = model(torch.randn(2, 3, image_size, image_size))
                if isinstance(output, torch.Tensor) and output.shape == (2, CLASSES):
                    return model, image_size
            except Exception:  # whatever a model raises at a size that is not for it
                continue
    return None


def cross_entropy_after(
    model: nn.Module, image_size: int, optimizer: str, regularized: bool
) -> tuple[float, float, float]:
    """Cross entropy at the first step and after the last, and seconds a step."""
    torch.manual_seed(1)
    images = torch.randn(IMAGES, 3, image_size, image_size)
    labels = torch.arange(IMAGES) % CLASSES
    model.train()
    chosen = OPTIMIZERS[optimizer](model.parameters())
    regularizer = NetworkRegularizer(model) if regularized else None
    losses = []
    start = time.perf_counter()
    for step in range(STEPS + 1):
        torch.manual_seed(step)  # dropout
        loss = nn.functional.cross_entropy(model(images), labels)
        losses.append(loss.item())
        if step == STEPS:
            break
        if regularizer is not None:
            regularizer.update(0.01)
            loss = loss + regularizer()
        chosen.zero_grad()
        loss.backward()
        chosen.step()
    return losses[0], losses[-1], (time.perf_counter() - start) / STEPS


def trials(name: str) -> Iterator[dict[str, object]]:
    """A record for each optimizer; none if the model is not for small images."""
    built = build(name)
    if built is None:
        return
    model, image_size = built
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for optimizer in OPTIMIZERS:
        after = []
        for regularized in (False, True):
            model.load_state_dict(state)
            before, last, seconds = cross_entropy_after(model, image_size, optimizer, regularized)
            after.append(last)
        yield {
            "model": name,
            "optimizer": optimizer,
            "parameters": sum(p.numel() for p in model.parameters()),
            "image_size": image_size,
            "before": before,
            "without": after[0],
            "with": after[1],
            "passes": after[1] <= 1.1 * after[0] + 0.05,
            "step_seconds": round(seconds, 3),
        }


def again(output: Path) -> None:
    """Append what trials that were worse come to from starts next to the first."""
    records = read(output)
    done = {(r["model"], r["optimizer"]) for r in records if "moved" in r}
    for record in records:
        trial = record["model"], record.get("optimizer")
        if record.get("passes", True) or "error" in record or says_nothing(record) or trial in done:
            continue
        model, image_size = build(record["model"])
        state = {key: value.clone() for key, value in model.state_dict().items()}
        pairs = []
        for start in range(STARTS):
            losses = []
            for regularized in (False, True):
                model.load_state_dict(state)
                move(model, seed=start)
                losses.append(
                    cross_entropy_after(model, image_size, record["optimizer"], regularized)[1]
                )
            pairs.append(losses)
        found = {key: record[key] for key in ("family", "model", "optimizer")} | {"moved": pairs}
        with output.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(found, flush=True)


@torch.no_grad()
def move(model: nn.Module, seed: int) -> None:
    """Change every parameter a little."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        size = MOVED_BY * parameter.std(correction=0)
        parameter += size * torch.randn_like(parameter)


def sweep(output: Path, patterns: list[str]) -> None:
    """Append what is missing to the file of records."""
    done = {record["family"] for record in read(output)}
    for family, names in families().items():
        wanted = [n for n in names if not patterns or any(fnmatchcase(n, p) for p in patterns)]
        if family in done or not wanted:
            continue
        for name in wanted[:4]:
            try:
                records = list(trials(name))
            except Exception as error:  # reported: a regularizer that fails is harm, too
                records = [{"model": name, "optimizer": "-", "passes": False, "error": repr(error)}]
            if records:
                break
        records = records or [{"model": wanted[0], "skipped": "too large, or no small images"}]
        with output.open("a") as file:
            file.writelines(json.dumps({"family": family, **r}) + "\n" for r in records)
        print(family, *records, sep="\n  ", flush=True)


def read(output: Path) -> list[dict]:
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def says_nothing(record: dict) -> bool:
    """Whether the model does not train without the regularizer either."""
    return "error" not in record and not math.isfinite(record["without"])


def summary(records: list[dict]) -> tuple[str, int, int, int]:
    """A table in Markdown; how many trials pass; of how many; how many more say nothing."""
    tried = [record for record in records if "skipped" not in record and "moved" not in record]
    moved = {(r["model"], r["optimizer"]): r["moved"] for r in records if "moved" in r}
    counted = [record for record in tried if not says_nothing(record)]
    lines = [
        "| model | parameters | pixels | optimizer | before | without | with | |",
        "|" + "---|" * 8,
    ]
    for r in tried:
        if "error" in r:
            lines.append(f"| {r['model']} | | | | | | | {r['error']} |")
            continue
        losses = " | ".join(f"{r[key]:.3g}" for key in ("before", "without", "with"))
        size = f"{r['parameters'] / 1e6:.1f} M | {r['image_size']}"
        verdict = "" if r["passes"] else "worse"
        if pairs := moved.get((r["model"], r["optimizer"])):
            ranges = [f"{min(x):.3g} to {max(x):.3g}" for x in zip(*pairs, strict=True)]
            verdict += f"; from {len(pairs)} starts beside: {ranges[0]}, and {ranges[1]}"
        verdict = "not finite without" if says_nothing(r) else verdict
        lines.append(f"| {r['model']} | {size} | {r['optimizer']} | {losses} | {verdict} |")
    passed = sum(r["passes"] for r in counted)
    return "\n".join(lines), passed, len(counted), len(tried) - len(counted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/bench/do_no_harm.jsonl"))
    parser.add_argument("--models", nargs="*", default=[], help="patterns of timm's names")
    parser.add_argument("--table", action="store_true", help="only print what was found so far")
    parser.add_argument("--again", action="store_true", help="repeat what was worse, see above")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.again:
        again(arguments.output)
    elif not arguments.table:
        sweep(arguments.output, arguments.models)
    records = read(arguments.output)
    table, passed, counted, silent = summary(records)
    print(table)
    print(f"\n{passed} of {counted} trials of {len({r['family'] for r in records})} families pass.")
    if silent:
        print(f"{silent} more say nothing: cross entropy without the regularizer is not finite.")
    return 0 if counted and passed >= 0.98 * counted else 1


if __name__ == "__main__":
    sys.exit(main())
