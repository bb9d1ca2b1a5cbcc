"""Pictures of a verification: the ROC curve, the scores, the pairs that went wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mhe_core.plotting import drawing
from mhe_core.training.images import ImageSet

from sphereface_plus.pairs import PairSet
from sphereface_plus.verification import FoldResult, RocResult

__all__ = ["plot_errors", "plot_roc", "plot_scores", "worst_pairs"]

SCORE = {
    "sphereface": "cosine",
    "insightface": "− squared distance",
    "distance": "− squared distance",
}


def plot_roc(curve: RocResult, file: Path) -> None:
    """True against false positive rate, the latter on a logarithmic axis."""
    with drawing(file, 5, 3.8) as figure:
        axis = figure.subplots()
        # On a logarithmic axis the points at 0 stand at its left end.
        smallest = curve.false_positive_rate[curve.false_positive_rate > 0].min()
        axis.step(curve.false_positive_rate.clip(smallest), curve.true_positive_rate, where="post")
        axis.set_xscale("log")
        axis.set_xlim(min(smallest, 0.5), 1)
        axis.set_ylim(0, 1.02)
        axis.plot(curve.eer, 1 - curve.eer, "o", color="C3", label=f"EER {100 * curve.eer:.2f} %")
        axis.set_xlabel("false positive rate")
        axis.set_ylabel("true positive rate")
        axis.set_title(f"ROC, area {curve.auc:.4f}")
        axis.legend(loc="lower right")


def plot_scores(result: FoldResult, pairs: PairSet, protocol: str, file: Path) -> None:
    """Histograms of the scores of same and of different pairs, and the range of thresholds."""
    with drawing(file, 5, 3.8) as figure:
        axis = figure.subplots()
        bins = np.linspace(result.scores.min(), result.scores.max(), 61).tolist()
        axis.hist(result.scores[pairs.same], bins, alpha=0.6, label="same person")
        axis.hist(result.scores[~pairs.same], bins, alpha=0.6, label="different persons")
        thresholds = result.threshold if protocol == "sphereface" else -result.threshold
        axis.axvspan(thresholds.min(), thresholds.max(), color="black", alpha=0.3, lw=1)
        axis.axvline(thresholds.mean(), color="black", lw=1, label="thresholds")
        axis.set_xlabel(SCORE[protocol])
        axis.set_ylabel("pairs")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)


def worst_pairs(result: FoldResult, pairs: PairSet, protocol: str) -> dict[str, list[int]]:
    """Indices of the pairs that went wrong, worst first: ``same`` and ``different`` ones."""
    thresholds = result.threshold if protocol == "sphereface" else -result.threshold
    own_threshold = thresholds[np.unique(pairs.fold, return_inverse=True)[1]]
    too_high = result.scores - own_threshold
    order = np.argsort(too_high, kind="stable")
    return {
        "same": [int(i) for i in order if pairs.same[i] and too_high[i] <= 0],
        "different": [int(i) for i in order[::-1] if not pairs.same[i] and too_high[i] >= 0],
    }


def plot_errors(
    worst: dict[str, list[int]], result: FoldResult, pairs: PairSet, file: Path, rows: int = 8
) -> None:
    """The worst pairs side by side with their scores: same ones left, different ones right."""
    count = max(1, min(rows, max(len(indices) for indices in worst.values())))
    with drawing(file, 6.4, 0.5 + 1.3 * count) as figure:
        columns = {"width_ratios": [1, 1, 0.4, 1, 1], "wspace": 0.05}
        grid = figure.subplots(count, 5, squeeze=False, gridspec_kw=columns)
        for axis in grid.ravel():
            axis.set_axis_off()
        for column, (kind, indices) in zip((0, 3), worst.items(), strict=True):
            grid[0, column].set_title(
                f"{len(indices)} {kind} pairs wrong", fontsize=9, loc="left", color="C3"
            )
            for row, index in enumerate(indices[:count]):
                show_pair(grid[row, column : column + 2], pairs, index, float(result.scores[index]))


def show_pair(axes: np.ndarray, pairs: PairSet, index: int, score: float) -> None:
    """Two images beside each other, the score under the left one."""
    for axis, image in zip(axes, (pairs.left[index], pairs.right[index]), strict=True):
        pixels, _ = pairs.images.__getitems__([int(image)])
        axis.imshow(pixels[0].permute(1, 2, 0).numpy())
        axis.text(
            0.02,
            -0.02,
            image_name(pairs.images, int(image)),
            fontsize=6,
            va="top",
            transform=axis.transAxes,
        )
    axes[0].text(
        0.03,
        0.97,
        f"{score:+.3f}",
        fontsize=7,
        va="top",
        color="white",
        transform=axes[0].transAxes,
        bbox={"facecolor": "black", "alpha": 0.6, "pad": 1, "lw": 0},
    )


def image_name(images: ImageSet, index: int) -> str:
    """The image's file without folder and ending, or its class where it has no file."""
    if images.files:
        return Path(str(images.file(index))).stem
    return images.classes[images.labels[index]]
