"""Precision, recall, density and coverage: which images lie in others' neighbourhoods.

The neighbourhood of an image is the ball in feature space that reaches to its k-th nearest
neighbour of the same set. Kynkäänniemi et al., *Improved Precision and Recall Metric for Assessing
Generative Models* (NeurIPS 2019, arXiv:1904.06991); Naeem et al., *Reliable Fidelity and Diversity
Metrics for Generative Models* (ICML 2020, arXiv:2002.09797).

Distances are found block by block, so that memory does not grow with N × M. Everything is computed
for several resamples at once: row r of ``counts`` [R, N] says how often each generated image was
drawn. Neighbourhoods stay those of the whole set.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mhe_core.errors import UserError
from torch import Tensor

__all__ = ["coverage", "density", "precision", "recall"]

BLOCK = 2**24  # distances at a time


def precision(generated: Tensor, real: Tensor, counts: Tensor, k: int = 3) -> Tensor:
    """Share of the generated images that lie in the neighbourhood of a real one.

    Args:
        generated: features [N, d].
        real: features [M, d], M > k.
        counts: how often each generated image counts, [R, N].
        k: which neighbour a neighbourhood reaches to.

    Returns:
        [R], in [0, 1].
    """
    hits = torch.zeros(len(generated), dtype=torch.bool)
    for inside in blocks(real, generated, radii(real, k)):
        hits |= inside.any(0)
    return weighted_mean(hits, counts)


def recall(generated: Tensor, real: Tensor, counts: Tensor, k: int = 3) -> Tensor:
    """Share of the real images that lie in the neighbourhood of a generated one: [R], in [0, 1]."""
    reach = radii(generated, k)
    drawn = (counts > 0).float()
    found = torch.zeros(len(counts))
    for part in real.split(block_rows(generated)):
        inside = torch.cdist(part, generated) <= reach
        found += (drawn @ inside.float().T > 0).sum(1)
    return found / len(real)


def density(generated: Tensor, real: Tensor, counts: Tensor, k: int = 5) -> Tensor:
    """Real neighbourhoods that a generated image lies in, over k: [R], at least 0, about 1."""
    hits = torch.zeros(len(generated))
    for inside in blocks(real, generated, radii(real, k), strict=True):
        hits += inside.sum(0)
    return weighted_mean(hits / k, counts)


def coverage(generated: Tensor, real: Tensor, counts: Tensor, k: int = 5) -> Tensor:
    """Share of the real images with a generated one in their neighbourhood: [R], in [0, 1]."""
    drawn = (counts > 0).float()
    found = torch.zeros(len(counts))
    for inside in blocks(real, generated, radii(real, k), strict=True):
        found += (drawn @ inside.float().T > 0).sum(1)
    return found / len(real)


def radii(features: Tensor, k: int) -> Tensor:
    """Distance of each image to the k-th nearest other one, [N].

    Raises:
        ValueError: if there are not more than k images.
    """
    if len(features) <= k:
        raise UserError(f"expected more than {k} images for {k} neighbours, got {len(features)}")
    parts = features.split(block_rows(features))
    return torch.cat([torch.cdist(x, features).kthvalue(k + 1).values for x in parts])


def blocks(
    centres: Tensor, others: Tensor, reach: Tensor, strict: bool = False
) -> Iterator[Tensor]:
    """Which of the others lie in each centre's ball, bool [rows, M], some rows at a time.

    ``strict`` leaves out those on its surface, as the original program of density and coverage
    does; that of precision and recall does not.
    """
    step = block_rows(others)
    for start in range(0, len(centres), step):
        rows = slice(start, start + step)
        distances, limit = torch.cdist(centres[rows], others), reach[rows, None]
        yield distances < limit if strict else distances <= limit


def block_rows(others: Tensor) -> int:
    """How many rows of distances to the others are computed at a time."""
    return max(1, BLOCK // len(others))


def weighted_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Means of ``values`` [N] over the images as often as they count, [R]."""
    return (counts.double() @ values.double() / counts.sum(1)).float()
