"""How actions are chosen from values."""

import torch
from torch import Tensor

from rlagents.config import Boltzmann, EpsilonGreedy, Exploration, NoisyExploration
from rlagents.schedules import Linear
from rlagents.types import State


def legal_values(values: Tensor, mask: Tensor | None) -> Tensor:
    """Returns values [*, A] with -inf where an action is illegal."""
    return values if mask is None else values.masked_fill(~mask, -torch.inf)


def epsilon_greedy(
    values: Tensor,
    epsilon: float | Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    *,
    ties: bool = False,
) -> Tensor:
    """Returns actions [N]: uniform among the legal ones with probability epsilon, else the best legal one.

    Each environment has a coin of its own. With neither exploration nor ties nothing is drawn, so evaluation
    is repeatable.

    Args:
        values: [N, A].
        epsilon: probability of a uniform action; a tensor [N] has one for each environment.
        generator: where coins and actions come from, on the device of `values`.
        mask: [N, A] legal actions; None: all.
        ties: choose uniformly among equally good actions, as a table's many equal entries need, rather than
            the first.
    """
    values = legal_values(values, mask)
    if not isinstance(epsilon, Tensor) and epsilon <= 0 and not ties:
        return values.argmax(1)
    draw = torch.rand(2, *values.shape, generator=generator, device=values.device)  # [2, N, A]
    explores = draw[1, :, 0] < epsilon  # [N]
    if ties:
        allowed = explores[:, None] if mask is None else explores[:, None] & mask
        candidates = (values == values.amax(1, keepdim=True)) | allowed
        return torch.where(candidates, draw[0], -1).argmax(1)
    return torch.where(explores, legal_values(draw[0], mask).argmax(1), values.argmax(1))


def probabilities(values: Tensor, epsilon: float, mask: Tensor | None = None) -> Tensor:
    """Returns the probabilities [N, A] with which `epsilon_greedy` chooses, ties broken at random."""
    values = legal_values(values, mask)
    best = (values == values.amax(1, keepdim=True)).to(values.dtype)
    legal = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    return (1 - epsilon) * best / best.sum(1, keepdim=True) + epsilon * legal / legal.sum(1, keepdim=True)


def boltzmann(
    values: Tensor, temperature: float, generator: torch.Generator, mask: Tensor | None = None
) -> Tensor:
    """Returns actions [N] drawn with probability softmax(values / temperature) over the legal ones.

    The largest of values / temperature + Gumbel noise has these probabilities; the noise is minus the
    logarithm of an exponential draw.

    Args:
        values: [N, A].
        temperature: in units of value.
        generator: where the noise comes from, on the device of `values`.
        mask: [N, A] legal actions; None: all.
    """
    noise = torch.empty_like(values).exponential_(generator=generator).log()
    return (legal_values(values, mask) / temperature - noise).argmax(1)


class Explorer:
    """One way to explore.

    With a ladder, environment i of N has epsilon ** (1 + ladder * i / (N - 1)) (Horgan et al. 2018, section
    4.1, where epsilon is 0.4 and the ladder 7).

    Random actions that are held take an agent to where single ones never do (Dabney et al. 2021, algorithm
    1): epsilon is the probability that one begins where none is held; one that becomes illegal is let go.

    Args:
        config: the way; of a noisy network the best action, since the noise in its values explores.
        ties: as in `epsilon_greedy`.
    """

    def __init__(self, config: Exploration, *, ties: bool = False) -> None:
        self._config, self._ties = config, ties
        self._held: Tensor | None = None  # [2, N] the last random actions, and steps that they still count
        if isinstance(config, EpsilonGreedy) and config.longest > 1:
            odds = (torch.arange(1, config.longest, dtype=torch.float64) ** -2).cumsum(0)
            self._shorter = odds / (odds[-1] + config.longest**-2)  # probability of at most 1, 2, ... steps
        if isinstance(config, NoisyExploration):
            self._schedule = Linear(0.0, 0.0, 0)
        else:
            self._schedule = Linear(config.start, config.end, config.steps)

    def epsilon(self, env_steps: int) -> float:
        """Returns the probability of a uniform action, the largest of all environments: for reports."""
        return self._schedule(env_steps) if isinstance(self._config, EpsilonGreedy) else 0.0

    def choose(
        self, values: Tensor, env_steps: int, generator: torch.Generator, mask: Tensor | None
    ) -> Tensor:
        """Returns actions [N] for values [N, A] after so many env steps."""
        match self._config:
            case EpsilonGreedy(ladder=ladder, longest=longest):
                epsilon: float | Tensor = self._schedule(env_steps)
                if ladder:
                    rung = torch.linspace(0, 1, len(values), device=values.device)
                    epsilon = epsilon ** (1 + ladder * rung)
                if longest > 1:
                    return self._holding(values, epsilon, generator, mask)
                return epsilon_greedy(values, epsilon, generator, mask, ties=self._ties)
            case Boltzmann():
                return boltzmann(values, self._schedule(env_steps), generator, mask)
            case NoisyExploration():
                return legal_values(values, mask).argmax(1)

    def _holding(
        self,
        values: Tensor,
        epsilon: float | Tensor,
        generator: torch.Generator,
        mask: Tensor | None,
    ) -> Tensor:
        """Returns actions [N] as `epsilon_greedy` does, with random ones that are held."""
        values = legal_values(values, mask)
        if self._held is None:
            self._held = torch.zeros(2, len(values), dtype=torch.int64)
        held, left = self._held
        draw = torch.rand(len(values), 2 + values.shape[1], generator=generator)
        starts = (draw[:, 0] < epsilon) & (left == 0)
        length = 1 + torch.searchsorted(self._shorter, draw[:, 1].double())
        left = torch.where(starts, length, left)
        held = torch.where(starts, legal_values(draw[:, 2:], mask).argmax(1), held)
        if mask is not None:
            left = left * mask.gather(1, held[:, None])[:, 0]
        self._held = torch.stack([held, (left - 1).clamp(min=0)])
        return torch.where(left > 0, held, epsilon_greedy(values, 0.0, generator, ties=self._ties))

    def state_dict(self) -> State:
        """Returns which actions are held."""
        return {} if self._held is None else {"held": self._held}

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self._held = state.get("held")
