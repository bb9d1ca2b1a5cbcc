"""Heads: class vectors and the loss that draws features to theirs, one family a file."""

from sphereface_plus.heads.adaface import AdaFace
from sphereface_plus.heads.base import Head
from sphereface_plus.heads.combined import CombinedMargin
from sphereface_plus.heads.curricularface import CurricularFace
from sphereface_plus.heads.magface import MagFace
from sphereface_plus.heads.registry import create_head, list_heads
from sphereface_plus.heads.sphereface import Annealing, SphereFaceHead
from sphereface_plus.heads.sphereface2 import SphereFace2
from sphereface_plus.heads.sphereface_r import SphereFaceR

__all__ = [
    "AdaFace",
    "Annealing",
    "CombinedMargin",
    "CurricularFace",
    "Head",
    "MagFace",
    "SphereFace2",
    "SphereFaceHead",
    "SphereFaceR",
    "create_head",
    "list_heads",
]
