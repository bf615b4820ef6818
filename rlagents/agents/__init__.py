"""The agents: one class per learning rule, every variant a field of its table in the configuration."""

from typing import TypeAlias

from rlagents.agents.dqn import DQN
from rlagents.agents.pqn import PQN
from rlagents.agents.q_learning import QLearning
from rlagents.agents.rollout import row_bytes
from rlagents.config import AgentConfig
from rlagents.types import Task

__all__ = ["DQN", "PQN", "AnyAgent", "QLearning", "make", "row_bytes"]

AnyAgent: TypeAlias = DQN | PQN | QLearning
_CLASSES = {"dqn": DQN, "pqn": PQN, "q_learning": QLearning}


def make(config: AgentConfig, task: Task) -> AnyAgent:
    """Builds the agent that an `[agent]` table describes.

    Raises:
        ValueError: the agent cannot learn from such observations.
    """
    return _CLASSES[config.kind](config, task)  # pyright: ignore[reportArgumentType]
