"""The ten folds of insightface's arcface_torch (commit 7fadd420), figure by figure.

The distance is the squared Euclidean one of normalised embeddings, each the sum of an image's and
its mirror image's; a pair is taken for one person where it is below the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["InsightfaceResult", "ValResult", "evaluate_folds", "x_norm"]

ACCURACY_GRID = np.arange(0, 4, 0.01)
VAL_GRID = np.arange(0, 4, 0.001)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ValResult:
    """VAL@FAR: the share of same pairs accepted where few different ones are.

    Attributes:
        val: mean over folds.
        std: population standard deviation over folds.
        far: the share of different pairs accepted, mean over folds; may differ from the target.
    """

    val: float
    std: float
    far: float


@dataclass(frozen=True)
class InsightfaceResult:
    """What :func:`evaluate_folds` found.

    Attributes:
        accuracy: of each fold.
        threshold: what the other folds chose for it, a squared distance.
        tpr: share of same pairs below each threshold 0, 0.01, …, 3.99, mean over folds.
        fpr: that of different pairs.
        val: VAL by target FAR.
    """

    accuracy: Floats
    threshold: Floats
    tpr: Floats
    fpr: Floats
    val: dict[float, ValResult]


def evaluate_folds(
    distances: Floats, same: Bools, fold: NDArray[np.int64], fars: tuple[float, ...] = (1e-3,)
) -> InsightfaceResult:
    """Accuracy, ROC and VAL@FAR over folds, by the published rules.

    A fold's threshold is the first of the grid with the highest accuracy on the other folds.

    Args:
        distances: of each pair, ``[folds, P]``, as each fold sees it, or ``[P]``.
        same: whether the pair is one person, ``[P]``.
        fold: the pair's fold number, ``[P]``.
        fars: the targets of VAL@FAR.
    """
    numbers = np.unique(fold)
    per_fold = np.broadcast_to(distances, (len(numbers), len(same)))
    accuracy, threshold = np.empty(len(numbers)), np.empty(len(numbers))
    tprs, fprs = [], []
    vals: dict[float, list[tuple[float, float]]] = {far: [] for far in fars}
    for k, number in enumerate(numbers):
        held, row = fold == number, per_fold[k]
        train, test = (Counts(row[chosen], same[chosen], ACCURACY_GRID) for chosen in (~held, held))
        best = int(train.right.argmax())
        threshold[k] = ACCURACY_GRID[best]
        accuracy[k] = test.right[best] / held.sum()
        tprs.append(test.tpr)
        fprs.append(test.fpr)
        train = Counts(row[~held], same[~held], VAL_GRID)
        for far, found in vals.items():
            cut = threshold_at_far(train.fpr, far)
            of_fold = Counts(row[held], same[held], np.array([cut]))
            found.append((float(of_fold.tpr[0]), float(of_fold.fpr[0])))
    return InsightfaceResult(
        accuracy,
        threshold,
        tpr=np.mean(tprs, axis=0),
        fpr=np.mean(fprs, axis=0),
        val={far: val_result(np.array(found)) for far, found in vals.items()},
    )


class Counts:
    """How many pairs are right at each threshold of a grid; a pair is below it, or not."""

    def __init__(self, distances: Floats, same: Bools, grid: Floats) -> None:
        of_same, of_different = np.sort(distances[same]), np.sort(distances[~same])
        accepted = np.searchsorted(of_same, grid, side="left")
        false = np.searchsorted(of_different, grid, side="left")
        self.right = accepted + len(of_different) - false
        self.tpr = accepted / max(1, len(of_same))
        self.fpr = false / max(1, len(of_different))


def threshold_at_far(far: Floats, target: float) -> float:
    """The threshold of ``VAL_GRID`` at which the FAR [4000] reaches its target.

    As SciPy's older ``interp1d(kind="slinear")`` gave it, which today's refuses, since FARs occur
    again: linear between the last threshold of the FAR below, or at, the target, and the first
    threshold of the next one. 0 where the target is never reached.
    """
    if far.max() < target:
        return 0.0
    above = int(np.searchsorted(far, target, side="right"))
    if above == 0:
        return float(VAL_GRID[0])
    if above == len(far):
        return float(VAL_GRID[-1])
    below = above - 1
    share = (target - far[below]) / (far[above] - far[below])
    return float(VAL_GRID[below] + share * (VAL_GRID[above] - VAL_GRID[below]))


def val_result(found: NDArray[np.float64]) -> ValResult:
    """Of each fold's VAL and FAR ``[folds, 2]``."""
    val, far = found.mean(0)
    return ValResult(float(val), float(found[:, 0].std()), float(far))


def x_norm(*embeddings: NDArray) -> float:
    """XNorm: the mean length of all raw embeddings ``[N, d]``, plain and mirrored ones."""
    return float(np.mean([np.linalg.norm(np.asarray(e, np.float64), axis=1) for e in embeddings]))
