"""``sphereface-plus pairs``: pairs of a folder of faces, drawn into a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mhe_core.errors import UserError
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import write_atomically
from mhe_core.training.images import ImageSet, find_classes

from sphereface_plus.pairs import PairSet, draw_pairs

__all__ = ["DrawConfig", "draw", "main"]


@dataclass(kw_only=True)
class DrawConfig:
    """Draw pairs of faces, as many of one person as of two, no pair twice, into a file.

    The format is LFW's where the images are called as its are, Name/Name_0001.jpg; elsewhere a
    line is two images and 1 or 0.

    Attributes:
        images: a folder with one folder a person.
        output: the file of pairs.
        folds: how many.
        per_fold: pairs of one person a fold, and as many of two; fewer where there are not so many.
        seed: of the draw.
    """

    images: Path
    output: Path
    folds: int = 10
    per_fold: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("folds", "per_fold"):
            if getattr(self, name) < 1:
                raise UserError(f"expected --{name.replace('_', '-')} above 0, got 0 or less")


def draw(config: DrawConfig) -> PairSet:
    """Draw the pairs and write the file.

    Raises:
        DataError: if there are not enough images for one pair of each kind in each fold.
    """
    found = find_classes(config.images)
    images = ImageSet(
        labels=torch.tensor(found.labels),
        classes=found.classes,
        size=(1, 1),  # none is decoded
        pixels=None,
        files=found.paths,
    )
    pairs = draw_pairs(images, config.folds, config.per_fold, config.seed)
    names = [path.relative_to(config.images).as_posix() for path in found.paths]
    numbers = [lfw_number(name) for name in names]
    used = {*pairs.left.tolist(), *pairs.right.tolist()}
    if all(numbers[i] is not None for i in used):
        lines = lfw_lines(pairs, names, numbers)
    else:
        lines = [
            f"{names[left]}\t{names[right]}\t{int(same)}"
            for left, right, same in zip(pairs.left, pairs.right, pairs.same, strict=True)
        ]
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(config.output, "\n".join(lines) + "\n")
    return pairs


def lfw_number(name: str) -> int | None:
    """The number of an image that is called as LFW's are."""
    match = re.fullmatch(r"([^/\t]+)/\1_(\d{4,})\.\w+", name)
    return None if match is None else int(match[2])


def lfw_lines(pairs: PairSet, names: list[str], numbers: list[int | None]) -> list[str]:
    """LFW's format: in each fold the pairs of one person come first."""
    folds = int(pairs.fold.max()) + 1
    lines = [f"{folds}\t{len(pairs) // folds // 2}"]
    for left, right, same in zip(pairs.left, pairs.right, pairs.same, strict=True):
        first, second = names[left].split("/")[0], names[right].split("/")[0]
        middle = f"{numbers[left]}" if same else f"{numbers[left]}\t{second}"
        lines.append(f"{first}\t{middle}\t{numbers[right]}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(DrawConfig, arguments, "sphereface-plus pairs")
    pairs = draw(config)
    print(
        f"{int(pairs.same.sum())} pairs of one person and {int((~pairs.same).sum())} of two in "
        f"{int(pairs.fold.max()) + 1} folds: {config.output}"
    )


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus pairs", main, sys.argv[1:]))
