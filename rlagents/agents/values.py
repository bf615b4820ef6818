"""What the numbers that a network puts out mean: how they become values, goals and losses.

Frozen objects without parameters. Losses are per sample; weights and means are the agent's business.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rlagents.config import (
    CategoricalValues,
    ImplicitQuantileValues,
    Munchausen,
    QuantileValues,
    ScalarValues,
)
from rlagents.config import Values as Config


class Values(Protocol):
    """One meaning of Z numbers per action."""

    @property
    def width(self) -> int:
        """The numbers per action that the network's head has."""
        ...

    @property
    def fractions(self) -> ImplicitQuantileValues | None:
        """What the network is asked for; Z is then how many it is asked. None: nothing, Z = width."""
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

    def loss(self, params: Tensor, goal: Tensor, fractions: Tensor | None = None) -> Tensor:
        """Returns losses [B] of the params [B, Z] of the actions taken, at fractions [B, Z] if asked for."""
        ...

    def error(self, params: Tensor, goal: Tensor, loss: Tensor) -> Tensor:
        """Returns how wrong each prediction is, [B] and not negative, for the replay's priorities."""
        ...


def make(config: Config) -> Values:
    """Returns the meaning that a table of the configuration names."""
    match config:
        case ScalarValues():
            return Scalar(config.huber_delta if config.loss == "huber" else None)
        case CategoricalValues():
            return Categorical(config.low, config.high, config.atoms)
        case QuantileValues():
            return Quantile(config.quantiles, config.huber_delta, error_of=config.error)
        case ImplicitQuantileValues():
            return Quantile(1, config.huber_delta, config, config.error)


@dataclass(frozen=True)
class Scalar:
    """One number per action, its expected return (Mnih et al. 2015).

    The Huber loss has slope 1 beyond `huber_delta`; delta 1 is the "clipped error" of the paper. None:
    half the squared error.
    """

    huber_delta: float | None = 1.0
    width: int = 1
    fractions: ImplicitQuantileValues | None = None

    def mean(self, params: Tensor) -> Tensor:
        """Returns the number itself."""
        return params[..., 0]

    def target(self, reward: Tensor, discount: Tensor, ahead: Tensor, policy: Tensor) -> Tensor:
        """Returns reward + discount * sum over a of policy(a) * Q(a), as [B]."""
        return reward + discount * (policy * ahead[..., 0]).sum(1)

    def loss(self, params: Tensor, goal: Tensor, fractions: Tensor | None = None) -> Tensor:
        """Returns Huber or squared losses [B]."""
        if self.huber_delta is None:
            return 0.5 * (params[:, 0] - goal).square()
        # torch's Huber loss has slope delta far out; ours has slope 1 for every delta.
        return F.huber_loss(params[:, 0], goal, reduction="none", delta=self.huber_delta) / self.huber_delta

    def error(self, params: Tensor, goal: Tensor, loss: Tensor) -> Tensor:
        """Returns the size of the temporal-difference error."""
        return (params[:, 0] - goal).abs()


@dataclass(frozen=True)
class Categorical:
    """Probabilities of `width` returns, spread evenly from `low` to `high`: C51 (Bellemare et al. 2017).

    The params are logits. A policy that is not one action has the mixture of its actions' distributions.
    """

    low: float
    high: float
    width: int = 51
    fractions: ImplicitQuantileValues | None = None

    def atoms(self, device: torch.device) -> Tensor:
        """Returns the returns that have a probability, [Z] float32."""
        return torch.linspace(self.low, self.high, self.width, device=device)

    def mean(self, params: Tensor) -> Tensor:
        """Returns sum over i of atom_i * softmax(params)_i."""
        return params.softmax(-1) @ self.atoms(params.device)

    def target(self, reward: Tensor, discount: Tensor, ahead: Tensor, policy: Tensor) -> Tensor:
        """Returns the probabilities [B, Z] of the atoms for reward + discount * return of the successor.

        Each moved atom is clipped to [low, high] and shared by its two neighbours in proportion to its
        nearness (Algorithm 1). That share is 1 - distance / spacing, at least 0, of every atom: the same
        sums without a scatter, whose order on a GPU is not fixed.
        """
        probability = (policy[..., None] * ahead.softmax(-1)).sum(1)  # [B, Z]
        moved = reward[:, None] + discount[:, None] * self.atoms(reward.device)  # [B, Z]
        spacing = (self.high - self.low) / (self.width - 1)
        place = (moved.clamp(self.low, self.high) - self.low) / spacing  # [B, Z] in units of atoms
        atom = torch.arange(self.width, device=reward.device)
        share = (place[:, None] - atom[:, None]).abs_().neg_().add_(1).clamp_(min=0)  # [B, Z to, Z from]
        return (share @ probability[..., None])[..., 0]

    def loss(self, params: Tensor, goal: Tensor, fractions: Tensor | None = None) -> Tensor:
        """Returns cross-entropies [B], whose gradient is that of the Kullback-Leibler divergence."""
        return -(goal * params.log_softmax(-1)).sum(-1)

    def error(self, params: Tensor, goal: Tensor, loss: Tensor) -> Tensor:
        """Returns the divergence: the loss less the goal's entropy, which no prediction can take away."""
        return (loss + torch.xlogy(goal, goal).sum(-1)).clamp(min=0)


