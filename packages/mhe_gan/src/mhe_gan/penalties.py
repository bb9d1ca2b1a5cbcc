"""Penalties on the discriminator that keep it from growing too sure: R1 and LeCam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

__all__ = ["LeCam", "gradient_penalty"]


def gradient_penalty(discriminator: nn.Module, real: Tensor, *classes: Tensor) -> Tensor:
    """R1: the mean of ‖∇ₓ D(x)‖² over real images.

    Mescheder et al., *Which Training Methods for GANs do actually Converge?* (ICML 2018,
    arXiv:1801.04406), eq. 9, without its γ/2.

    Args:
        discriminator: maps images to logits [B].
        real: images [B, 3, h, w].
        classes: of the images, [B], for a conditional discriminator.

    Returns:
        A scalar that can be differentiated by the discriminator's weights.

    Example:
        >>> mean = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
        >>> _ = nn.init.ones_(mean[1].weight)
        >>> float(gradient_penalty(mean, torch.zeros(2, 3, 2, 2)).detach())  # twelve ones
        12.0
    """
    images = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        discriminator(images, *classes).sum(), images, create_graph=True
    )
    return gradient.flatten(1).square().sum(1).mean()


class LeCam:
    """Distance of the logits of one kind of images from the running mean of the other kind's.

    E max(0, D(x) − ᾱ_F)² + E max(0, ᾱ_R − D(G(z)))², with ᾱ_R and ᾱ_F the exponential moving
    averages of the mean logits of real and of generated images. Tseng et al., *Regularizing
    Generative Adversarial Networks under Limited Data* (CVPR 2021, arXiv:2104.03310), eq. 4 to 6,
    in the form of the authors' program, which cuts each term at 0.

    Args:
        decay: of the averages.
        reduce: means over the processes of a distributed run, so that all have the same averages.
    """

    def __init__(
        self, decay: float = 0.99, reduce: Callable[[Tensor], Tensor] = lambda means: means
    ) -> None:
        self.decay = decay
        self.reduce = reduce
        self.averages = torch.zeros(2)
        self.started = False

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty for logits [B] of real and of generated images; moves the averages on."""
        own = torch.stack([real.detach().float().mean(), fake.detach().float().mean()])
        means = self.reduce(own)
        if self.started:
            self.averages = self.averages.to(means).lerp(means, 1 - self.decay)
        else:
            self.averages, self.started = means, True
        of_real, of_fake = self.averages
        return relu(real - of_fake).square().mean() + relu(of_real - fake).square().mean()

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"averages": self.averages, "started": self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.averages, self.started = state_dict["averages"], state_dict["started"]
