"""Whether the generator draws one image again and again: the energy of its samples' features.

Samples that look alike have features that point in one direction, and so a high hyperspherical
energy, whatever they look like. Real images, seen by the same discriminator, say what is high.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

from mhe_core import hyperspherical_energy
from mhe_core.energy.potential import Gaussian
from mhe_core.training.loop import TrainingDiverged
from torch import Tensor

__all__ = ["LIMIT", "TrainingCollapsed", "alike_in_a_row", "collapse_figures", "goes_off"]

# Of the figure ``collapse``: half way from real images, 0, to one image again and again, 1; two
# images, drawn by turns, have it.
LIMIT = 0.5
IN_A_ROW = 3  # evaluations above it, as one may be chance
# An untrained generator's images are all alike, too, and it takes hundreds of steps until they
# are not: so many it has to begin.
TO_BEGIN = 1000


class TrainingCollapsed(TrainingDiverged):
    """The samples looked alike at several evaluations in a row; the state is saved."""


def collapse_figures(real: Tensor, samples: Tensor) -> dict[str, float]:
    r"""How much more alike samples are than real images, by the discriminator's features.

    Of each, the mean of the Gaussian potential exp(−2 ‖u − v‖²) over pairs of directions u, v,
    seen from the mean of the real images' features. It is 1 where all directions are one, which
    the Riesz potentials, infinite there, could not be compared at. With :math:`E_r` of the real
    images and :math:`E_s` of the samples,

    .. math:: \text{collapse} = \frac{E_s - E_r}{1 - E_r} \le 1,

    0 where samples are as unlike each other as real images are, and 1/M where they are M images,
    as unlike as real ones, each drawn equally often. (The mere ratio :math:`E_s / E_r` has no such
    scale: it ends at :math:`1 / E_r`, which depends on the discriminator.) A discriminator that
    sees nothing but the difference of real and generated images finds the latter alike, too.

    Args:
        real: features [N, d] of real images, N ≥ 2.
        samples: features [M, d] of generated ones, M ≥ 2.

    Returns:
        ``real_feature_energy`` and ``sample_feature_energy``, both in [e⁻⁸, 1], their ratio
        ``feature_energy_ratio``, and ``collapse``.

    Example:
        >>> import torch
        >>> real = torch.eye(3).repeat(100, 1)
        >>> figures = collapse_figures(real, real[:1].expand(50, 3))
        >>> round(figures["sample_feature_energy"], 4), round(figures["collapse"], 4)
        (1.0, 1.0)
    """
    centre = real.mean(0)
    of_real, of_samples = (
        float(hyperspherical_energy(x - centre, potential=Gaussian(2.0))) for x in (real, samples)
    )
    return {
        "real_feature_energy": of_real,
        "sample_feature_energy": of_samples,
        "feature_energy_ratio": of_samples / of_real,
        "collapse": (of_samples - of_real) / max(1 - of_real, 1e-6),
    }


def alike_in_a_row(collapses: Mapping[int, float]) -> int:
    """How many of the last evaluations are above a half, given the figure of all, by step.

    Example:
        >>> alike_in_a_row({100: 0.9, 200: 0.2, 300: 0.6, 400: 0.7})
        2
    """
    latest_first = reversed(list(collapses.values()))
    return sum(1 for _ in takewhile(lambda collapse: collapse > LIMIT, latest_first))


def goes_off(collapses: Mapping[int, float]) -> bool:
    """Whether the alarm does, by the figure ``collapse`` of all evaluations up to now, by step.

    That is after three in a row above a half; as long as none was below it, not in the first
    thousand steps.

    Example:
        >>> goes_off({100: 0.9, 200: 0.9, 300: 0.2, 400: 0.6, 500: 0.7, 600: 0.8})
        True
        >>> goes_off({100: 0.9, 200: 0.9, 300: 0.9}), goes_off({400: 0.9, 800: 0.9, 1200: 0.9})
        (False, True)
    """
    count = alike_in_a_row(collapses)
    begins = count == len(collapses)
    return count >= IN_A_ROW and not (begins and max(collapses) < TO_BEGIN)