@dataclass(frozen=True)
class Quantile:
    """Quantiles of the return, as many as asked for.

    Without `asked`, the head has `width` of them, at the fractions (i + 1/2) / width: QR-DQN (Dabney et al.
    2018). With it, the network is asked for the quantiles at given fractions: IQN (Dabney et al. 2018b).
    Several actions' quantiles are averaged fraction by fraction, as Vieillard et al. 2020 do.

    Where `huber_delta` is not small beside the differences of returns, these are more like expectiles, whose
    mean is too near to the middle: with delta 1 that of +1 nine times in ten, else -1, is 0.69, not 0.8.
    """

    width: int = 51
    huber_delta: float = 1.0
    fractions: ImplicitQuantileValues | None = None
    error_of: Literal["loss", "mean"] = "loss"

    def mean(self, params: Tensor) -> Tensor:
        """Returns the mean of the quantiles."""
        return params.mean(-1)

    def target(self, reward: Tensor, discount: Tensor, ahead: Tensor, policy: Tensor) -> Tensor:
        """Returns reward + discount * quantiles of the successor, [B, Z]."""
        return reward[:, None] + discount[:, None] * (policy[..., None] * ahead).sum(1)

    def loss(self, params: Tensor, goal: Tensor, fractions: Tensor | None = None) -> Tensor:
        """Returns quantile Huber losses [B] (Dabney et al. 2018, equation 10; 2018b, equation 3).

        The sum over predictions i of the mean over goals j of |fraction_i - 1[u < 0]| * Huber(u) / delta with
        u = goal_j - params_i.
        """
        if fractions is None:
            fractions = midpoints(params.shape[1], params.device)
        with torch.no_grad():
            value, slope = self._huber(params, goal, fractions)
        # The value as it is, with the slope that is known already: autograd would take three times as long.
        return value - (slope * (params - params.detach())).sum(1)

    def _huber(self, params: Tensor, goal: Tensor, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses [B], and how fast they fall as each of the params [B, Z] rises.

        With c = u clipped to [-delta, delta], Huber(u) = c (u - c / 2) and its slope is c. Goals above the
        prediction count fraction_i, those below 1 - fraction_i.
        """
        delta = self.huber_delta
        error = goal[:, None] - params[..., None]  # [B, Z, Z of the goal]
        loss, slope = torch.zeros_like(params), torch.zeros_like(params)
        for share, low, high in ((fractions, 0.0, delta), (1 - fractions, -delta, 0.0)):
            clipped = error.clamp(low, high)
            slope += share * clipped.mean(2)
            loss += share * clipped.mul_(error - clipped / 2).mean(2)
        return loss.sum(1) / delta, slope / delta

    def error(self, params: Tensor, goal: Tensor, loss: Tensor) -> Tensor:
        """Returns the loss, or the size of the difference of the means.

        The loss is not zero where the return is a matter of chance, however good the prediction.
        """
        return loss if self.error_of == "loss" else (params.mean(1) - goal.mean(1)).abs()


def midpoints(count: int, device: torch.device) -> Tensor:
    """Returns the fractions (i + 1/2) / count, [1, count] float32."""
    return (torch.arange(count, device=device, dtype=torch.float32)[None] + 0.5) / count


def taken(params: Tensor, action: Tensor) -> Tensor:
    """Returns the numbers [B, Z] of actions [B], of those [B, A, Z] of all."""
    return params.gather(1, action[:, None, None].expand(-1, 1, params.shape[2])).squeeze(1)


def soften(
    config: Munchausen, now: Tensor, action: Tensor, ahead: Tensor, discount: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns what soft values add to the reward, [B], and the policy of the bootstrap, [B, A].

    With pi = softmax(Q / temperature), Munchausen's goal (Vieillard et al. 2020, equation 2) is

        reward + share * max(temperature * log pi(action | obs), lowest)
               + discount * sum over a of pi(a) * (Q(next_obs, a) - temperature * log pi(a)), pi(. | next_obs)

    whose last term is the temperature times the policy's entropy: one number, so it counts as a reward for
    every kind of values. Of an n-step return, only the first action's log-policy is added.

    Args:
        config: the temperature, share and lowest.
        now: [B, A] values of the observations, -inf where illegal.
        action: [B] taken there.
        ahead: [B, A] values of the successors, -inf where illegal.
        discount: [B] of the bootstrap.
    """
    log_policy = (now / config.temperature).log_softmax(1).gather(1, action[:, None])[:, 0]  # [B]
    policy = (ahead / config.temperature).softmax(1)
    entropy = -torch.xlogy(policy, policy).sum(1)
    bonus = config.share * (config.temperature * log_policy).clamp(config.lowest, 0)
    return bonus + discount * config.temperature * entropy, policy
