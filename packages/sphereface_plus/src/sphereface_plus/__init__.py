"""SphereFace+: angular-margin face recognition with minimum hyperspherical energy."""

from sphereface_plus.heads import SphereFaceHead, create_head, list_heads
from sphereface_plus.verifier import FaceVerifier

__all__ = ["FaceVerifier", "SphereFaceHead", "create_head", "list_heads"]
