"""The hyperspherical energy: what it is (potential, reference), and how it is computed fast."""

from mhe_core.energy.features import class_uniformity, feature_energy, feature_uniformity
from mhe_core.energy.functional import hyperspherical_energy, sharded_hyperspherical_energy
from mhe_core.energy.potential import Gaussian, Riesz
from mhe_core.energy.potential_base import Potential

__all__ = [
    "Gaussian",
    "Potential",
    "Riesz",
    "class_uniformity",
    "feature_energy",
    "feature_uniformity",
    "hyperspherical_energy",
    "sharded_hyperspherical_energy",
]
