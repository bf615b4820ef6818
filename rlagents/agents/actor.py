"""What all agents have in common: how they act, what they count, and the random streams they draw from."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlagents.agents import exploration
from rlagents.config import Exploration
from rlagents.types import Obs, State, Step, Task
from rlagents_envs.vector import Bools


class Actor:
    """Acts by values, which a subclass knows and learns.

    Args:
        config: how to explore.
        task: what it is built for.
        ties: whether equally good actions are drawn from; else the first of them is taken.
    """

    _counters: ClassVar[Sequence[str]] = ("env_steps", "learner_steps")

    def __init__(self, config: Exploration, task: Task, *, ties: bool = False) -> None:
        self.actions, self.device = task.actions, task.device
        self.env_steps: int = 0
        self.learner_steps: int = 0
        self._ties, self._explorer = ties, exploration.Explorer(config, ties=ties)
        self._notes_exploring = False
        self._explored: Bools | None = None  # [N] whether the newest actions were not greedy, if noted
        # And, by the subclass, what learner steps draw from.
        self._random: dict[str, torch.Generator] = {
            "exploration": task.streams.torch("exploration", torch.device("cpu"))
        }

    @property
    def epsilon(self) -> float:
        """Probability of a uniform action at present."""
        return self._explorer.epsilon(self.env_steps)

    def act(
        self,
        obs: Obs,
        *,
        mask: Bools | None = None,
        first: Bools | None = None,
        epsilon: float | None = None,
        generator: torch.Generator | None = None,
    ) -> NDArray[np.int64]:
        """Returns actions [N]; see `Player`."""
        generator = generator or self._random["exploration"]
        legal = None if mask is None else torch.as_tensor(mask)
        if epsilon is not None:
            values, ties = self._values_of(obs), self._ties and epsilon > 0
            return exploration.epsilon_greedy(values, epsilon, generator, legal, ties=ties).numpy()
        values = self._values_to_explore(obs, legal, first, generator)
        action = self._explorer.choose(values, self.env_steps, generator, legal)
        if self._notes_exploring:
            self._explored = (action != exploration.legal_values(values, legal).argmax(1)).numpy()
        return action.numpy()

    def q_values(self, obs: Obs) -> Tensor:
        """Returns the values of every action for observations [N, *O], as [N, A] float32 on the CPU."""
        return self._values_of(obs).float()

    def _values_of(self, obs: Obs) -> Tensor:
        """Returns the values [N, A] that evaluations go by."""
        raise NotImplementedError

    def _values_to_explore(
        self, obs: Obs, mask: Tensor | None, first: Bools | None, generator: torch.Generator
    ) -> Tensor:
        """Returns the values [N, A] that the agent's own exploration chooses by."""
        return self._values_of(obs)

    def observe(self, step: Step) -> None:
        """Counts one step; who learns stores it."""
        self.env_steps += len(step.final) - int(np.count_nonzero(step.final))

    def suspect(self) -> tuple[int, Any] | None:
        """Returns the first learner step that led to no number, with its batch, a named tuple; None: none."""
        return None

    def state_dict(self) -> State:
        """Returns counters and random streams."""
        return {
            "counters": {name: getattr(self, name) for name in self._counters},
            "random": {name: generator.get_state() for name, generator in self._random.items()},
            "exploration": self._explorer.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        for name in self._counters:
            setattr(self, name, state["counters"][name])
        for name, generator in self._random.items():
            saved = state["random"].get(name)
            # A stream that came later, or went on another kind of device, starts anew.
            if saved is not None and len(saved) == len(generator.get_state()):
                generator.set_state(saved.cpu())
        self._explorer.load_state_dict(state.get("exploration", {}))
