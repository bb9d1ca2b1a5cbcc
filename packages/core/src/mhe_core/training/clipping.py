"""``--clip-grad``: a bound on the norm of what an optimizer is about to apply."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

__all__ = ["clip_gradients"]


def clip_gradients(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, largest: float
) -> None:
    """Scale an optimizer's gradients down to an L2 norm, that of all its parameters together.

    Called between the backward pass and the step. Gradients are then those of all processes, and
    those of fp16 are freed of their scale before. One whose norm is smaller stays as it is.

    Args:
        accelerator: which prepared the optimizer.
        optimizer: whose parameters' gradients are clipped, and no others.
        largest: the norm; 0 leaves the gradients as they are.
    """
    if not largest:
        return
    # Not accelerator.clip_grad_norm_, which would unscale every optimizer's gradients, those of
    # another network's last step, too.
    accelerator.unscale_gradients(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, largest)
