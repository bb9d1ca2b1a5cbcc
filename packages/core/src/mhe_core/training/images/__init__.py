"""Images for all applications: found in folders, read, checked, and served as batches.

- :func:`find_images`, :func:`find_classes`: what a folder holds, and what is left out, and why.
- :func:`read_image`, :func:`image_size`: the one reader; any mode to upright 8-bit RGB.
- :func:`for_each`, :func:`check_files`: all damaged files named before training starts.
- :class:`ImageSet`, :func:`load_images`, :func:`load_folder`: labelled images for training.

For another container (a pack, an archive), make records that open like files (:class:`ImageFile`)
and give a sequence of them to ``ImageSet(files=…)``: reading, splits, workers and messages follow.
"""

from mhe_core.training.images.checking import check_files, check_size, for_each, read_to_the_end
from mhe_core.training.images.folders import (
    NOT_IMAGES,
    SUFFIXES,
    FoundClasses,
    FoundImages,
    find_classes,
    find_images,
    printable,
)
from mhe_core.training.images.loading import (
    labelled_images,
    load_folder,
    load_images,
    read_all,
    with_classes,
)
from mhe_core.training.images.reading import (
    DataError,
    ImageFile,
    Size,
    decode,
    image_size,
    read_image,
    resize,
    to_tensor,
)
from mhe_core.training.images.sets import ImageSet

__all__ = [
    "NOT_IMAGES",
    "SUFFIXES",
    "DataError",
    "FoundClasses",
    "FoundImages",
    "ImageFile",
    "ImageSet",
    "Size",
    "check_files",
    "check_size",
    "decode",
    "find_classes",
    "find_images",
    "for_each",
    "image_size",
    "labelled_images",
    "load_folder",
    "load_images",
    "printable",
    "read_all",
    "read_image",
    "read_to_the_end",
    "resize",
    "to_tensor",
    "with_classes",
]
