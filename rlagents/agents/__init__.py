"""The agents: one class per learning rule, every variant a field of its table in the configuration."""

from typing import TypeAlias

import torch

from rlagents.agents.dqn import DQN
from rlagents.agents.pqn import PQN
from rlagents.agents.q_learning import QLearning
from rlagents.agents.rollout import row_bytes
from rlagents.config import AgentConfig
from rlagents.seeding import Streams
from rlagents_envs.vector import Layout

__all__ = ["DQN", "PQN", "AnyAgent", "QLearning", "make", "row_bytes"]

AnyAgent: TypeAlias = DQN | PQN | QLearning
_CLASSES = {"dqn": DQN, "pqn": PQN, "q_learning": QLearning}


def make(
    config: AgentConfig,
    layout: Layout,
    actions: int,
    *,
    environments: int,
    env_steps: int,
    streams: Streams,
    device: torch.device,
) -> AnyAgent:
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
    return _CLASSES[config.kind](
        config,  # pyright: ignore[reportArgumentType]
        layout,
        actions,
        environments=environments,
        env_steps=env_steps,
        streams=streams,
        device=device,
    )
