"""SphereFace+: angular-margin face recognition with minimum hyperspherical energy."""

from sphereface_plus.head import SphereFaceHead
from sphereface_plus.verifier import FaceVerifier

__all__ = ["FaceVerifier", "SphereFaceHead"]
