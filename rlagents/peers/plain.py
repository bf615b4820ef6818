"""What another library's plain DQN takes over of an experiment, and how a process times it.

The one idea: a comparison is worth what its slower side is worth. So a peer gets its own environments,
wrappers and defaults, as its users have them, and a process of its own, `python -m rlagents.peers.sb3`, in
which nothing is set that they do not have. What remains different is named in `docs/performance.md`.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Set
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import rlagents
from rlagents import experiments, toml
from rlagents.config import DQN, Experiment, FixedTarget
from rlagents.errors import UsageError
from rlagents.peers import Peer
from rlagents_envs.config import Atari, CartPole, Model

if TYPE_CHECKING:
    from rlagents.timing import Plan, Row

# Of these, both have no precision but float32, and no emulator threads.
HANDED_OVER = frozenset({
    "agent.discount", "agent.n_step", "agent.batch_size", "agent.learn_every", "agent.learning_starts",
    "agent.learning_rate", "agent.adam_epsilon", "agent.gradient_clip", "agent.reward_transform",
    "agent.exploration.start", "agent.exploration.end", "agent.exploration.steps", "agent.replay.capacity",
    "agent.target.sync_every", "agent.network.body", "agent.network.hidden", "agent.precision", "env.count",
    "env.game", "env.frame_stack", "env.sticky", "env.max_frames", "env.terminal_on_life_loss",
    "env.full_action_space", "env.time_limit", "env.threads", "env.frame_skip", "env.height", "env.width",
    "env.noop_max",
})  # fmt: skip
EVALUATED = 8  # environments of an evaluation
_ENDLESS = 10**9  # env steps


Wrong = tuple[str, object, object]  # a key, what it must be and what it is


def require(
    experiment: Experiment,
    peer: Peer,
    handed_over: Set[str],
    also: Callable[[DQN, Atari | CartPole], Iterator[Wrong]],
) -> tuple[DQN, FixedTarget]:
    """Returns agent and target of an experiment that a peer's DQN can do as it stands.

    Whatever is not handed over has to be as plain DQN has it, which is each field's default: so a variant
    that is new here is refused until somebody hands it over.

    Args:
        experiment: what to do.
        peer: in what.
        handed_over: keys that the peer takes, whatever they are.
        also: yields what else is wrong.

    Raises:
        UsageError: it cannot, or is not installed: one line for each field.
    """
    if not peer.installed:
        raise UsageError(peer.missing)
    agent, env = experiment.agent, experiment.env
    if not isinstance(agent, DQN):
        raise UsageError(f"agent.kind must be dqn in {peer.name}, got {agent.kind}")
    if not isinstance(env, Atari | CartPole):
        raise UsageError(f"env.kind must be atari or cartpole in {peer.name}, got {env.kind}")
    wrong = [*_departures(agent, "agent", handed_over), *_departures(env, "env", handed_over)]
    bodies, body = ("auto", "nature_cnn" if isinstance(env, Atari) else "mlp"), agent.network.body
    if body not in bodies:
        wrong.append(("agent.network.body", " or ".join(bodies), body))
    wrong += also(agent, env)
    if wrong or not isinstance(agent.target, FixedTarget):
        lines = (f"{key} must be {must} in {peer.name}, got {got}" for key, must, got in wrong)
        raise UsageError("\n".join(lines))
    return agent, agent.target


def emulator(env: Atari) -> tuple[str, dict[str, Any]]:
    """Returns Gymnasium's id and arguments of a game whose frames a wrapper skips."""
    import ale_py
    import gymnasium
    from ale_py.registration import rom_id_to_name

    gymnasium.register_envs(ale_py)
    return f"ALE/{rom_id_to_name(env.game)}-v5", {
        "frameskip": 1,  # the wrapper skips
        "repeat_action_probability": env.sticky,
        "full_action_space": env.full_action_space,
        "max_num_frames_per_episode": env.max_frames,
    }


