"""What the three applications share for training.

``config`` and ``command`` make a command of a dataclass; ``images``, ``batches`` and ``augment``
bring pictures to the device; ``processes`` says which device and process; ``loop`` trains, and is
told to stop by ``stopping``; ``run``, ``checkpoint``, ``files``, ``lock`` and ``wrappers`` keep and
resume; ``compare`` and ``plots`` set methods and seeds side by side. Needs the extra
``mhe-core[training]``.
"""
