"""From a network to the energy of its neurons."""

from mhe_core.network._clipping import clipped_penalty
from mhe_core.network._output import find_output_layers
from mhe_core.network._weight import Weight, dense
from mhe_core.network._wrappers import unwrapped
from mhe_core.network.neurons import (
    has_neurons,
    module_weights,
    named_weights,
    neuron_matrix,
    weight_at,
)
from mhe_core.network.regularizer import NetworkRegularizer

__all__ = [
    "NetworkRegularizer",
    "Weight",
    "clipped_penalty",
    "dense",
    "find_output_layers",
    "has_neurons",
    "module_weights",
    "named_weights",
    "neuron_matrix",
    "unwrapped",
    "weight_at",
]
