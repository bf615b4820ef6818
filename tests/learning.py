"""What tests of agents and of whole runs share: agents from a table, small experiments, runs compared."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

import rlagents
from killing import go_on
from playing import make
from rlagents import agents, training
from rlagents.checkpoint import Checkpoints
from rlagents.config import AgentConfig
from rlagents.loop import Trail, interact
from rlagents.seeding import Streams
from rlagents.types import Task

CPU = torch.device("cpu")
CORRIDOR = {"kind": "corridor", "count": 4, "observation": "onehot"}
CORRIDOR_DQN = {
    "kind": "dqn",
    "learning_rate": 3e-3,
    "learning_rate_end": 1e-4,
    "batch_size": 32,
    "learning_starts": 200,
}
# Experiments but for their agents, with checkpoints so often that a stop comes anywhere between them.
CARTPOLE = {
    "run": {"env_steps": 1500, "evaluate_every": 500, "evaluate_episodes": 4, "checkpoint_every": 75},
    "env": {"kind": "cartpole", "count": 4},
}
PONG = {
    "run": {
        "env_steps": 320,
        "evaluate_every": 160,
        "evaluate_episodes": 2,
        "checkpoint_every": 40,
        "reset_every": 130,
    },
    "env": {"kind": "atari", "game": "pong", "count": 4, "sticky": 0.25, "max_frames": 200},
}


def build(layout, actions, *, environments=4, env_steps=10_000, seed=1, device=CPU, **table):
    """Returns the agent of a table, untrained."""
    config = TypeAdapter(AgentConfig).validate_python(table)
    return agents.make(config, Task(layout, actions, environments, env_steps, Streams(seed), device))


def train(envs, agent, env_steps, seed=1):
    """Lets an agent learn without evaluations and checkpoints; returns it."""
    trail = Trail(Streams(seed), envs.count, envs.actions)
    for _ in interact(envs, agent, trail, reset_every=10**9):
        if agent.env_steps >= env_steps:
            return agent
    raise AssertionError


def learn_corridor(env_steps: int, *, count: int = 4, **table: Any):
    """Trains a network in the corridor, to go right everywhere; returns its Q and the exact one, [5, 2]."""
    envs = make(**{**CORRIDOR, "count": count})
    agent = build(envs.layout, envs.actions, environments=count, env_steps=env_steps, discount=0.9, **table)
    train(envs, agent, env_steps)
    q = agent.q_values(torch.eye(5)).numpy()
    assert (q.argmax(1) == 1).all()
    return q, envs.model.optimal_q(0.9)


def pixels(count=8, seed=0):
    """Returns random stacks of four frames."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8, generator=generator)


def stopped(table, run, step):
    """Trains, or goes on, until a checkpoint has `step` env steps or more; stops as a Ctrl-C would."""
    save = training._Training._save

    def then_stop(self, **how):
        save(self, **how)
        self._signals.caught = self.tracker.env_steps >= step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Training, "_save", then_stop)
        with pytest.raises(KeyboardInterrupt):
            go_on(table, run)
    return run


def outcome(run):
    """Returns everything that a run is judged by, byte for byte."""
    saved = Checkpoints(run).find()
    best = Checkpoints(run).find("best")
    files = {
        f"{kind.step}/{name}": (kind.folder / name).read_bytes()
        for kind in (saved, best)
        for name in kind.manifest["files"]
    }
    rlagents.evaluate(run, episodes=3, json=run / "scores.json")
    return {
        "metrics": (run / "metrics.jsonl").read_bytes(),
        "scores": (run / "scores.json").read_bytes(),
        **files,
    }


def assert_same(one, other):
    """What `outcome` returned of two runs is the same to the last byte."""
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if other[name] != value] == []
