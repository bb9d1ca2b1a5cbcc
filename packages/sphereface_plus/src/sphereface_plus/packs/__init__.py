"""Faces as they are handed round: insightface's packs, read without mxnet.

:class:`RecordPack` is a training set in one file, ``train.rec`` with ``train.idx``;
:func:`read_verification_pack` reads pairs in one file, ``lfw.bin`` and its like.
"""

from sphereface_plus.packs.checking import check_pack
from sphereface_plus.packs.record_pack import RecordPack
from sphereface_plus.packs.verification_pack import EncodedImage, read_verification_pack

__all__ = ["EncodedImage", "RecordPack", "check_pack", "read_verification_pack"]
