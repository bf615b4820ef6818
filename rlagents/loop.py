"""The one loop: act, send, learn, recv, observe. It owns nothing but this order.

Learning in one tick sees the steps up to the tick before, always, so the result does not depend on how long
the environments take; where there are cores to spare, they step while the agent learns. Counting, logging,
evaluation and checkpoints consume what the generator yields.
"""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlagents.seeding import Streams
from rlagents.types import Agent, Metrics, Obs, State, Step, named
from rlagents.upload import Upload, share
from rlagents_envs.vector import Bools, Environments, Outcome

_COUNTERS = ("resets", "env_steps", "checksum", "length")


class Trail:
    """The way back into the environments: the seed of the last full reset and the actions since.

    An emulator behind a vector interface cannot be saved, but the same seed and actions bring the same games
    back. A running checksum of the observations tells whether they did.

    Args:
        streams: where the seeds of the resets come from.
        environments: N.
        actions: A; an action takes one byte where it fits.
    """

    def __init__(self, streams: Streams, environments: int, actions: int) -> None:
        self._streams = streams
        self.resets = 0
        self.env_steps = 0  # since the last full reset
        self.checksum = 0
        self.length = 0
        self._count, self._dtype = environments, np.dtype(np.uint8 if actions <= 256 else np.int64)
        self._log = bytearray()  # of actions

    @property
    def seed(self) -> int:
        """The seed of the last full reset."""
        return self._streams.integer("environments", self.resets)

    @property
    def actions(self) -> NDArray[np.int64]:
        """The actions since then, [ticks, N]."""
        return self._logged().astype(np.int64)

    def record(self, actions: NDArray[np.int64], outcome: Outcome, env_steps: int) -> None:
        """Takes note of one tick."""
        self._log += actions.astype(self._dtype).tobytes()
        self.length += 1
        self.env_steps += env_steps
        self.checksum = _checksum(outcome, self.checksum)

    def restart(self) -> None:
        """Starts a new trail at the next full reset."""
        self.resets += 1
        self.env_steps = self.checksum = self.length = 0
        self._log.clear()

    def state_dict(self) -> State:
        """Returns the actions and counters."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {"actions": torch.as_tensor(self._logged().copy()), **counters}

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self._log = bytearray(state["actions"].numpy().tobytes())
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _logged(self) -> NDArray[Any]:
        """Returns a view [ticks, N] of the log, which cannot grow while the view is held."""
        return np.frombuffer(self._log, self._dtype).reshape(-1, self._count)


def interact(
    envs: Environments, agent: Agent, trail: Trail, *, reset_every: int
) -> Iterator[tuple[Step, Metrics]]:
    """Lets an agent act in environments and learn, for ever; yields each step and what was learned.

    Every `reset_every` env steps all environments start anew from a fresh seed, to keep the trail short: live
    episodes are truncated there, and one closing row holds their last observations. So they do where an
    environment that can be replayed lost an episode: the same actions would not lose it again.

    Args:
        envs: N environments.
        agent: acts, learns and observes.
        trail: where the environments are; a trail with actions is followed first, without the agent, unless
            the environments cannot be replayed: then their episodes end where they were.
        reset_every: env steps between full resets.

    Raises:
        RuntimeError: the environments did not return to where the trail left them.
    """
    # Where learning takes every core, environments that step meanwhile hold it up for longer than they save.
    spare = agent.device.type != "cpu" or torch.get_num_threads() < (os.cpu_count() or 1)
    upload = share if agent.device.type == "cpu" else Upload(envs.layout, agent.device)
    if trail.length and not envs.replayable:
        trail.restart()
    while True:
        first, final = np.ones(envs.count, np.bool_), np.zeros(envs.count, np.bool_)
        arrays, mask = envs.reset(trail.seed)
        obs = upload(arrays, first)
        checksum = 0
        for action in trail.actions:
            envs.send(action)
            outcome = envs.recv()
            if outcome.lost is not None and outcome.lost.any():
                raise RuntimeError("an environment failed on the way back to where the run was; resume again")
            checksum = _checksum(outcome, checksum)
            first, final = final, outcome.ended
            obs, mask = upload(outcome.obs, first), outcome.mask
        if checksum != trail.checksum:
            raise RuntimeError(
                "the environments must return to where they were from the same seed and actions, and did "
                "not: the environment is not deterministic, or its version or this machine differs"
            )
        while trail.env_steps < reset_every:
            action = agent.act(obs, mask=mask, first=first)
            envs.send(action)
            arrived = None if spare else envs.recv()
            metrics = agent.learn()
            outcome = arrived or envs.recv()
            truncated, lost = outcome.truncated, None
            if outcome.lost is not None and outcome.lost.any():
                # Nothing is known of what the action brought: the last thing that was seen ends the episode.
                lost = outcome.lost & ~final
                final, truncated = final | lost, truncated & ~lost
            trail.record(action, outcome, envs.count - int(np.count_nonzero(final)))
            astray = envs.replayable and lost is not None
            if astray or trail.env_steps >= reset_every:
                truncated = truncated | (~final & ~outcome.ended)
            next_obs = upload(outcome.obs, final)
            step = Step(
                obs=obs,
                action=action,
                reward=outcome.reward,
                terminated=outcome.terminated,
                truncated=truncated,
                next_obs=next_obs,
                first=first,
                final=final,
                mask=mask,
                next_mask=outcome.mask,
                lost=lost,
            )
            agent.observe(step)
            first, final = final, outcome.ended
            obs, mask = next_obs, outcome.mask
            if astray:  # a checkpoint of this step must not hold a trail that leads elsewhere
                agent.observe(_closing(obs, mask, first, envs.count))
                trail.restart()
                yield step, metrics
                break
            yield step, metrics
        else:
            agent.observe(_closing(obs, mask, first, envs.count))
            trail.restart()


def _closing(obs: Obs, mask: Bools | None, first: Bools, count: int) -> Step:
    """Returns a row that holds final observations and starts no transition."""
    no, zeros = np.zeros(count, np.bool_), np.zeros(count, np.float32)
    return Step(obs, zeros.astype(np.int64), zeros, no, no, obs, first, ~no, mask, mask)


def _checksum(outcome: Outcome, checksum: int) -> int:
    for array in named(outcome.obs).values():
        # Of an image its last channel: the newest frame. The others were newest before.
        newest = array[:, -1] if array.ndim > 3 else array
        checksum = zlib.crc32(np.ascontiguousarray(newest).data, checksum)
    return zlib.crc32(outcome.reward.data, checksum)
