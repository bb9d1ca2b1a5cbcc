"""Templates, sets of images of one person, and the figures of IJB-B and IJB-C about them.

The published programs pool alike and read their curves apart: a TAR at a FAR is told with the rule
by which it was read (:data:`RULES`), as the same scores give up to a point more or less.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from mhe_core.training.images import DataError
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "RULES",
    "Identification",
    "identify_closed",
    "identify_open",
    "image_features",
    "pool_templates",
    "tar_at_far",
]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)


def image_features(
    plain: ArrayLike,
    mirrored: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    *,
    keep_norm: bool = True,
) -> Floats:
    """One feature for each image ``[N, d]``, as insightface's ``eval_ijbc.py`` makes it.

    Args:
        plain: embeddings of the images, ``[N, d]``.
        mirrored: those of their mirror images, which are added.
        scores: the detector's, ``[N]``, by which features are weighted.
        keep_norm: False: features are normalised before they are weighted.
    """
    features = np.array(plain, dtype=np.float64)
    if mirrored is not None:
        features += np.asarray(mirrored, dtype=np.float64)
    if not keep_norm:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    if scores is not None:
        features *= np.asarray(scores, dtype=np.float64)[:, None]
    return features


def pool_templates(features: Floats, template: ArrayLike, media: ArrayLike) -> tuple[Ints, Floats]:
    """Templates' features: the mean over images of a medium, summed over media, normalised.

    Args:
        features: of each image, ``[N, d]``.
        template: each image's template, ``[N]``; an image may be there once for each of its.
        media: each image's medium, a photograph or a video, ``[N]``.

    Returns:
        The templates' numbers, rising, ``[T]``, and their features ``[T, d]`` of length 1.
    """
    templates, media_of = np.asarray(template, np.int64), np.asarray(media, np.int64)
    both, group = np.unique(np.stack([templates, media_of], 1), axis=0, return_inverse=True)
    means = _sums(features, group.ravel(), len(both))
    means /= np.bincount(group.ravel(), minlength=len(both))[:, None]
    numbers, of_template = np.unique(both[:, 0], return_inverse=True)
    sums = _sums(means, of_template.ravel(), len(numbers))
    return numbers, sums / np.linalg.norm(sums, axis=1, keepdims=True)


def _sums(rows: Floats, group: Ints, count: int) -> Floats:
    """Sums of the rows of each group."""
    found = np.zeros((count, rows.shape[1]))
    np.add.at(found, group, rows)
    return found


def rows_of(numbers: Ints, wanted: ArrayLike) -> Ints:
    """Where the wanted templates stand among ``numbers``; a DataError if one has no image."""
    asked = np.asarray(wanted, np.int64)
    place = np.searchsorted(numbers, asked).clip(max=len(numbers) - 1)
    if (lost := numbers[place] != asked).any():
        raise DataError(f"expected images of template {asked[lost.argmax()]}, got none")
    return place


def tar_at_far(
    scores: ArrayLike, same: ArrayLike, fars: Sequence[float] = FARS, rule: str = "strict"
) -> dict[float, float]:
    """TAR, the share of same pairs accepted, at each FAR, that of different pairs accepted.

    ``insightface``: the point of scikit-learn's curve, without the points on straight lines, whose
    FAR is nearest to the target, be it above or below. ``opensphere``: linear between that curve's
    points. ``strict``: the highest TAR of a threshold whose FAR is not above the target, no point
    left out; only this one never reads a TAR at a higher FAR than it says.

    Args:
        scores: of each pair, ``[P]``, the higher the more alike.
        same: whether the pair is one person, ``[P]``.
        fars: the targets.
        rule: one of :data:`RULES`.

    Raises:
        ValueError: for another rule, or pairs of one kind only.
    """
    from sklearn.metrics import roc_curve

    if rule not in RULES:
        raise ValueError(f"expected rule to be one of {tuple(RULES)}, got {rule!r}")
    is_same = np.asarray(same).astype(bool)
    impostors = int((~is_same).sum())
    if not impostors or impostors == len(is_same):
        raise ValueError(
            f"expected same and different pairs, got {len(is_same) - impostors} and {impostors}"
        )
    if few := [far for far in fars if impostors * far < 1]:
        logger.warning(
            "%s different pairs are fewer than 1/FAR for FAR %s: there TAR is that at FAR 0",
            *(f"{impostors:,}", ", ".join(f"{far:g}" for far in few)),
        )
    fpr, tpr, _ = roc_curve(is_same, np.asarray(scores), drop_intermediate=rule != "strict")
    return {far: RULES[rule](fpr, tpr, far) for far in fars}


def _nearest(fpr: Floats, tpr: Floats, far: float) -> float:
    """The nearest point's TPR; of two as near, the higher one's."""
    backwards = np.abs(fpr[::-1] - far)
    return float(tpr[::-1][backwards.argmin()])


def _interpolated(fpr: Floats, tpr: Floats, far: float) -> float:
    return float(np.interp(far, fpr, tpr))


def _not_above(fpr: Floats, tpr: Floats, far: float) -> float:
    return float(tpr[fpr <= far].max())


RULES: dict[str, Callable[[Floats, Floats, float], float]] = {
    "strict": _not_above,
    "insightface": _nearest,
    "opensphere": _interpolated,
}


@dataclass(frozen=True)
class Identification:
    """1:N: probes looked up in a gallery.

    Attributes:
        rank: share of probes whose person is among the k most alike, by k.
        tpir: share of mated probes found above the threshold, by FPIR.
        threshold: by FPIR.
        mated: how many probes have their person in the gallery.
        probes: how many there are.
    """

    rank: dict[int, float]
    tpir: dict[float, float]
    threshold: dict[float, float]
    mated: int
    probes: int


def identify_closed(
    similarity: Floats, mate: Ints, fpirs: Sequence[float] = (1e-2, 1e-1)
) -> Identification:
    """Closed set, by insightface's ``ijb_1n.py`` and OpenSphere: every probe has its person.

    At FPIR f the threshold is the ⌈f · probes⌉-th largest of all similarities to others; a probe
    counts if its own person's similarity is above it, whatever its rank.

    Args:
        similarity: of each probe to each gallery template, ``[Q, G]``.
        mate: each probe's own row of the gallery, ``[Q]``.
        fpirs: the targets.
    """
    probes = np.arange(len(mate))
    own = similarity[probes, mate]
    others = np.delete(similarity.ravel(), probes * similarity.shape[1] + mate)
    descending = np.sort(others)[::-1]
    thresholds = {f: float(descending[int(np.ceil(f * len(mate))) - 1]) for f in fpirs}
    return Identification(
        rank=_ranks(similarity, mate),
        tpir={f: float((own > cut).mean()) for f, cut in thresholds.items()},
        threshold=thresholds,
        mated=len(mate),
        probes=len(mate),
    )


def identify_open(
    similarity: Floats, mate: Ints, fpirs: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0)
) -> Identification:
    """Open set, by insightface's ``ijb_evals.py``: probes of people not in the gallery, too.

    At FPIR f the threshold is, of the best similarities of the n probes without a person here in
    falling order, the one at max(⌊n·f⌋ − 1, 0); a mated probe counts if its own person's
    similarity is above it and above all its others.

    Args:
        similarity: of each probe to each gallery template, ``[Q, G]``.
        mate: each probe's own row of the gallery, −1 if it has none, ``[Q]``.
        fpirs: the targets.

    Raises:
        DataError: if there are no probes of either kind.
    """
    mated = mate >= 0
    if mated.all() or not mated.any():
        raise DataError(
            f"expected probes with and without their person in the gallery, got {mated.sum()} "
            f"and {(~mated).sum()}"
        )
    best_of_others = np.sort(similarity[~mated].max(1))[::-1]
    with_mate, row = similarity[mated].copy(), mate[mated]
    probes = np.arange(len(row))
    own = with_mate[probes, row]
    rank = _ranks(with_mate, row)
    with_mate[probes, row] = -np.inf
    first = own > with_mate.max(1)
    places = {f: max(int(len(best_of_others) * f) - 1, 0) for f in fpirs}
    thresholds = {f: float(best_of_others[place]) for f, place in places.items()}
    return Identification(
        rank=rank,
        tpir={f: float(((own > cut) & first).mean()) for f, cut in thresholds.items()},
        threshold=thresholds,
        mated=int(mated.sum()),
        probes=len(mate),
    )


def _ranks(similarity: Floats, mate: Ints) -> dict[int, float]:
    order = np.argsort(-similarity, axis=1, kind="stable")
    place = (order == mate[:, None]).argmax(1)
    return {k: float((place < k).mean()) for k in RANKS}