def period(experiment: Experiment, agent: DQN) -> int:
    """Returns the env steps after which learner steps and ticks of all environments come out even."""
    return math.lcm(experiment.env.count, agent.learn_every)


def _departures(table: Model, path: str, handed_over: Set[str]) -> Iterator[Wrong]:
    """Yields key, default and value of what is neither handed over nor at its default."""
    for name, field in type(table).model_fields.items():
        key, value, default = f"{path}.{name}", getattr(table, name), field.default
        if isinstance(value, Model):
            if type(value) is not type(default):
                yield f"{key}.kind", getattr(default, "kind", None), getattr(value, "kind", None)
            else:
                yield from _departures(value, key, handed_over)
        elif key not in handed_over and value != default:
            yield key, _text(default), _text(value)


def _text(value: object) -> str:
    """Returns a value as TOML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Pieces:
    """Cuts the training of a peer into pieces, once it learns, as `bench train` does ours."""

    def __init__(self, plan: "Plan") -> None:
        self._plan = plan
        self._marks: list[tuple[float, int, int]] = []  # seconds, env steps, learner steps at their ends

    def more(self, env_steps: int, updates: int) -> bool:
        """Takes note of how far it is; returns whether pieces are missing."""
        marks, plan = self._marks, self._plan
        if updates:
            now = time.perf_counter()
            piece = plan.seconds / 4 if len(marks) == 1 else plan.seconds  # the first does not count
            if not marks or now - marks[-1][0] >= piece:
                marks.append((now, env_steps, updates))
        return len(marks) < plan.repeat + 2

    def rows(self, name: str) -> "list[Row]":
        """Returns what was timed."""
        from rlagents.timing import Row

        pieces = [
            tuple(new - old for new, old in zip(after, before, strict=True))
            for before, after in pairwise(self._marks[1:])
        ]
        return [
            Row(name, "env steps/s", tuple(steps / seconds for seconds, steps, _ in pieces)),
            Row(name, "updates/s", tuple(updates / seconds for seconds, _, updates in pieces)),
        ]


def command(
    peer: Peer,
    measure: "Callable[[Experiment, Plan], tuple[list[Row], list[str]]]",
    train: Callable[[Experiment], None],
) -> click.Command:
    """Returns the command line of a peer's process.

    Args:
        peer: whose.
        measure: times its loop on an experiment that never ends; returns rows and notes.
        train: trains and evaluates greedily as often as ours does, and prints the same lines.
    """

    @click.command(
        help=f"Run EXPERIMENT through {peer.name}'s DQN, with settings such as agent.learning_rate=1e-4."
    )
    @click.argument("experiment")
    @click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
    @click.option("--train", "whole", is_flag=True, help="Train and evaluate, instead of timing.")
    @click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Pieces timed.")
    @click.option("--seconds", type=float, default=20.0, show_default=True, help="Length of a piece.")
    @click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write it here.")
    def main(
        experiment: str, settings: tuple[str, ...], whole: bool, file: Path | None, **timing: Any
    ) -> None:
        if os.environ.get("GOMP_SPINCOUNT") == rlagents.SPIN_COUNT:
            del os.environ["GOMP_SPINCOUNT"]  # before torch comes: threads wait as they do for its users
        from rlagents import building, machine
        from rlagents.bench import lasting
        from rlagents.timing import Plan, Report

        try:
            plan = Plan(experiments.find(experiment), settings, **timing)
            if whole:
                train(plan.experiment())
                return
            loaded = lasting(plan)
            rows, notes = measure(toml.load(loaded, [f"run.env_steps={_ENDLESS}"]), plan)
        except UsageError as error:
            raise click.UsageError(str(error)) from error
        on, versions = building.choose_device(loaded.run.device), machine.versions(peer.package)
        report = Report(
            peer.module.removeprefix("rlagents."), plan, loaded, machine.describe(on), versions, rows, notes
        )
        report.show()
        if file:
            report.write(file)

    return main
