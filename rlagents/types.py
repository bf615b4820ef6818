"""The types that everything passes through, and the glossary of shape letters.

N environments, B batch, T ring rows, K stacked frames, A actions, Z numbers per action, O observation.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlagents.seeding import Streams
from rlagents_envs.vector import Bools, Layout

Obs: TypeAlias = Tensor | dict[str, Tensor]
Metrics: TypeAlias = Mapping[str, Tensor]
Part = TypeVar("Part")
State: TypeAlias = dict[str, Any]  # nested dictionaries of tensors, numbers, strings and lists of these


def each(function: Callable[..., Any], *obs: Any) -> Any:
    """Applies a function to an observation, or to each entry of a dictionary of them."""
    if isinstance(obs[0], dict):
        names: list[str] = list(obs[0])  # pyright: ignore[reportUnknownArgumentType]
        return {name: function(*(o[name] for o in obs)) for name in names}
    return function(*obs)


def named(value: Part | dict[str, Part]) -> dict[str, Part]:
    """Returns the parts of an observation or of a layout by their names; that of one alone is ""."""
    return cast("dict[str, Part]", value) if isinstance(value, dict) else {"": value}


def joined(parts: dict[str, Part]) -> Part | dict[str, Part]:
    """Returns what `named` was given."""
    return parts.get("", parts)


class Step(NamedTuple):
    """One step of N environments.

    `obs` and `next_obs` are tensors on the agent's device; everything else is arrays of the host, where the
    environments are and the loop counts.
    """

    obs: Obs  # [N, *O]
    action: NDArray[np.int64]  # [N]
    reward: NDArray[np.float32]  # [N] as the environment paid it
    terminated: Bools  # [N] nothing follows
    truncated: Bools  # [N] something follows that nobody saw
    next_obs: Obs  # [N, *O] the true successor; a reset observation only where `final`
    first: Bools  # [N] obs opens an episode
    final: Bools  # [N] obs closed one; the action was ignored, this is not a transition
    mask: Bools | None = None  # [N, A] legal actions in obs; None: all
    next_mask: Bools | None = None  # [N, A] legal actions in next_obs; None: all
    lost: Bools | None = None  # [N] `final` only because what followed got lost; None: nowhere


class Batch(NamedTuple):
    """B n-step transitions, with H returns each: all B of the first horizon, then all of the next."""

    obs: Obs  # [B, *O]
    action: Tensor  # [B] int64
    reward: Tensor  # [H * B] float32: discounted sum of up to n rewards
    discount: Tensor  # [H * B] float32: what multiplies the bootstrap; 0 after a termination
    next_obs: Obs  # [H * B, *O]
    row: Tensor  # [B] int64: where in the replay, for priorities
    weight: Tensor  # [B] float32: importance weight, at most 1; 1 where sampling is uniform
    mask: Tensor | None = None  # [H * B, A] bool: legal actions in next_obs; None: all
    obs_mask: Tensor | None = None  # [B, A] bool: legal actions in obs; None: all


class Task(NamedTuple):
    """What an agent has to know of its environments, its run and where it computes."""

    layout: Layout  # what an observation is made of
    actions: int  # A
    environments: int  # N
    env_steps: int  # the budget, for what changes over the whole of it
    streams: Streams  # random streams of the run
    device: torch.device


class Player(Protocol):
    """What an evaluation knows of who plays."""

    device: torch.device

    def act(
        self,
        obs: Obs,
        *,
        mask: Bools | None = None,
        first: Bools | None = None,
        epsilon: float | None = None,
        generator: torch.Generator | None = None,
    ) -> NDArray[np.int64]:
        """Returns actions [N] for all N environments in one batch.

        `obs` lies on the player's device, everything else on the host: actions, mask [N, A], first [N] and
        the generator.

        `epsilon` None is an agent's own exploration, 0 is greedy. `first` resets the memory of agents that
        have one. Random draws come from `generator`, or else from the agent's own exploration stream; greedy
        choice draws nothing.
        """
        ...

    def q_values(self, obs: Obs) -> Tensor:
        """Returns the values of every action, [N, A] float32, on the CPU."""
        ...


class Agent(Player, Protocol):
    """What the loop knows of an agent; a checkpoint knows its state."""

    def observe(self, step: Step) -> None:
        """Stores one step."""
        ...

    def learn(self) -> Metrics:
        """Does as many updates as the steps seen so far have made due; 0-d tensors, not waited for."""
        ...
