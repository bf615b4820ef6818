"""CartPole-v1 on Gymnasium's native vector environment, whole or cut into cells for a table."""

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from numpy.typing import NDArray

from rlagents_envs.config import CartPole
from rlagents_envs.spaces import Convert, cells
from rlagents_envs.vector import Bools, Environments, Layout, Leaf, Obs, Outcome, Pending, first_seed

# Half the range that is cut into equal cells: position, velocity, angle, angular velocity. The first and
# third are where an episode ends; the velocities have no bound, and beyond is the outermost cell.
RANGE = (2.4, 3.0, 0.2095, 3.5)


class CartPoleEnvironments(Environments):
    """N carts. Where the pole falls at the time limit, the fall counts: terminated, not truncated."""

    replayable = True
    actions = 2
    action_names = ("left", "right")

    def __init__(self, config: CartPole, *, pictures: bool = False) -> None:
        if config.bins and len(config.bins) != len(RANGE):
            raise ValueError(
                f"env.bins must be {len(RANGE)} numbers of cells (position, velocity, angle, "
                f"angular velocity) or empty, got {list(config.bins)}"
            )
        self.count = config.count
        self.layout: Layout = Leaf("vector", (len(RANGE),), "float32")
        self._convert: Convert = np.ascontiguousarray  # of numbers [N, 4]
        if config.bins:
            self.layout, self._convert = cells(-np.array(RANGE), np.array(RANGE), config.bins)
        self._carts = CartPoleVectorEnv(config.count, max_episode_steps=config.time_limit)
        # The vector environment would draw all N carts, so a single one draws the first.
        self._painter = CartPoleEnv(render_mode="rgb_array") if pictures else None
        self._pending = Pending(config.count, self.actions)

    def reset(self, seed: int) -> tuple[Obs, Bools | None]:
        """Starts all carts from one seed, which they share."""
        self._pending.restart()
        obs, _ = self._carts.reset(seed=first_seed(seed, self.count))
        return self._convert(obs), None

    def send(self, actions: NDArray[np.int64]) -> None:
        """Takes the actions; the step itself happens in `recv`."""
        self._pending.put(actions)

    def recv(self) -> Outcome:
        """Makes the step."""
        obs, reward, terminated, truncated, _ = self._carts.step(self._pending.take())
        ended = terminated | truncated
        return Outcome(
            self._convert(obs), reward.astype(np.float32), terminated, truncated & ~terminated, ended, None
        )

    def picture(self) -> NDArray[np.uint8]:
        """Draws cart 0, 400 x 600."""
        state = self._carts.state
        if self._painter is None or state is None:
            raise RuntimeError("picture needs environments made with pictures=True, and a reset")
        self._painter.state = state[:, 0]
        return np.array(self._painter.render(), dtype=np.uint8)

    def close(self) -> None:
        """Refuses further steps. The painter is left alone: closing it would close every pygame window."""
        self._pending.close()
