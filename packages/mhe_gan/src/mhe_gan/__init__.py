"""GANs with spectral norm and minimum hyperspherical energy (MHE)."""

from mhe_gan.losses import discriminator_loss, generator_loss
from mhe_gan.networks import create_networks

__all__ = ["create_networks", "discriminator_loss", "generator_loss"]
