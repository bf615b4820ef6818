"""An experiment of ours in SB3's DQN (Raffin et al. 2021), with the wrappers of rl-baselines3-zoo."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import click

from rlagents.config import DQN, EpsilonGreedy, Experiment, FixedTarget
from rlagents.errors import UsageError
from rlagents.peers import SB3, Store, plain
from rlagents_envs.config import Atari, CartPole

if TYPE_CHECKING:
    import stable_baselines3
    import torch
    from stable_baselines3.common.vec_env import VecEnv

    from rlagents.timing import Plan, Row
    from rlagents.types import Step
    from rlagents_envs.vector import Environments

_HANDED_OVER = plain.HANDED_OVER | {"agent.learning_rate_end"}
_SHARE = 0.8  # of the machine's memory that a replay may take
_SMALLEST = 36  # rows of pixels that the Nature CNN can look at


def require(experiment: Experiment) -> tuple[DQN, FixedTarget]:
    """Returns agent and target of an experiment that SB3's DQN can do as it stands.

    Raises:
        UsageError: it cannot, or is not installed: one line for each field.
    """
    agent, target = plain.require(experiment, SB3, _HANDED_OVER, _else_wrong)
    if agent.n_step > 1 and not fits(experiment, copies=2):
        raise UsageError(
            f"agent.n_step must be 1 in {SB3.name} where its replay takes more than {_SHARE:.0%} of the "
            f"memory, got {agent.n_step}; or lower agent.replay.capacity, got {agent.replay.capacity}"
        )
    return agent, target


def _else_wrong(agent: DQN, env: Atari | CartPole) -> Iterator[plain.Wrong]:
    target = agent.target
    if isinstance(target, FixedTarget) and target.sync_every % env.count:
        yield "agent.target.sync_every", f"a multiple of env.count, {env.count},", target.sync_every
    if isinstance(env, Atari) and (env.height != env.width or env.height < _SMALLEST):
        yield "env.height", f"env.width, and {_SMALLEST} or more,", f"{env.height} for {env.width}"


def environments(experiment: Experiment, count: int, seed: int) -> "VecEnv":
    """Makes the environments as SB3 does: in this process, one after the other."""
    from stable_baselines3.common import atari_wrappers, env_util
    from stable_baselines3.common.vec_env import VecFrameStack

    env, agent = experiment.env, experiment.agent
    sign = isinstance(agent, DQN) and agent.reward_transform == "sign"
    if isinstance(env, Atari):
        name, arguments = plain.emulator(env)
        return VecFrameStack(
            env_util.make_atari_env(
                name,
                n_envs=count,
                seed=seed,
                env_kwargs=arguments,
                wrapper_kwargs={
                    "noop_max": env.noop_max,
                    "frame_skip": env.frame_skip,
                    "screen_size": env.height,
                    "terminal_on_life_loss": env.terminal_on_life_loss,
                    "clip_reward": sign,
                },
            ),
            n_stack=env.frame_stack,
        )
    return env_util.make_vec_env(
        "CartPole-v1",
        n_envs=count,
        seed=seed,
        env_kwargs={"max_episode_steps": getattr(env, "time_limit", None)},
        wrapper_class=atari_wrappers.ClipRewardEnv if sign else None,
    )


def build(experiment: Experiment) -> "stable_baselines3.DQN":
    """Returns SB3's DQN with the hyper-parameters of an experiment.

    It has its replay as it comes, or the smaller one where the other does not fit into memory: that one knows
    no returns of several steps.

    Raises:
        UsageError: they cannot be had in it.
    """
    agent, target = require(experiment)
    explore = cast("EpsilonGreedy", agent.exploration)  # nothing else passes
    import stable_baselines3

    run, count = experiment.run, experiment.env.count
    optimize_memory = not fits(experiment, copies=2)
    pixels = isinstance(experiment.env, Atari)
    hidden = agent.network.hidden or ((512,) if pixels else (128, 128))
    network = {"features_extractor_kwargs": {"features_dim": hidden[0]}} if pixels else {}
    start, end = agent.learning_rate, agent.final_learning_rate
    period = plain.period(experiment, agent)
    return stable_baselines3.DQN(
        "CnnPolicy" if pixels else "MlpPolicy",
        environments(experiment, count, run.seed),
        learning_rate=start if start == end else lambda left: end + (start - end) * left,
        buffer_size=agent.replay.capacity,
        learning_starts=agent.learning_starts,
        batch_size=agent.batch_size,
        gamma=agent.discount,
        n_steps=agent.n_step,
        train_freq=period // count,  # counted in ticks of all environments
        gradient_steps=period // agent.learn_every,
        optimize_memory_usage=optimize_memory,
        replay_buffer_kwargs={"handle_timeout_termination": False} if optimize_memory else None,
        target_update_interval=target.sync_every,
        exploration_initial_eps=explore.start,
        exploration_final_eps=explore.end,
        exploration_fraction=max(1, explore.steps) / run.env_steps,
        max_grad_norm=agent.gradient_clip or math.inf,
        policy_kwargs={
            **network,
            "net_arch": list(hidden[1:] if pixels else hidden),
            "optimizer_kwargs": {"eps": agent.adam_epsilon},
        },
        seed=run.seed,
        device=run.device,
    )


def fits(experiment: Experiment, copies: int) -> bool:
    """Returns whether so many copies of all stacked observations fit into the memory of the machine."""
    from rlagents import machine

    env = experiment.env
    size = env.frame_stack * env.height * env.width if isinstance(env, Atari) else 0
    return copies * size * experiment.timesteps_kept < _SHARE * machine.memory()


def stores(
    experiment: Experiment, envs: "Environments", steps: "Sequence[Step]", on: "torch.device"
) -> dict[str, Store]:
    """Returns SB3's two replays for our observations; none where an observation is not a single array.

    The first one makes returns of as many steps as ours; the smaller one knows none but of one.

    Raises:
        UsageError: they do not fit into memory.
    """
    import numpy as np
    from gymnasium import spaces
    from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
    from torch import Tensor

    leaf, capacity = envs.layout, experiment.timesteps_kept
    if isinstance(leaf, dict) or leaf.kind == "index":
        return {}
    if not fits(experiment, copies=3):
        raise UsageError(
            f"agent.replay.capacity must fit into memory three times for {SB3.name}, got {capacity}"
        )
    low, high = (0, 255) if leaf.dtype == "uint8" else (-np.inf, np.inf)
    rows: list[tuple[Any, ...]] = []
    for step in steps:
        obs, next_obs = (
            np.asarray(seen.cpu()) for seen in (step.obs, step.next_obs) if isinstance(seen, Tensor)
        )
        infos = [{"TimeLimit.truncated": bool(each)} for each in step.truncated]
        done = step.terminated | step.truncated
        rows.append((obs, next_obs, step.action, step.reward, done, infos))
    ahead: int = getattr(experiment.agent, "n_step", 1)
    several = partial(NStepReplayBuffer, n_steps=ahead, gamma=experiment.agent.discount)
    found: dict[str, Store] = {}
    for name, optimize in ((SB3.name, False), (f"{SB3.name} optimised", True)):
        make = ReplayBuffer if optimize or ahead == 1 else several
        buffer = make(
            capacity,
            spaces.Box(low, high, leaf.shape, np.dtype(leaf.dtype)),
            spaces.Discrete(envs.actions),
            on,
            n_envs=envs.count,
            optimize_memory_usage=optimize,
            handle_timeout_termination=not optimize,  # it cannot do both
        )
        found[name] = Store(buffer.add, rows, buffer.sample, _nbytes(buffer))
    return found


def _nbytes(buffer: object) -> int:
    """Returns the bytes of a replay's arrays."""
    return sum(getattr(array, "nbytes", 0) for array in vars(buffer).values())


