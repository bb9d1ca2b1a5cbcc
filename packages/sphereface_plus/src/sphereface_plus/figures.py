"""The figures of a verification: report.json, every pair's score, and the table of packs."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sphereface_plus.pairs import PairSet
from sphereface_plus.uncertainty import bootstrap_interval, people_of
from sphereface_plus.verification import FoldResult, RocResult

__all__ = ["figures", "score_table", "shown", "table", "warn_if_alike"]

logger = logging.getLogger(__name__)

ALIKE = 0.999  # mean cosine of embeddings from which on they tell nobody apart


def figures(
    embedder: str, protocol: str, pairs: PairSet, found: FoldResult, curve: RocResult
) -> dict[str, Any]:
    """The content of report.json; the intervals are bootstrapped over people, of 95 %."""
    people = people_of(pairs.left, pairs.right, pairs.same)
    return {
        "embedder": embedder,
        "protocol": protocol,
        "pairs": len(pairs),
        "images": len(pairs.images),
        "accuracy": float(found.accuracy.mean()),
        "accuracy_std": found.std,
        "fold_accuracy": found.accuracy.tolist(),
        "fold_threshold": found.threshold.tolist(),
        "auc": curve.auc,
        "eer": curve.eer,
        "tpr_at_fpr": shown(curve.tpr_at_fpr),
        "threshold_at_fpr": shown(curve.threshold_at_fpr),
        "val_at_far": {f"{far:g}": asdict(val) for far, val in found.val.items()},
        "accuracy_interval": bootstrap_interval(found.right, people, pairs.same),
        "tpr_interval": {
            f"{level:g}": bootstrap_interval(found.scores >= cut, people, pairs.same, (True,))
            for level, cut in curve.threshold_at_fpr.items()
        },
        "missing": list(pairs.missing),
    }


def shown(by_level: dict[float, float]) -> dict[str, float]:
    """Figures by level, for JSON."""
    return {f"{level:g}": value for level, value in by_level.items()}


def warn_if_alike(embeddings: Tensor) -> None:
    """Say so where all embeddings point the same way: the figures then say nothing."""
    mean_cosine = functional.normalize(embeddings.double(), dim=1).mean(0).square().sum().item()
    if mean_cosine > ALIKE:
        logger.warning(
            "all embeddings are nearly alike (mean cosine %.4f): training has collapsed, or the "
            "images are not what the network was trained on",
            mean_cosine,
        )


def score_table(pairs: PairSet, found: FoldResult, cosines: NDArray[np.float64]) -> str:
    """Every pair as a line of comma-separated values."""
    lines = ["first,second,same,fold,score,cosine,right"]
    for i in range(len(pairs)):
        names = (printable_name(pairs, int(side[i])) for side in (pairs.left, pairs.right))
        values = (int(pairs.same[i]), int(pairs.fold[i]), f"{found.scores[i]:.6f}")
        row = (*names, *values, f"{cosines[i]:.6f}", int(found.right[i]))
        lines.append(",".join(map(str, row)))
    return "\n".join(lines) + "\n"


def printable_name(pairs: PairSet, index: int) -> str:
    """An image's file, in quotation marks, or its number."""
    if not pairs.images.files:
        return str(index)
    name = os.fsencode(str(pairs.images.file(index))).decode("utf-8", "backslashreplace")
    return '"' + name.replace('"', '""') + '"'


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a pack."""
    first = next(iter(reports.values()))
    levels = list(first["tpr_at_fpr"])
    titles = ["pack", "pairs", "accuracy, %", *(f"TPR at FPR {level}, %" for level in levels)]
    titles += ["VAL@FAR 0.001, %"] if first["val_at_far"] else []
    titles += ["EER, %", "AUC"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, report in reports.items():
        cells = [name, str(report["pairs"])]
        cells.append(f"{100 * report['accuracy']:.2f} ± {100 * report['accuracy_std']:.2f}")
        cells += [f"{100 * report['tpr_at_fpr'][level]:.2f}" for level in levels]
        for val in report["val_at_far"].values():
            cells.append(f"{100 * val['val']:.2f} ± {100 * val['std']:.2f}")
        cells += [f"{100 * report['eer']:.2f}", f"{report['auc']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
