"""Verification: are two faces the same person? Accuracy over folds, and the ROC curve.

The protocols are those of *Labeled Faces in the Wild*, view 2: the threshold for a fold's pairs is
chosen on the other folds, never on the fold itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from mhe_core.errors import UserError
from numpy.typing import ArrayLike, NDArray

from sphereface_plus.insightface import ValResult, evaluate_folds

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PROTOCOLS", "FoldResult", "RocResult", "roc", "ten_fold"]

PROTOCOLS = ("sphereface", "insightface", "distance")
GRIDS = {
    "sphereface": np.arange(-10_000, 10_001) / 10_000,  # cosines, −1 to 1
    "distance": np.arange(0, 401) / 100,  # squared distances, 0 to 4
}

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class FoldResult:
    """What :func:`ten_fold` found; folds in the order of their numbers.

    Attributes:
        accuracy: fraction of the fold's pairs that were right, ``[folds]``.
        threshold: what the other folds chose for it, a cosine or a squared distance, ``[folds]``.
        scores: of each pair ``[P]``, centred as its fold's; the higher, the more alike (the
            squared distances with a minus sign).
        right: whether each pair was right, ``[P]``.
        std: of the accuracy over folds, as the protocol has it: the population's of
            ``insightface``, the sample's of the others.
        val: VAL@FAR by target, where the protocol has it.
    """

    accuracy: Floats
    threshold: Floats
    scores: Floats
    right: Bools
    std: float
    val: dict[float, ValResult] = field(default_factory=dict)


def ten_fold(
    left: ArrayLike | Tensor,
    right: ArrayLike | Tensor,
    same: ArrayLike | Tensor,
    fold: ArrayLike | Tensor,
    protocol: str = "sphereface",
) -> FoldResult:
    """Verification accuracy with a threshold from the other folds; ten of them in LFW.

    ``sphereface``: from a fold's embeddings the mean over the other folds (left and right
    together) is subtracted; the score is the cosine. ``distance``: the score is the squared
    distance of the normalised embeddings. A threshold t is judged by how many of the other folds'
    pairs are on its right side: a same pair must be strictly nearer than t, a different pair
    strictly farther. All t of the grid (−1, −0.9999, …, 1 or 0, 0.01, …, 4) with the highest count
    are averaged, and the fold's own pairs are judged by that mean in the same way.

    ``insightface``: the squared distance, too, but by the rules of arcface_torch: the first best
    threshold of 0, 0.01, …, 3.99, below which a pair is taken for one person, and VAL@FAR
    (:mod:`sphereface_plus.insightface`).

    How an image and its mirror image make one embedding — concatenated in ``sphereface``, added in
    the others — is decided before: the arguments are the embeddings as they are.

    Args:
        left: embeddings of the pairs' first images, ``[P, d]``.
        right: embeddings of their second images, ``[P, d]``.
        same: whether the pair is one person, ``[P]`` boolean.
        fold: the pair's fold number, ``[P]`` integers; two folds at least.
        protocol: ``"sphereface"``, ``"insightface"`` or ``"distance"``.

    Raises:
        ValueError: if the shapes do not fit, an embedding is not finite, there is one fold only,
            or the protocol is unknown.

    Example:
        >>> import numpy as np
        >>> left = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
        >>> right = np.array([[1, 0], [0, 1], [0, 1], [1, 0]])
        >>> result = ten_fold(left, right, [True, False, True, False], [0, 0, 1, 1])
        >>> result.accuracy
        array([1., 1.])
    """
    pairs_left, pairs_right = as_array(left, np.float64), as_array(right, np.float64)
    is_same, folds = as_array(same, np.bool_), as_array(fold, np.int64)
    numbers = check_pairs(pairs_left, pairs_right, is_same, folds, protocol)
    if protocol == "insightface":
        return insightface_folds(squared_distances(pairs_left, pairs_right), is_same, folds)
    grid = GRIDS[protocol]
    if protocol == "sphereface":
        scores = centred_cosines(pairs_left, pairs_right, folds, numbers)
    else:
        # Negated, scores and thresholds compare as cosines do.
        distances = squared_distances(pairs_left, pairs_right)
        scores, grid = np.broadcast_to(-distances, (len(numbers), len(folds))), -grid[::-1]

    accuracy, threshold = np.empty(len(numbers)), np.empty(len(numbers))
    own, right = np.empty(len(folds)), np.empty(len(folds), dtype=bool)
    for k, number in enumerate(numbers):
        held = folds == number
        threshold[k] = best_threshold(scores[k, ~held], is_same[~held], grid)
        mine = scores[k, held]
        right[held] = np.where(is_same[held], mine > threshold[k], mine < threshold[k])
        accuracy[k] = right[held].mean()
        own[held] = mine
    threshold = threshold if protocol == "sphereface" else -threshold
    return FoldResult(accuracy, threshold, own, right, std=float(accuracy.std(ddof=1)))


def insightface_folds(distances: Floats, same: Bools, fold: NDArray[np.int64]) -> FoldResult:
    """The figures of arcface_torch."""
    found = evaluate_folds(distances, same, fold)
    own_threshold = found.threshold[np.unique(fold, return_inverse=True)[1]]
    return FoldResult(
        found.accuracy,
        found.threshold,
        scores=-distances,
        right=(distances < own_threshold) == same,
        std=float(found.accuracy.std()),
        val=found.val,
    )


def squared_distances(left: Floats, right: Floats) -> Floats:
    """Squared distances ``[P]`` of normalised embeddings."""
    return ((unit_rows(left) - unit_rows(right)) ** 2).sum(1)


def best_threshold(scores: Floats, same: Bools, grid: Floats) -> float:
    """Mean of the grid's thresholds that put the most pairs on their right side."""
    of_same, of_different = np.sort(scores[same]), np.sort(scores[~same])
    above = len(of_same) - np.searchsorted(of_same, grid, side="right")
    below = np.searchsorted(of_different, grid, side="left")
    right_side = above + below
    return float(grid[right_side == right_side.max()].mean())


