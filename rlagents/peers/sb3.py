"""An experiment of ours in Stable-Baselines3's DQN (Raffin et al. 2021): exactly, or not at all.

The one idea: a comparison is worth what its slower side is worth. So SB3 gets its own environments, wrappers
and defaults, as rl-baselines3-zoo uses them, and a process of its own, `python -m rlagents.peers.sb3`, in
which nothing is set that its users do not have. What remains different is named in `docs/performance.md`.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

import rlagents
from rlagents import experiments, toml
from rlagents.config import DQN, EpsilonGreedy, Experiment, FixedTarget
from rlagents.errors import UsageError
from rlagents.peers import MISSING, SB3, SB3_PACKAGE, Store, installed
from rlagents_envs.config import Atari, CartPole, Model

if TYPE_CHECKING:
    import stable_baselines3
    import torch
    from stable_baselines3.common.vec_env import VecEnv

    from rlagents.timing import Plan, Row
    from rlagents.types import Step
    from rlagents_envs.vector import Environments

_HANDED_OVER = {  # of these, SB3 has no precision but float32, and no emulator threads
    "agent.discount", "agent.batch_size", "agent.learn_every", "agent.learning_starts", "agent.learning_rate",
    "agent.learning_rate_end", "agent.adam_epsilon", "agent.gradient_clip", "agent.reward_transform",
    "agent.exploration.start", "agent.exploration.end", "agent.exploration.steps", "agent.replay.capacity",
    "agent.target.sync_every", "agent.network.body", "agent.network.hidden", "agent.precision",
    "env.count", "env.game", "env.frame_stack", "env.frame_skip", "env.height", "env.width", "env.noop_max",
    "env.sticky", "env.max_frames", "env.terminal_on_life_loss", "env.full_action_space", "env.time_limit",
    "env.threads",
}  # fmt: skip
_SHARE = 0.8  # of the machine's memory that a replay may take
_SMALLEST = 36  # rows of pixels that the Nature CNN can look at
_ENDLESS = 10**9  # env steps
_EVALUATED = 8  # environments of an evaluation


def require(experiment: Experiment) -> tuple[DQN, FixedTarget]:
    """Returns agent and target of an experiment that SB3's DQN can do as it stands.

    Whatever is not handed over has to be as plain DQN has it, which is each field's default: so a variant
    that is new here is refused until somebody hands it over.

    Raises:
        UsageError: it cannot, or is not installed: one line for each field.
    """
    if not installed():
        raise UsageError(MISSING)
    agent, env = experiment.agent, experiment.env
    if not isinstance(agent, DQN):
        raise UsageError(f"agent.kind must be dqn in {SB3}, got {agent.kind}")
    if not isinstance(env, Atari | CartPole):
        raise UsageError(f"env.kind must be atari or cartpole in {SB3}, got {env.kind}")
    wrong = [*_departures(agent, "agent"), *_departures(env, "env")]
    bodies, body = ("auto", "nature_cnn" if isinstance(env, Atari) else "mlp"), agent.network.body
    if body not in bodies:
        wrong.append(("agent.network.body", " or ".join(bodies), body))
    target = agent.target
    if isinstance(target, FixedTarget) and target.sync_every % env.count:
        wrong.append(("agent.target.sync_every", f"a multiple of env.count, {env.count},", target.sync_every))
    if isinstance(env, Atari) and (env.height != env.width or env.height < _SMALLEST):
        wrong.append(("env.height", f"env.width, and {_SMALLEST} or more,", f"{env.height} for {env.width}"))
    if wrong or not isinstance(target, FixedTarget):
        raise UsageError("\n".join(f"{key} must be {must} in {SB3}, got {got}" for key, must, got in wrong))
    return agent, target


def _departures(table: Model, path: str) -> Iterator[tuple[str, object, object]]:
    """Yields key, default and value of what is neither handed over nor at its default."""
    for name, field in type(table).model_fields.items():
        key, value, default = f"{path}.{name}", getattr(table, name), field.default
        if isinstance(value, Model):
            if type(value) is not type(default):
                yield f"{key}.kind", getattr(default, "kind", None), getattr(value, "kind", None)
            else:
                yield from _departures(value, key)
        elif key not in _HANDED_OVER and value != default:
            yield key, _text(default), _text(value)


def _text(value: object) -> str:
    """Returns a value as TOML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def environments(experiment: Experiment, count: int, seed: int) -> "VecEnv":
    """Makes the environments as SB3 does: in this process, one after the other."""
    from stable_baselines3.common import atari_wrappers, env_util
    from stable_baselines3.common.vec_env import VecFrameStack

    env, agent = experiment.env, experiment.agent
    sign = isinstance(agent, DQN) and agent.reward_transform == "sign"
    if isinstance(env, Atari):
        import ale_py
        import gymnasium
        from ale_py.registration import rom_id_to_name

        gymnasium.register_envs(ale_py)
        return VecFrameStack(
            env_util.make_atari_env(
                f"ALE/{rom_id_to_name(env.game)}-v5",
                n_envs=count,
                seed=seed,
                env_kwargs={
                    "frameskip": 1,  # the wrapper skips
                    "repeat_action_probability": env.sticky,
                    "full_action_space": env.full_action_space,
                    "max_num_frames_per_episode": env.max_frames,
                },
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


def build(experiment: Experiment, *, optimize_memory: bool = False) -> "stable_baselines3.DQN":
    """Returns SB3's DQN with the hyper-parameters of an experiment.

    It has its replay as it comes, unless the smaller one is asked for or the other does not fit into memory.

    Raises:
        UsageError: they cannot be had in it.
    """
    agent, target = require(experiment)
    explore = cast("EpsilonGreedy", agent.exploration)  # nothing else passes
    import stable_baselines3

    run, count = experiment.run, experiment.env.count
    optimize_memory = optimize_memory or not fits(experiment, copies=2)
    pixels = isinstance(experiment.env, Atari)
    hidden = agent.network.hidden or ((512,) if pixels else (128, 128))
    network = {"features_extractor_kwargs": {"features_dim": hidden[0]}} if pixels else {}
    start, end = agent.learning_rate, agent.final_learning_rate
    period = math.lcm(count, agent.learn_every)  # env steps after which learner steps and ticks come out even
    return stable_baselines3.DQN(
        "CnnPolicy" if pixels else "MlpPolicy",
        environments(experiment, count, run.seed),
        learning_rate=start if start == end else lambda left: end + (start - end) * left,
        buffer_size=agent.replay.capacity,
        learning_starts=agent.learning_starts,
        batch_size=agent.batch_size,
        gamma=agent.discount,
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

    Raises:
        UsageError: they do not fit into memory.
    """
    import numpy as np
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer
    from torch import Tensor

    leaf, capacity = envs.layout, experiment.timesteps_kept
    if isinstance(leaf, dict) or leaf.kind == "index":
        return {}
    if not fits(experiment, copies=3):
        raise UsageError(f"agent.replay.capacity must fit into memory three times for {SB3}, got {capacity}")
    low, high = (0, 255) if leaf.dtype == "uint8" else (-np.inf, np.inf)
    rows: list[tuple[Any, ...]] = []
    for step in steps:
        cut = step.truncated.numpy()
        obs, next_obs = (
            np.asarray(seen.cpu()) for seen in (step.obs, step.next_obs) if isinstance(seen, Tensor)
        )
        infos = [{"TimeLimit.truncated": bool(each)} for each in cut]
        done = step.terminated.numpy() | cut
        rows.append((obs, next_obs, step.action.numpy(), step.reward.numpy(), done, infos))
    found: dict[str, Store] = {}
    for name, optimize in ((SB3, False), (f"{SB3} optimised", True)):
        buffer = ReplayBuffer(
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


def measure(model: "stable_baselines3.DQN", plan: "Plan") -> "list[Row]":
    """Times SB3's training loop once it learns, as `bench train` times ours."""
    from rlagents.timing import Row

    marks: list[tuple[float, int, int]] = []  # seconds, env steps and updates at the ends of pieces

    def watch(*_: object) -> bool:
        if updates := _updates(model):
            now = time.perf_counter()
            piece = plan.seconds / 4 if len(marks) == 1 else plan.seconds  # the first does not count
            if not marks or now - marks[-1][0] >= piece:
                marks.append((now, model.num_timesteps, updates))
        return len(marks) < plan.repeat + 2

    model.learn(_ENDLESS, callback=watch)
    pieces = [
        tuple(new - old for new, old in zip(after, before, strict=True))
        for before, after in pairwise(marks[1:])
    ]
    size = _nbytes(model.replay_buffer) / 1e6
    return [
        Row(SB3, "env steps/s", tuple(steps / seconds for seconds, steps, _ in pieces)),
        Row(SB3, "updates/s", tuple(updates / seconds for seconds, _, updates in pieces)),
        Row(SB3, "MB of full replay", (size,)),
    ]


def _updates(model: "stable_baselines3.DQN") -> int:
    return model._n_updates  # pyright: ignore[reportPrivateUsage]


def train(model: "stable_baselines3.DQN", experiment: Experiment) -> None:
    """Trains and evaluates greedily as often as ours does, and prints the same lines."""
    from stable_baselines3.common import evaluation

    from rlagents.report.console import evaluation_line
    from rlagents.schedules import Every

    run, count = experiment.run, experiment.env.count
    evaluate = cast("Callable[..., tuple[float, float]]", evaluation.evaluate_policy)
    every = Every(run.evaluate_every or run.env_steps)
    envs = environments(experiment, min(run.evaluate_episodes, _EVALUATED), run.seed + 1_000_000)

    def watch(*_: object) -> bool:
        after = int(model.num_timesteps)  # pyright: ignore[reportUnknownArgumentType]
        if every.due(after - count, after):
            mean, _deviation = evaluate(model, envs, run.evaluate_episodes)
            click.echo(evaluation_line(after, {"evaluate/return_mean": mean}))
        return True

    model.learn(run.env_steps, callback=watch)


@click.command()
@click.argument("experiment")
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--train", "whole", is_flag=True, help="Train and evaluate, instead of timing.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Pieces timed.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Length of a piece.")
@click.option(
    "--optimize-memory", is_flag=True, help="SB3's smaller replay; also where the other does not fit."
)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write it here.")
def main(
    experiment: str,
    settings: tuple[str, ...],
    whole: bool,
    repeat: int,
    seconds: float,
    optimize_memory: bool,
    file: Path | None,
) -> None:
    """Run EXPERIMENT through Stable-Baselines3's DQN, with settings such as agent.learning_rate=1e-4."""
    if os.environ.get("GOMP_SPINCOUNT") == rlagents.SPIN_COUNT:
        del os.environ["GOMP_SPINCOUNT"]  # before torch comes: threads wait as they do for SB3's users
    from rlagents import machine, runs
    from rlagents.bench import lasting
    from rlagents.timing import Plan, Report

    try:
        plan = Plan(experiments.find(experiment), settings, repeat, seconds)
        if whole:
            loaded = plan.experiment()
            train(build(loaded, optimize_memory=optimize_memory), loaded)
            return
        loaded = lasting(plan)
        endless = toml.load(loaded, [f"run.env_steps={_ENDLESS}"])
        model = build(endless, optimize_memory=optimize_memory)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    rows, on = measure(model, plan), runs.choose_device(loaded.run.device)
    notes = [f"replay {'optimised for memory' if model.optimize_memory_usage else 'as it comes'}"]
    versions = machine.versions(SB3_PACKAGE)
    report = Report("peers.sb3", plan, loaded, machine.describe(on), versions, rows, notes)
    report.show()
    if file:
        report.write(file)


if __name__ == "__main__":
    main()