def measure(experiment: Experiment, plan: "Plan") -> "tuple[list[Row], list[str]]":
    """Times SB3's training loop once it learns; returns rows and notes."""
    from rlagents.timing import Row

    model, pieces = build(experiment), plain.Pieces(plan)

    def watch(*_: object) -> bool:
        updates = model._n_updates  # pyright: ignore[reportPrivateUsage]
        return pieces.more(int(model.num_timesteps), updates)  # pyright: ignore[reportUnknownArgumentType]

    model.learn(experiment.run.env_steps, callback=watch)
    size = _nbytes(model.replay_buffer) / 1e6
    note = f"replay {'optimised for memory' if model.optimize_memory_usage else 'as it comes'}"
    return [*pieces.rows(SB3.name), Row(SB3.name, "MB of full replay", (size,))], [note]


def train(experiment: Experiment) -> None:
    """Trains and evaluates greedily as often as ours does, and prints the same lines."""
    from stable_baselines3.common import evaluation

    from rlagents.report.console import evaluation_line
    from rlagents.schedules import Every

    run, count = experiment.run, experiment.env.count
    evaluate = cast("Callable[..., tuple[float, float]]", evaluation.evaluate_policy)
    every = Every(run.evaluate_every or run.env_steps)
    model = build(experiment)
    envs = environments(experiment, min(run.evaluate_episodes, plain.EVALUATED), run.seed + 1_000_000)

    def watch(*_: object) -> bool:
        after = int(model.num_timesteps)  # pyright: ignore[reportUnknownArgumentType]
        if every.due(after - count, after):
            mean, _deviation = evaluate(model, envs, run.evaluate_episodes)
            click.echo(evaluation_line(after, {"evaluate/return_mean": mean}))
        return True

    model.learn(run.env_steps, callback=watch)


main = plain.command(SB3, measure, train)

if __name__ == "__main__":
    main()
