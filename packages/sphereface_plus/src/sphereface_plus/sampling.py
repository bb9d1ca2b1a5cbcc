"""A loss over a sample of the classes: those of the batch, and some of the others.

PartialFC (An et al., CVPR 2022, arXiv 2203.15565): of very many classes, a tenth of the negatives
gives nearly the gradient of all, at a tenth of the cost. As in the published program, nothing makes
up for the classes left out, whose vectors have the gradient 0: weight decay and momentum still move
them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["sample_classes", "sampled_loss"]


def sample_classes(
    labels: Tensor, num_classes: int, rate: float, seed: int, step: int, shard: int = 0
) -> Tensor:
    """The classes of a step's loss: a function of labels, seed and step.

    Args:
        labels: ``[B]``, int64, of the images of all processes; those outside of
            [0, ``num_classes``) are another shard's.
        num_classes: C, the number of classes to sample from.
        rate: the sample has int(rate · C) classes, or those of the labels alone if they are more.
        seed: the run's.
        step: the step.
        shard: which part of the classes this is, where they are shared out.

    Returns:
        Classes, ascending, int64, on the labels' device: all that ``labels`` has, and others drawn
        without replacement, each with the same probability.

    Example:
        >>> sample_classes(torch.tensor([7, 2, 7]), 10, rate=0.5, seed=0, step=0).tolist()
        [2, 3, 5, 6, 7]
    """
    positives = labels[(labels >= 0) & (labels < num_classes)].unique()
    size = max(int(rate * num_classes), len(positives))
    (word,) = np.random.SeedSequence([seed, step, shard]).generate_state(1, np.uint64)
    generator = torch.Generator(labels.device).manual_seed(int(word) >> 1)
    order = torch.rand(num_classes, generator=generator, device=labels.device)
    order[positives] = 2.0  # before all others
    return order.topk(size).indices.sort().values


def sampled_loss(
    head: nn.Module, weight: nn.Parameter, features: Tensor, labels: Tensor, classes: Tensor
) -> Tensor:
    """The loss of a head as if it had the sampled classes only.

    Args:
        head: the head, or DistributedDataParallel around it.
        weight: its class vectors, ``[C, d]``.
        features: ``[B, d]``.
        labels: ``[B]``, int64, all among ``classes``.
        classes: ``[k]``, ascending, of :func:`sample_classes`.

    Returns:
        The loss, whose gradient is 0 in the other class vectors.

    Example:
        >>> from sphereface_plus.heads import create_head
        >>> _ = torch.manual_seed(0)
        >>> head = create_head("cosface", dim=4, num_classes=10)
        >>> classes = torch.tensor([2, 5, 7])
        >>> loss = sampled_loss(head, head.weight, torch.ones(1, 4), torch.tensor([5]), classes)
        >>> loss.backward()
        >>> head.weight.grad.abs().sum(1).nonzero().flatten().tolist()
        [2, 5, 7]
    """
    (name,) = (name for name, parameter in head.named_parameters() if parameter is weight)
    places = torch.searchsorted(classes, labels)
    return functional_call(head, {name: weight[classes]}, (features, places))
