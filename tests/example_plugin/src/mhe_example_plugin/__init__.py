"""Maximum minimal angle, a regularizer that ``mhe_core`` finds by its entry point."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MinimalAngle"]


class MinimalAngle(nn.Module):
    r"""Maximum minimal angle: −mean_i min_{j≠i} θ_ij, in [−π, 0].

    Wang et al., *MMA Regularization*, NeurIPS 2020; their weight of the term is 0.07.

    Args:
        num_neurons: N, the number of neurons of the layer.
        dim: d, their dimension.
        neighbors: how many of the nearest neurons to average over; 1 is the paper's.

    Raises:
        ValueError: if ``neighbors`` is not between 1 and N − 1.
    """

    def __init__(self, num_neurons: int, dim: int, *, neighbors: int = 1) -> None:
        super().__init__()
        if not 1 <= neighbors < num_neurons:
            raise ValueError(f"expected neighbors from 1 to {num_neurons - 1}, got {neighbors}")
        self.neighbors = neighbors

    def forward(self, neurons: Tensor) -> Tensor:
        """Scalar for the neurons ``[N, d]``."""
        wide = neurons.to(torch.promote_types(neurons.dtype, torch.float32))
        lengths = wide.norm(dim=-1, keepdim=True)
        u = wide / lengths.masked_fill(lengths == 0, 1.0)  # a zero row is orthogonal to all
        with torch.no_grad():
            cosines = (u @ u.mT).fill_diagonal_(-torch.inf)
        nearest = u[cosines.topk(self.neighbors).indices]  # [N, neighbors, d]
        u = u.unsqueeze(1)
        # Not arccos, whose gradient is lost where neurons nearly coincide.
        near, far = (nearest - u).norm(dim=-1), (nearest + u).norm(dim=-1)
        return -2 * torch.atan2(near, far).mean()
