"""What the neurons of a network look like: energies, bounds, angles."""

from mhe_core.diagnostics.angles import (
    NEAR_DUPLICATE,
    AngleStatistics,
    angle_histogram,
    angle_statistics,
)
from mhe_core.diagnostics.bounds import lower_bound, random_angle_density, random_energy
from mhe_core.diagnostics.difference import LayerDifference, compare_weights, difference
from mhe_core.diagnostics.report import LayerReport, inspect, named_neurons

__all__ = [
    "NEAR_DUPLICATE",
    "AngleStatistics",
    "LayerDifference",
    "LayerReport",
    "angle_histogram",
    "angle_statistics",
    "compare_weights",
    "difference",
    "inspect",
    "lower_bound",
    "named_neurons",
    "random_angle_density",
    "random_energy",
]
