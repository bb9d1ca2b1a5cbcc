"""Minimum hyperspherical energy (MHE) and compressive MHE for PyTorch."""

from importlib.metadata import PackageNotFoundError, version

from mhe_core.energy import (
    class_uniformity,
    feature_energy,
    feature_uniformity,
    hyperspherical_energy,
    sharded_hyperspherical_energy,
)
from mhe_core.network import NetworkRegularizer, neuron_matrix
from mhe_core.registry import (
    HyperparameterError,
    PluginError,
    RegularizerInfo,
    RegularizerNameError,
    create_regularizer,
    list_regularizers,
    register_regularizer,
)
from mhe_core.regularizers import MHE, HalfSpaceMHE, Regularizer

try:
    __version__ = version("mhe-core")
except PackageNotFoundError:  # on the path, but not installed
    __version__ = "0+unknown"

__all__ = [
    "MHE",
    "HalfSpaceMHE",
    "HyperparameterError",
    "NetworkRegularizer",
    "PluginError",
    "Regularizer",
    "RegularizerInfo",
    "RegularizerNameError",
    "__version__",
    "class_uniformity",
    "create_regularizer",
    "feature_energy",
    "feature_uniformity",
    "hyperspherical_energy",
    "list_regularizers",
    "neuron_matrix",
    "register_regularizer",
    "sharded_hyperspherical_energy",
]
