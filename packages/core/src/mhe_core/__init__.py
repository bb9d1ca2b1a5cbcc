"""Minimum hyperspherical energy (MHE) and compressive MHE for PyTorch."""

from mhe_core.energy import hyperspherical_energy
from mhe_core.network import NetworkRegularizer, neuron_matrix
from mhe_core.plugins import (
    PluginError,
    RegularizerInfo,
    create_regularizer,
    list_regularizers,
    register_regularizer,
)
from mhe_core.regularizers import MHE, HalfSpaceMHE, Regularizer
from mhe_core.sharded import sharded_hyperspherical_energy

__all__ = [
    "MHE",
    "HalfSpaceMHE",
    "NetworkRegularizer",
    "PluginError",
    "Regularizer",
    "RegularizerInfo",
    "create_regularizer",
    "hyperspherical_energy",
    "list_regularizers",
    "neuron_matrix",
    "register_regularizer",
    "sharded_hyperspherical_energy",
]
