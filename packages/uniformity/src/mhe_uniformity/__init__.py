"""Every published regularizer that spreads directions, as plug-ins of ``mhe_core``.

The regularizers are had by name, from :func:`mhe_core.create_regularizer`, as those of any plug-in.
"""

from mhe_uniformity._state import Seeded
from mhe_uniformity.determinant import MGD
from mhe_uniformity.nearest import MHS, MMA, KoLeo, RegularFace
from mhe_uniformity.orthonormality import DSO, MC, SO
from mhe_uniformity.poles import MHC, MHP
from mhe_uniformity.potentials import HUG, UniformFace, Uniformity
from mhe_uniformity.resultant import RMHP
from mhe_uniformity.spectrum import SRIP

__all__ = [
    "DSO",
    "HUG",
    "MC",
    "MGD",
    "MHC",
    "MHP",
    "MHS",
    "MMA",
    "RMHP",
    "SO",
    "SRIP",
    "KoLeo",
    "RegularFace",
    "Seeded",
    "UniformFace",
    "Uniformity",
]
