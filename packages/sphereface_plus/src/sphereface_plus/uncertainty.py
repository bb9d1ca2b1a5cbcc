"""How far verification figures would move with other people: the bootstrap over people.

Pairs are not independent: a person occurs in many. So people are drawn again, not pairs: with a
person drawn w times, a pair of that person counts w times, one of two persons the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap_interval", "people_of"]

DRAWS = 1000


def people_of(
    left: NDArray[np.int64], right: NDArray[np.int64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The persons of each pair's two images, ``[P]`` each: images joined by same pairs are one.

    Args:
        left: index of each pair's first image.
        right: index of its second image.
        same: whether they are one person.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(max(left.max(), right.max())) + 1
    # Of int32: scipy 1.11 ignores the error that it meets with others, and returns anything.
    ends = left[same].astype(np.int32), right[same].astype(np.int32)
    joined = coo_array((np.ones(same.sum()), ends), shape=(count, count))
    person = connected_components(joined, directed=False)[1]
    return person[left], person[right]


def bootstrap_interval(
    right: NDArray[np.bool_],
    people: Sequence[NDArray[np.int64]],
    same: NDArray[np.bool_],
    kinds: Sequence[bool] = (True, False),
    seed: int = 0,
) -> tuple[float, float]:
    """A 95 % interval of the share of pairs that are right, had other people been photographed.

    Same and different pairs keep their shares; thresholds stay as they are.

    Args:
        right: whether each pair is right, ``[P]``.
        people: the persons of each pair's images, ``[P]`` each.
        same: whether the pair is one person, ``[P]``.
        kinds: which pairs count, same ones, different ones, or both.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    first, second = people
    names, index = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, other = index[: len(first)], index[len(first) :]
    chosen = [same == kind for kind in kinds]
    total = sum(int(pairs.sum()) for pairs in chosen)
    shares = np.zeros(DRAWS)
    for draw in range(DRAWS):
        drawn = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weight = np.where(same, drawn[one], drawn[one] * drawn[other]).astype(np.float64)
        for pairs in chosen:
            if (of_kind := weight[pairs].sum()) > 0:
                shares[draw] += pairs.sum() * (weight[pairs] @ right[pairs]) / of_kind / total
    low, high = np.percentile(shares, (2.5, 97.5))
    return float(low), float(high)
