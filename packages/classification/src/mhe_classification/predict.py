"""``mhe-classification predict``: the class of each image, and how probable it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mhe_core.training.command import parse, run_command
from mhe_core.training.images import DataError, find_images, printable
from torch import Tensor

from mhe_classification.classifier import Classifier, load

__all__ = ["PredictConfig", "main", "predict"]


@dataclass(kw_only=True)
class PredictConfig:
    """Classify images by a trained classifier.

    Attributes:
        run: the run directory.
        images: image files, and folders in which all images are taken.
        checkpoint: best, last, or another file in its checkpoints.
        top: classes to print for each image, the most probable first.
        json: print a JSON list, in place of a line an image with tabs between.
        batch_size: images at a time.
        device: auto, cpu, cuda, cuda:1, ….
    """

    run: Path
    images: list[str]
    checkpoint: str = "best"
    top: int = 1
    json: bool = False
    batch_size: int = 100
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"expected --{flag} at least 1, got {getattr(self, name)}")


def predict(config: PredictConfig) -> Iterator[dict[str, Any]]:
    """Each image's record, in order: ``image`` and ``top``, or ``image`` and ``error``.

    ``top`` has the most probable classes first, each with ``class`` and ``probability``. An image
    that cannot be read stops none of the others.

    Raises:
        RunError: if ``run`` is not a run directory.
        DataError: if a folder has no image.
    """
    files = [file for name in config.images for file in files_of(Path(name))]
    classifier = load(config.run, config.checkpoint, config.device)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), config.batch_size):
            batch = files[start : start + config.batch_size]
            read = list(pool.map(lambda file: attempt(classifier, file), batch))
            yield from records(classifier, batch, read, config.top)


def files_of(path: Path) -> tuple[Path, ...]:
    """The file, or all images below the folder."""
    if not path.is_dir():
        return (path,)
    found = find_images(path)
    if not found.paths:
        raise DataError(f"expected images in {path}, found none")
    return found.paths


def attempt(classifier: Classifier, file: Path) -> Tensor | DataError:
    """The image, or why there is none."""
    try:
        return classifier.read(file)
    except DataError as error:
        return error


def records(
    classifier: Classifier, files: Sequence[Path], read: Sequence[Tensor | DataError], top: int
) -> Iterator[dict[str, Any]]:
    """The records of a batch."""
    pixels = [image for image in read if isinstance(image, Tensor)]
    found = iter(classifier.probabilities(torch.stack(pixels)) if pixels else ())
    for file, image in zip(files, read, strict=True):
        record: dict[str, Any] = {"image": printable(file)}
        if isinstance(image, DataError):
            yield {**record, "error": str(image)}
            continue
        values, indices = next(found).topk(min(top, len(classifier.classes)))
        pairs = zip(indices.tolist(), values.tolist(), strict=True)
        record["top"] = [{"class": classifier.classes[i], "probability": p} for i, p in pairs]
        yield record


def lines(record: dict[str, Any]) -> Iterator[str]:
    """A record as text: image, class, probability."""
    for entry in record.get("top", ()):
        yield f"{record['image']}\t{entry['class']}\t{entry['probability']:.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; images that cannot be read are named at the end, as an error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    prog = "mhe-classification predict"
    config = parse(PredictConfig, arguments, prog, positional=("run", "images"))
    done = []
    for record in predict(config):
        done.append(record)
        if not config.json:
            print(*lines(record), sep="\n", end="\n" if "top" in record else "")
    if config.json:
        print(json.dumps(done, indent=2))
    if failed := [record["error"] for record in done if "error" in record]:
        raise DataError(f"{len(failed)} of {len(done)} images:\n" + "\n".join(failed))


if __name__ == "__main__":
    sys.exit(run_command("mhe-classification predict", main, sys.argv[1:]))
