"""SphereFace+: angular-margin face recognition with minimum hyperspherical energy."""

from sphereface_plus.head import SphereFaceHead

__all__ = ["SphereFaceHead"]
