"""Whether images went through JPEG's quantisation, whatever they were saved as later.

JPEG rounds the cosine transform of each block of 8×8 pixels to multiples of a step for each
frequency. Decoded, re-saved and read again, the transform is still near those multiples.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FREQUENCIES", "STEPS", "lattice_sums", "nearness"]

#: The lowest frequencies (u, v) but (0, 0): those of which the most is left.
FREQUENCIES = sorted(
    ((u, v) for u in range(5) for v in range(5) if 0 < u + v < 5), key=lambda uv: (sum(uv), uv)
)
STEPS = torch.arange(2.0, 41.0)  # of JPEG's qualities from about 20 to 95
FEWEST = 200  # values of a frequency beyond half a step, to say something of that step


def cosines() -> Tensor:
    """The orthonormal cosine transform (DCT-II) of 8 values, [8, 8]."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    matrix = torch.cos(torch.pi * (2 * n + 1) * k / 16) / 2
    matrix[0] /= 2**0.5
    return matrix


def lattice_sums(images: Tensor) -> Tensor:
    r"""For each frequency and step q, the sum of :math:`\cos(2 \pi c / q)`, and of how many.

    Over the values c of the luminance's blocks with :math:`|c| > q/2`: those that would not be
    rounded to 0.

    Args:
        images: uint8 [B, 3, h, w]; whole blocks from the upper left corner on are looked at.

    Returns:
        [2, frequencies, steps], float64.
    """
    luminance = (images.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    height, width = (size // 8 * 8 for size in luminance.shape[1:])
    blocks = luminance[:, :height, :width].unfold(1, 8, 8).unfold(2, 8, 8).reshape(-1, 8, 8)
    transform = cosines()
    transformed = transform @ blocks @ transform.T
    sums = torch.zeros(2, len(FREQUENCIES), len(STEPS), dtype=torch.float64)
    for number, (u, v) in enumerate(FREQUENCIES):
        c = transformed[:, u, v, None].abs()
        beyond = c > STEPS / 2
        near = torch.cos(2 * torch.pi * c / STEPS) * beyond
        sums[:, number] = torch.stack([near.sum(0), beyond.sum(0)])
    return sums


def nearness(sums: Tensor) -> float | None:
    """How near to the multiples of a step the transform is: 1 on them, about 0 or below if on none.

    Of each frequency the step that fits best, and of the frequencies the median. The tails of
    what was never rounded fall, and so more of it lies before a multiple's half than at it.

    Args:
        sums: of :func:`lattice_sums`, added up over batches.

    Returns:
        None where there are too few values.
    """
    near, count = sums
    means = torch.where(count >= FEWEST, near / count.clamp_min(1), -torch.inf)
    best = means.max(1).values
    best = best[best.isfinite()]
    return None if 2 * len(best) < len(FREQUENCIES) else float(best.median())
