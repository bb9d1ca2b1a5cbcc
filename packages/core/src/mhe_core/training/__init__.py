"""What the three applications share for training.

``config`` and ``command`` make a command of a dataclass; ``images``, ``batches`` and ``augment``
bring pictures to the device; ``run``, ``checkpoint`` and ``loop`` train and resume; ``compare`` and
``plots`` set methods and seeds side by side. Needs the extra ``mhe-core[training]``.
"""
