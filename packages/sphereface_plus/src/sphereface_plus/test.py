"""``sphereface-plus test``: verification with a trained run or a pretrained embedder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from mhe_core.errors import UserError
from mhe_core.training.command import parse, run_command
from mhe_core.training.files import write_atomically
from mhe_core.training.processes import make_accelerator
from torch import nn
from torch.nn import functional

from sphereface_plus.align import AlignConfig, align
from sphereface_plus.arguments import lists_spelled_out
from sphereface_plus.data import digits
from sphereface_plus.embedding import FACENET_SIZE, MIRRORED, embed_both, load_embedder, load_run
from sphereface_plus.figures import figures, score_table, shown, table, warn_if_alike
from sphereface_plus.insightface import x_norm
from sphereface_plus.pair_files import read_pairs
from sphereface_plus.pairs import PairSet, check_pairs, find_pairs, pack_pairs
from sphereface_plus.report import plot_errors, plot_roc, plot_scores, worst_pairs
from sphereface_plus.verification import roc, ten_fold

__all__ = ["TestConfig", "main", "test"]


@dataclass(kw_only=True)
class TestConfig:
    """Verify pairs of faces, and write report.json, roc.png, scores.png and errors.png.

    Attributes:
        run: a run directory of train.
        embedder: a pretrained network in place of a run, facenet-vggface2 or facenet-casia.
        weights: its weights; default: downloaded.
        images: folder of aligned faces, Name/Name_0001.jpg; not needed for a run on digits.
        pairs: pairs of LFW, CFP, AgeDB, CALFW or CPLFW; not needed for a run on digits.
        pack: verification packs such as lfw.bin, in place of --images and --pairs.
        fpr: false positive rates at which TPR and thresholds are reported.
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
    pack: list[Path] = field(default_factory=list)
    fpr: list[float] = field(default_factory=lambda: [1e-3, 1e-2])
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
        if self.weights is not None and self.embedder is None:
            raise UserError(f"--weights goes with --embedder, got it with {self.run}")
        if self.output is None:
            if self.run is None:
                raise UserError("expected --output for the report")
            self.output = Path(self.run) / "test"
        if (self.images is None) != (self.pairs is None):
            raise UserError("expected --images and --pairs together, got one of them")
        if self.align and self.images is None:
            raise UserError("--align goes with --images and --pairs, which are not given")
        if self.pack and self.images is not None:
            raise UserError("expected --pack, or --images and --pairs, got both")
        if len({pack.stem for pack in self.pack}) < len(self.pack):
            raise UserError("expected packs of different names: their reports are named by them")
        if wrong := [level for level in self.fpr if not 0 < level < 1]:
            raise UserError(f"expected --fpr between 0 and 1, got {wrong[0]:g}")
        if self.batch_size < 1:
            raise UserError(f"expected --batch-size above 0, got {self.batch_size}")


def test(config: TestConfig) -> dict[str, Any]:
    """Embed each image once, verify all pairs, write the report and its pictures.

    Returns:
        The content of report.json: ``accuracy`` and ``accuracy_std`` over folds (fractions), each
        fold's accuracy and threshold, ``auc``, ``eer``, ``tpr_at_fpr``, what was missing. Of
        several packs, such a report by the pack's name.

    Raises:
        DataError: if the pairs are malformed; names the line.
        FileNotFoundError: if the run, the pairs or an image is missing.
    """
    output = Path(config.output or "")
    accelerator = make_accelerator(config.device, config.amp)
    backbone, size, on_digits = load_backbone(config)
    sets = {output / pack.stem: pack_pairs(pack, size) for pack in config.pack}
    if not sets:
        sets = {output: test_pairs(config, output, size, on_digits)}
    backbone = backbone.to(accelerator.device)
    reports = {
        folder.name: report_on(config, backbone, pairs, accelerator, folder)
        for folder, pairs in sets.items()
    }
    if not config.pack:
        return next(iter(reports.values()))
    if accelerator.is_main_process:
        write_atomically(output / "report.json", json.dumps(reports, indent=2) + "\n")
        write_atomically(output / "table.md", table(reports))
    return reports


def report_on(
    config: TestConfig, backbone: nn.Module, pairs: PairSet, accelerator: Accelerator, folder: Path
) -> dict[str, Any]:
    """Verify one set of pairs, and write its report into a folder."""
    check_pairs(pairs)
    plain, mirrored = (
        part.cpu()
        for part in embed_both(
            backbone,
            pairs.images,
            accelerator,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    )
    embeddings = MIRRORED[config.protocol](plain, mirrored)
    found = ten_fold(
        embeddings[pairs.left], embeddings[pairs.right], pairs.same, pairs.fold, config.protocol
    )
    curve = roc(found.scores, pairs.same, tuple(config.fpr))
    sums = (plain + mirrored).double()
    cosines = functional.cosine_similarity(sums[pairs.left], sums[pairs.right]).numpy()
    warn_if_alike(plain)
    report = {
        **figures(config.embedder or str(config.run), config.protocol, pairs, found, curve),
        "xnorm": x_norm(plain.numpy(), mirrored.numpy()),
        "cosine_at_fpr": shown(roc(cosines, pairs.same, tuple(config.fpr)).threshold_at_fpr),
    }
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        worst = worst_pairs(found, pairs, config.protocol)
        plot_roc(curve, folder / "roc.png")
        plot_scores(found, pairs, config.protocol, folder / "scores.png")
        plot_errors(worst, found, pairs, folder / "errors.png")
        write_atomically(folder / "scores.csv", score_table(pairs, found, cosines))
        write_atomically(folder / "report.json", json.dumps(report, indent=2) + "\n")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    has_embedder = any(argument.split("=")[0] == "--embedder" for argument in arguments)
    positional = () if has_embedder else ("run",)
    arguments = lists_spelled_out(arguments, "--pack", "--fpr")
    config = parse(TestConfig, arguments, "sphereface-plus test", positional)
    report = test(config)
    if config.pack:
        print(f"protocol {config.protocol}, {config.embedder or config.run}\n\n{table(report)}")
    else:
        low, high = report["accuracy_interval"]
        print(
            f"{report['pairs']} pairs of {report['images']} images, protocol {report['protocol']}: "
            f"accuracy {100 * report['accuracy']:.2f} ± {100 * report['accuracy_std']:.2f} % over "
            f"{len(report['fold_accuracy'])} folds ({100 * low:.2f} to {100 * high:.2f} % with "
            f"other people), AUC {report['auc']:.4f}, EER {100 * report['eer']:.2f} %"
        )
    print(f"report in {config.output}")


if __name__ == "__main__":
    sys.exit(run_command("sphereface-plus test", main, sys.argv[1:]))
