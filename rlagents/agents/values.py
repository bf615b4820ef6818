"""What the numbers that a network puts out mean: how they become values, goals and losses.

Frozen objects without parameters. Losses are per sample; weights and means are the agent's business.
"""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Values(Protocol):
    """One meaning of Z numbers per action."""

    @property
    def width(self) -> int:
        """Z."""
        ...

    def mean(self, params: Tensor) -> Tensor:
        """Returns expected values [*] of params [*, Z]."""
        ...

    def target(self, reward: Tensor, discount: Tensor, ahead: Tensor, policy: Tensor) -> Tensor:
        """Returns what to learn, for `loss`.

        Args:
            reward: [B] n-step reward.
            discount: [B] of the bootstrap.
            ahead: [B, A, Z] the successors' params, of every action.
            policy: [B, A] probability of each action there; a maximum is one-hot.
        """
        ...

    def loss(self, params: Tensor, goal: Tensor) -> Tensor:
        """Returns losses [B] of the params [B, Z] of the actions taken."""
        ...


@dataclass(frozen=True)
class Scalar:
    """One number per action, its expected return (Mnih et al. 2015).

    The Huber loss has slope 1 beyond `huber_delta`; delta 1 is the "clipped error" of the paper. None:
    half the squared error.
    """

    huber_delta: float | None = 1.0
    width: int = 1

    def mean(self, params: Tensor) -> Tensor:
        """Returns the number itself."""
        return params[..., 0]

    def target(self, reward: Tensor, discount: Tensor, ahead: Tensor, policy: Tensor) -> Tensor:
        """Returns reward + discount * sum over a of policy(a) * Q(a), as [B]."""
        return reward + discount * (policy * ahead[..., 0]).sum(1)

    def loss(self, params: Tensor, goal: Tensor) -> Tensor:
        """Returns Huber or squared losses [B]."""
        if self.huber_delta is None:
            return 0.5 * (params[:, 0] - goal).square()
        # torch's Huber loss has slope delta far out; ours has slope 1 for every delta.
        return F.huber_loss(params[:, 0], goal, reduction="none", delta=self.huber_delta) / self.huber_delta