def centred_cosines(left: Floats, right: Floats, fold: NDArray, numbers: NDArray) -> Floats:
    """Cosines ``[folds, P]`` after subtracting the mean embedding of all other folds.

    Not by centring every embedding anew for each fold: with inner products at hand, a centring μ
    costs one product with it, (l − μ)·(r − μ) = l·r − l·μ − r·μ + μ·μ.
    """
    middle = (left.mean(0) + right.mean(0)) / 2  # near every μ, so that nothing cancels below
    left, right = left - middle, right - middle
    inside = (fold == numbers[:, None]).astype(np.float64)  # [folds, P]
    sums = inside @ (left + right)
    others = 2 * (len(fold) - inside.sum(1, keepdims=True))
    mu = (sums.sum(0) - sums) / others  # [folds, d]

    of_left, of_right, of_mu = mu @ left.T, mu @ right.T, (mu * mu).sum(1, keepdims=True)
    products = np.einsum("pd,pd->p", left, right) - of_left - of_right + of_mu
    lengths_left = np.einsum("pd,pd->p", left, left) - 2 * of_left + of_mu
    lengths_right = np.einsum("pd,pd->p", right, right) - 2 * of_right + of_mu
    lengths = np.sqrt(np.maximum(lengths_left, 0) * np.maximum(lengths_right, 0))
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def unit_rows(x: Floats) -> Floats:
    """Rows of length 1; zero rows stay zero."""
    lengths = np.sqrt(np.einsum("pd,pd->p", x, x))[:, None]
    return np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0)


@dataclass(frozen=True)
class RocResult:
    """The curve and its usual figures, all as fractions.

    Attributes:
        false_positive_rate: FPR along the curve, rising.
        true_positive_rate: TPR along the curve.
        auc: the area under it.
        eer: the equal error rate, where FPR = 1 − TPR, linear between two points of the curve.
        tpr_at_fpr: for each wanted FPR, the highest TPR of a threshold that does not exceed it.
        threshold_at_fpr: that threshold, from which on a pair is taken for one person.
    """

    false_positive_rate: Floats
    true_positive_rate: Floats
    auc: float
    eer: float
    tpr_at_fpr: dict[float, float]
    threshold_at_fpr: dict[float, float]


def roc(
    scores: ArrayLike | Tensor, same: ArrayLike | Tensor, at: tuple[float, ...] = (1e-3, 1e-2)
) -> RocResult:
    """The receiver operating characteristic of scores ``[P]``, the higher the more alike.

    Raises:
        ValueError: if the shapes differ, or one of the two kinds of pair is missing.

    Example:
        >>> roc([0.9, 0.8, 0.7, 0.1], [True, True, False, False]).auc
        1.0
    """
    from sklearn.metrics import auc, roc_curve

    values, is_same = as_array(scores, np.float64), as_array(same, np.bool_)
    if values.ndim != 1 or values.shape != is_same.shape:
        raise ValueError(f"expected scores and same as [P], got {values.shape} and {is_same.shape}")
    if is_same.all() or not is_same.any():
        raise ValueError(
            f"expected same and different pairs, got {is_same.sum()} and {(~is_same).sum()}"
        )
    fpr, tpr, thresholds = roc_curve(is_same, values, drop_intermediate=False)
    last = {level: int((fpr <= level).nonzero()[0][-1]) for level in at}  # FPR never falls
    return RocResult(
        fpr,
        tpr,
        auc=float(auc(fpr, tpr)),
        eer=float(np.interp(0, fpr + tpr - 1, fpr)),
        tpr_at_fpr={level: float(tpr[place]) for level, place in last.items()},
        threshold_at_fpr={level: float(thresholds[place]) for level, place in last.items()},
    )


def as_array(x: ArrayLike | Tensor, dtype: type) -> NDArray:
    """An array of that type, from a tensor on any device too; a ValueError where it loses."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if x.dtype.is_floating_point and x.element_size() < 4 else x
    array = np.asarray(x)
    if dtype is np.bool_ and array.dtype.kind in "iu" and np.isin(array, (0, 1)).all():
        array = array.astype(np.bool_)
    kinds = {np.float64: "fiub", np.bool_: "b", np.int64: "iu"}[dtype]
    if array.dtype.kind not in kinds:
        raise ValueError(f"expected an array that fits {dtype.__name__}, got {array.dtype}")
    return array.astype(dtype, copy=False)


def check_pairs(
    left: Floats, right: Floats, same: Bools, fold: NDArray, protocol: str
) -> NDArray[np.int64]:
    """The fold numbers, sorted; or a ValueError that says what was expected and what came."""
    if protocol not in PROTOCOLS:
        raise UserError(f"expected protocol to be one of {PROTOCOLS}, got {protocol!r}")
    if left.ndim != 2 or left.shape != right.shape:
        raise UserError(
            f"expected left and right as [P, d] alike, got {left.shape} and {right.shape}"
        )
    if same.shape != left.shape[:1] or fold.shape != left.shape[:1]:
        raise UserError(
            f"expected same and fold as [{len(left)}], got {same.shape} and {fold.shape}"
        )
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise UserError("expected finite embeddings, got NaN or infinity")
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise UserError(
            f"expected at least two folds, since a fold's threshold comes from the others, "
            f"got {len(numbers)}"
        )
    return numbers
