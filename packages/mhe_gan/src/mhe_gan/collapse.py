"""Whether the generator draws the same image again and again: the energy of its samples' features.

Samples that look alike have features that point in one direction, and so a high hyperspherical
energy, whatever they look like. Real images, seen by the same network, say what is high.
"""

from __future__ import annotations

from typing import Any

import torch
from mhe_core import hyperspherical_energy
from torch import Tensor, nn

__all__ = ["CollapseAlarm", "feature_energies"]

# Images are called alike where their features' energy is so many times that of real images. It is
# the mean of one over the chord: about the factor by which samples are nearer to each other.
ALIKE = 2.0
IN_A_ROW = 3  # evaluations after which the alarm goes off


@torch.no_grad()
def feature_energies(discriminator: nn.Module, real: Tensor, fake: Tensor) -> dict[str, float]:
    """Energies (s = 1) of what the discriminator's output layer is given, by two kinds of images.

    Directions are seen from the mean of the real images' features. The discriminator is in
    evaluation mode meanwhile, so that spectral norm takes no power iteration.

    Args:
        discriminator: with a last layer ``output``.
        real: images [N, 3, h, w] in [−1, 1].
        fake: generated ones, as many.

    Returns:
        ``real_feature_energy`` and ``sample_feature_energy``, both at least 0.5.
    """
    was_training = discriminator.training
    discriminator.eval()
    seen: list[Tensor] = []
    layer = discriminator.get_submodule("output")
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    try:
        discriminator(real)
        discriminator(fake)
    finally:
        hook.remove()
        discriminator.train(was_training)
    centre = seen[0].mean(0)
    energies = [float(hyperspherical_energy(features - centre, s=1)) for features in seen]
    return {"real_feature_energy": energies[0], "sample_feature_energy": energies[1]}


class CollapseAlarm:
    """Counts evaluations in a row at which the samples look alike."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self, energies: dict[str, float]) -> bool:
        """Whether the alarm goes off: the samples look alike for the third time in a row."""
        alike = energies["sample_feature_energy"] > ALIKE * energies["real_feature_energy"]
        self.count = self.count + 1 if alike else 0
        return self.count >= IN_A_ROW

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.count = state_dict["count"]
