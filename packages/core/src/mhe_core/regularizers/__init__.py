"""The regularizers: neurons to energy, with a state where they need one."""

from mhe_core.regularizers.base import Regularizer
from mhe_core.regularizers.comhe import GroupCoMHE, RandomCoMHE
from mhe_core.regularizers.learned_comhe import AdversarialCoMHE, AnglePreservingCoMHE
from mhe_core.regularizers.mhe import MHE, HalfSpaceMHE

__all__ = [
    "MHE",
    "AdversarialCoMHE",
    "AnglePreservingCoMHE",
    "GroupCoMHE",
    "HalfSpaceMHE",
    "RandomCoMHE",
    "Regularizer",
]
