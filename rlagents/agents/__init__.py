"""The agents: one class per learning rule, every variant a field of its table in the configuration."""

import torch

from rlagents.agents.dqn import DQN
from rlagents.agents.q_learning import QLearning
from rlagents.config import DQN as DQNConfig
from rlagents.config import AgentConfig
from rlagents.seeding import Streams
from rlagents_envs.vector import Layout

__all__ = ["DQN", "QLearning", "make"]


def make(
    config: AgentConfig,
    layout: Layout,
    actions: int,
    *,
    environments: int,
    env_steps: int,
    streams: Streams,
    device: torch.device,
) -> DQN | QLearning:
    """Builds the agent of an experiment.

    Args:
        config: the `[agent]` table.
        layout: what an observation is made of.
        actions: A.
        environments: N.
        env_steps: the budget, for what changes over the whole of it.
        streams: random streams of the run.
        device: where the agent computes.

    Raises:
        ValueError: the agent cannot learn from such observations.
    """
    kind = DQN if isinstance(config, DQNConfig) else QLearning
    return kind(
        config,  # pyright: ignore[reportArgumentType]
        layout,
        actions,
        environments=environments,
        env_steps=env_steps,
        streams=streams,
        device=device,
    )
