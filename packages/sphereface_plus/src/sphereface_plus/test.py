"""``sphereface-plus test``: verification with a trained run or a pretrained embedder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mhe_core.errors import UserError
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import write_atomically
from mhe_core.training.processes import make_accelerator
from torch import nn

from sphereface_plus.align import AlignConfig, align
from sphereface_plus.data import digits
from sphereface_plus.embedding import FACENET_SIZE, load_embedder, load_run, verify
from sphereface_plus.pair_files import read_pairs
from sphereface_plus.pairs import PairSet, find_pairs
from sphereface_plus.report import plot_errors, plot_roc, plot_scores, worst_pairs
from sphereface_plus.verification import FoldResult, RocResult, roc

__all__ = ["TestConfig", "main", "test"]


@dataclass(kw_only=True)
class TestConfig:
    """Verify pairs of faces, and write report.json, roc.png, scores.png and errors.png.

    Attributes:
        run: a run directory of train.
        embedder: a pretrained network in place of a run, facenet-vggface2 or facenet-casia.
        weights: its weights; default: downloaded.
        images: folder of aligned faces, Name/Name_0001.jpg; not needed for a run on digits.
        pairs: LFW's pairs.txt, or a file of its format; not needed for a run on digits.
        output: folder for the report; default: test in the run directory.
        align: take --images as raw photographs and align them into the output folder first.
        size: height x width of faces aligned by --align.
        protocol: sphereface; insightface, its rules to the digit; or distance, as insightface but
            with the mean of all best thresholds.
        missing: an image of the pairs that is not there is an error, or its pairs are skipped.
        checkpoint: of the run, best or last.
        batch_size: images embedded at a time.
        workers: processes that align or decode images.
        device: auto, cpu, cuda, cuda:1, ….
        amp: mixed precision.
    """

    __test__ = False  # not a test case

    run: Path | None = None
    embedder: str | None = None
    weights: Path | None = None
    images: Path | None = None
    pairs: Path | None = None
    output: Path | None = None
    align: bool = False
    size: Literal["112x96", "112x112"] = "112x96"
    protocol: Literal["sphereface", "insightface", "distance"] = "sphereface"
    missing: Literal["error", "skip"] = "error"
    checkpoint: str = "best"
    batch_size: int = 128
    workers: int = 0
    device: str = "auto"
    amp: Literal["no", "bf16", "fp16"] = "no"

    def __post_init__(self) -> None:
        """Check that the settings fit each other."""
        if (self.run is None) == (self.embedder is None):
            raise UserError("expected either a run directory or --embedder")
        if self.output is None:
            if self.run is None:
                raise UserError("expected --output for the report")
            self.output = Path(self.run) / "test"
        if (self.images is None) != (self.pairs is None):
            raise UserError("expected --images and --pairs together, got one of them")
        if self.batch_size < 1:
            raise UserError(f"expected --batch-size above 0, got {self.batch_size}")


def test(config: TestConfig) -> dict[str, Any]:
    """Embed each image once, verify all pairs, write the report and its pictures.

    Returns:
        The content of report.json: ``accuracy`` and ``accuracy_std`` over folds (fractions), each
        fold's accuracy and threshold, ``auc``, ``eer``, ``tpr_at_fpr``, what was missing.

    Raises:
        DataError: if the pairs are malformed; names the line.
        FileNotFoundError: if the run, the pairs or an image is missing.
    """
    output = Path(config.output or "")
    accelerator = make_accelerator(config.device, config.amp)
    backbone, size, on_digits = load_backbone(config)
    pairs = test_pairs(config, output, size, on_digits)
    found = verify(
        backbone.to(accelerator.device),
        pairs,
        accelerator,
        config.protocol,
        batch_size=config.batch_size,
        workers=config.workers,
    )
    curve = roc(found.scores, pairs.same)
    report = figures(config, pairs, found, curve)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        worst = worst_pairs(found, pairs, config.protocol)
        plot_roc(curve, output / "roc.png")
        plot_scores(found, pairs, config.protocol, output / "scores.png")
        plot_errors(worst, found, pairs, output / "errors.png")
        write_atomically(output / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def load_backbone(config: TestConfig) -> tuple[nn.Module, tuple[int, int], bool]:
    """The network, the size of its images, and whether it was trained on digits."""
    if config.run is None:
        return load_embedder(str(config.embedder), config.weights), FACENET_SIZE, False
    model, settings, facts = load_run(config.run, config.checkpoint)
    return model.backbone, tuple(facts["image_size"]), settings.data == "digits"


def test_pairs(config: TestConfig, output: Path, size: tuple[int, int], on_digits: bool) -> PairSet:
    """The pairs to verify, with their images."""
    if config.images is None or config.pairs is None:
        if on_digits:
            return digits(size)[1]
        raise UserError("expected --images and --pairs")
    listed = read_pairs(config.pairs)  # before a long alignment
    images = config.images
    if config.align:
        images = output / "aligned"
        align(
            AlignConfig(
                images=config.images,
                output=images,
                size=config.size,
                workers=config.workers,
                device=config.device,
            )
        )
    pairs = find_pairs(listed, images, size, config.missing)
    for name in pairs.missing:
        print(f"missing: {name}")
    return pairs


def figures(
    config: TestConfig, pairs: PairSet, found: FoldResult, curve: RocResult
) -> dict[str, Any]:
    """The content of report.json."""
    return {
        "embedder": config.embedder or str(config.run),
        "protocol": config.protocol,
        "pairs": len(pairs),
        "images": len(pairs.images),
        "accuracy": float(found.accuracy.mean()),
        "accuracy_std": found.std,
        "fold_accuracy": found.accuracy.tolist(),
        "fold_threshold": found.threshold.tolist(),
        "auc": curve.auc,
        "eer": curve.eer,
        "tpr_at_fpr": {f"{level:g}": rate for level, rate in curve.tpr_at_fpr.items()},
        "missing": list(pairs.missing),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    has_embedder = any(argument.split("=")[0] == "--embedder" for argument in arguments)
    positional = () if has_embedder else ("run",)
    config = parse(TestConfig, arguments, "sphereface-plus test", positional)
    report = test(config)
    print(
        f"{report['pairs']} pairs of {report['images']} images, protocol {report['protocol']}: "
        f"accuracy {100 * report['accuracy']:.2f} ± {100 * report['accuracy_std']:.2f} % over "
        f"{len(report['fold_accuracy'])} folds, AUC {report['auc']:.4f}, "
        f"EER {100 * report['eer']:.2f} %\nreport in {config.output}"
    )


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus test", main, sys.argv[1:]))
