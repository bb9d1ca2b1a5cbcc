"""From a network to the energy of its neurons."""

from mhe_core.network.neurons import has_neurons, neuron_matrix, stored_weight
from mhe_core.network.regularizer import NetworkRegularizer
from mhe_core.network.selection import unwrapped

__all__ = ["NetworkRegularizer", "has_neurons", "neuron_matrix", "stored_weight", "unwrapped"]
