"""How good an agent is: whole episodes in fresh environments, counted fairly, given with their uncertainty.

The one idea: each environment plays a fixed quota of episodes. "The first 30 to finish" would favour short
games. Nothing here touches the random streams of a training that goes on.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlagents import building, disk, runs, toml
from rlagents.config import Experiment
from rlagents.errors import RunError, UsageError
from rlagents.machine import describe, line, versions
from rlagents.tables import Distance, distance
from rlagents.types import Obs, Player, each
from rlagents.video import Frame, Painter, Stop, Video, Window
from rlagents_envs.config import Atari, EnvConfig
from rlagents_envs.vector import Environments, Outcome

_STICKY = 0.25  # the sticky actions of Machado et al. 2018


@dataclass(frozen=True)
class Evaluation:
    """Finished episodes of one agent, in the order in which they ended."""

    returns: tuple[float, ...]  # undiscounted sums of the rewards as the environment paid them
    lengths: tuple[int, ...]  # env steps
    seed: int
    epsilon: float
    distinct: int  # how many games differ in any action or reward
    sticky: "Evaluation | None" = None  # the same agent under sticky actions, where it was also asked for
    video: Path | None = None
    exact: Distance | None = None  # of an agent's table from Q*, where both are known
    summary: Mapping[str, float] = field(default_factory=dict[str, float])  # of what the environment reports
    # The same of scripted drivers that the environment brings along, by name, on the same episodes.
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    notes: tuple[str, ...] = ()  # what went otherwise than asked for, a line each

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns."""
        return float(np.std(self.returns))

    @property
    def min(self) -> float:
        """Smallest return."""
        return min(self.returns)

    @property
    def max(self) -> float:
        """Largest return."""
        return max(self.returns)

    @property
    def length(self) -> float:
        """Mean episode length in env steps."""
        return float(np.mean(self.lengths))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean return: percentiles of 10 000 resamples, the same each time."""
        rng = np.random.default_rng(0)
        returns = np.asarray(self.returns)
        size = len(returns)
        # In 100 parts, for the memory of it.
        means = [returns[rng.integers(size, size=(100, size))].mean(axis=1) for _ in range(100)]
        low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
        return float(low), float(high)

    def metrics(self) -> dict[str, float]:
        """The numbers under the names that reports know."""
        low, high = self.interval
        return {
            "evaluate/return_mean": self.mean,
            "evaluate/return_std": self.std,
            "evaluate/return_min": self.min,
            "evaluate/return_max": self.max,
            "evaluate/return_low": low,
            "evaluate/return_high": high,
            "evaluate/length_mean": self.length,
            "evaluate/distinct": float(self.distinct),
            **{f"evaluate/{name}": value for name, value in self.summary.items()},
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "episodes": len(self.returns),
            "seed": self.seed,
            "epsilon": self.epsilon,
            "mean": self.mean,
            "std": self.std,
            "min": self.min,
            "max": self.max,
            "interval": list(self.interval),
            "length": self.length,
            "distinct": self.distinct,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "sticky": self.sticky and self.sticky.as_dict(),
            "summary": dict(self.summary),
            "baselines": {name: dict(values) for name, values in self.baselines.items()},
            "notes": list(self.notes),
            "video": self.video and str(self.video),
            "exact": self.exact and asdict(self.exact),
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"return {self.mean:.5g} [{low:.5g}, {high:.5g}] (std {self.std:.4g}, min {self.min:.5g}, "
            f"max {self.max:.5g}) over {len(self.returns)} episodes, {self.distinct} distinct, "
            f"mean length {self.length:,.1f}"
        )


class _Games:
    """Which steps belong to which episode, and what came of each.

    Args:
        count: of the environments, N.
        episodes: how many are to be played, spread over the environments as evenly as can be.
    """

    def __init__(self, count: int, episodes: int) -> None:
        self.left = episodes // count + (np.arange(count) < episodes % count)  # [N] episodes still to play
        self.total = np.zeros(count)  # [N] the return of the episode so far
        self._start = np.zeros(count, np.int64)  # [N] the step at which it began
        self._time = 0
        # One piece that grows: small arrays kept from every step would lie between large ones that are freed,
        # and each leave a hole in which no observation fits.
        self._log = bytearray()  # of actions and rewards
        self.played: list[tuple[int, int, int, float]] = []  # environment, first step, end, return

    @property
    def length(self) -> NDArray[np.int64]:
        """Env steps of the episodes so far, [N]."""
        return self._time - self._start

    def record(self, action: NDArray[np.int64], outcome: Outcome) -> list[int]:
        """Takes note of one step; returns the environments in which it ended an episode that counts."""
        # A lost episode is played again.
        over = outcome.ended if outcome.lost is None else outcome.ended & ~outcome.lost
        self._log += action.astype(np.int64).tobytes() + outcome.reward.astype(np.float32).tobytes()
        self._time += 1
        self.total += outcome.reward
        done = [int(i) for i in np.flatnonzero(over & (self.left > 0))]
        for i in done:
            self.played.append((i, int(self._start[i]), self._time, float(self.total[i])))
            self.left[i] -= 1
        # The step after an end only resets: it belongs to no episode.
        self._start[outcome.ended] = self._time + 1
        self.total[outcome.ended] = 0
        return done

    def distinct(self) -> int:
        """Returns how many of the games played differ in any action or reward."""
        count = (len(self.left),)
        log = np.frombuffer(self._log, [("action", np.int64, count), ("reward", np.float32, count)])
        steps = [(slice(begin, end), i) for i, begin, end, _ in self.played]
        games = (log["action"][at].tobytes() + log["reward"][at].tobytes() for at in steps)
        return len({hashlib.blake2b(game).digest() for game in games})


def play(
    agent: Player,
    envs: Environments,
    *,
    episodes: int,
    seed: int,
    epsilon: float = 0.0,
    watch: Callable[[Frame], None] | None = None,
    watched: int = 1,
) -> Evaluation:
    """Returns how the agent did, without learning and without touching its random streams.

    The episodes are spread over the environments as evenly as can be; an environment that has played its
    quota rests where it can, and goes on unheeded where it cannot.

    Args:
        agent: who plays.
        envs: where; reset here. With `watch` made with `pictures=True`.
        episodes: how many.
        seed: of the environments and of the draws for `epsilon`.
        epsilon: probability of a random action; 0 is greedy.
        watch: called before each step of environment 0 and once after the last of each episode.
        watched: how many episodes of environment 0 are watched.

    Raises:
        RunError: `watch` raised Stop before any episode had ended.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    games = _Games(envs.count, episodes)
    generator = torch.Generator().manual_seed(seed)
    first, final = np.ones(envs.count, np.bool_), np.zeros(envs.count, np.bool_)
    reports: list[Mapping[str, float]] = []  # what environments say about episodes

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(array, device=agent.device)

    def one(array: Any) -> Tensor:
        return tensor(array[:1])

    def show(action: int | None, total: float, length: int) -> None:
        """Hands environment 0 to `watch`."""
        assert watch is not None
        values = agent.q_values(each(one, obs))[0].numpy()  # [A]
        watch(Frame(envs.picture(), values, action, total, length, shown))

    obs, mask = envs.reset(seed)
    shown = 0
    try:
        while games.left.any():
            action = agent.act(
                each(tensor, obs), mask=mask, first=first, epsilon=epsilon, generator=generator
            )
            total, length = float(games.total[0]), int(games.length[0])
            seen = watch is not None and shown < watched and games.left[0] and not final[0]
            if seen:
                show(int(action[0]), total, length)
            envs.send(action)
            outcome = envs.recv()
            obs, mask = outcome.obs, outcome.mask
            done = games.record(action, outcome)
            if 0 in done:
                if seen:
                    show(None, total + float(outcome.reward[0]), length + 1)
                shown += 1
            if done:
                reports += filter(None, map((outcome.episode_metrics or {}).get, done))
                envs.rest(games.left == 0)
            first, final = final, outcome.ended
    except Stop:
        if not games.played:
            raise RunError("the evaluation was ended before its first episode: nothing to report") from None
    return Evaluation(
        returns=tuple(value for *_, value in games.played),
        lengths=tuple(end - begin for _, begin, end, _ in games.played),
        seed=seed,
        epsilon=epsilon,
        distinct=games.distinct(),
        summary=envs.summarise(reports) if reports else {},
    )


class Scripted:
    """A driver that an environment brings along, in an agent's place.

    Args:
        envs: environments that bring it along.
        name: one of their `drivers`.
    """

    device = torch.device("cpu")

    def __init__(self, envs: Environments, name: str) -> None:
        self._envs, self._name = envs, name

    def act(self, obs: Obs, **_: Any) -> NDArray[np.int64]:
        """Returns its actions [N]."""
        return self._envs.scripted(self._name)

    def q_values(self, obs: Obs) -> Tensor:
        """Returns zeros: it has no values."""
        return torch.zeros(1, self._envs.actions)


def evaluate(
    run: str | Path,
    *,
    episodes: int = 30,
    seed: int | None = None,
    epsilon: float = 0.0,
    checkpoint: str | int = "latest",
    render: Literal["none", "human", "video"] = "none",
    device: str = "auto",
    json: str | Path | None = None,
    out: str | Path | None = None,
    trust: bool = False,
    settings: Sequence[str] = (),
) -> Evaluation:
    """Returns how a saved agent does in fresh environments.

    An Atari agent trained without sticky actions also plays with the usual 0.25 (`Evaluation.sticky`).

    Args:
        run: the run directory.
        episodes: how many.
        seed: of the environments; None: 1 000 000 above the run's own.
        epsilon: probability of a random action; 0 is greedy.
        checkpoint: `latest`, the newest that is whole; `best`, or its env steps.
        render: `video` writes the first episode of the first environment as mp4; `human` shows every episode
            in a window, one after the other, until it is closed, and leaves the sticky games out.
        device: `auto`, `cpu` or `cuda`.
        json: file for everything that is known about the evaluation.
        out: folder for the video; None: `videos/` in the run directory.
        trust: import what a run that was not made here names.
        settings: of the environment, in place of those it was trained with, such as `env.sticky=0.25`.

    Raises:
        UsageError: an argument or the run's environment is impossible here.
        RunError: no such run or checkpoint, no display, nothing finished.
    """
    _check(episodes, epsilon, seed)
    loaded = runs.load(run, checkpoint=checkpoint, device=device, trust=trust)
    agent, experiment = loaded.agent, _changed(loaded.config, settings)
    seed = evaluation_seed(experiment) if seed is None else seed
    if render == "human":
        result = _shown(agent, experiment, episodes, seed, epsilon)
    else:
        video = (
            Path(out or loaded.path / "videos") / f"evaluate-{loaded.step}.mp4" if render == "video" else None
        )
        result = recorded(
            agent,
            experiment,
            episodes=episodes,
            seed=seed,
            epsilon=epsilon,
            video=video,
            baselines=True,
        )
        if isinstance(experiment.env, Atari) and experiment.env.sticky == 0:
            env = experiment.env.model_copy(update={"sticky": _STICKY})
            harder = experiment.model_copy(update={"env": env})
            sticky = recorded(agent, harder, episodes=episodes, seed=seed, epsilon=epsilon)
            result = replace(result, sticky=sticky)
    notes = (*loaded.skipped, *result.notes)
    result = replace(result, exact=distance(agent, experiment.env), notes=notes)
    if json:
        _write(Path(json), loaded, result.as_dict())
    return result


def evaluate_suites(
    run: str | Path,
    *,
    names: Sequence[str] = (),
    episodes: int = 30,
    seed: int | None = None,
    epsilon: float = 0.0,
    checkpoint: str | int = "latest",
    device: str = "auto",
    json: str | Path | None = None,
    trust: bool = False,
    settings: Sequence[str] = (),
) -> Iterator[tuple[str, Evaluation]]:
    """Yields how a saved agent, and the scripted drivers beside it, do in each suite of its environment.

    All play the same episodes of a suite. `json` is written anew after each suite.

    Args:
        run: the run directory.
        names: which suites; none: all of them.
        episodes: how many of each.
        seed: as in `evaluate`, and so on.
        epsilon: as there.
        checkpoint: as there.
        device: as there.
        json: file for everything that is known about the suites.
        trust: as there.
        settings: as there; a suite has the last word.

    Raises:
        UsageError: the environment has no such suite, or an argument is impossible here.
        RunError: no such run or checkpoint, nothing finished.
    """
    _check(episodes, epsilon, seed)
    loaded = runs.load(run, checkpoint=checkpoint, device=device, trust=trust)
    experiment = _changed(loaded.config, settings)
    seed = evaluation_seed(experiment) if seed is None else seed
    try:
        known = experiment.env.suites
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not known:
        raise UsageError(f"suites need an environment that has some, got kind {experiment.env.kind}")
    if wrong := [name for name in names if name not in known]:
        raise UsageError(f"suites must be among {', '.join(known)}, got {', '.join(wrong)}")
    done: dict[str, dict[str, Any]] = {}
    for name in names or known:
        each = experiment.model_copy(update={"env": known[name]})
        result = recorded(loaded.agent, each, episodes=episodes, seed=seed, epsilon=epsilon, baselines=True)
        result = replace(result, notes=(*([] if done else loaded.skipped), *result.notes))
        done[name] = {"env": known[name].model_dump(mode="json"), **result.as_dict()}
        if json:
            _write(Path(json), loaded, {"suites": done})
        yield name, result


def _check(episodes: int, epsilon: float, seed: int | None) -> None:
    if episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {episodes}")
    if not 0 <= epsilon <= 1:
        raise UsageError(f"epsilon must be between 0 and 1, got {epsilon}")
    if seed is not None and not 0 <= seed < 2**31:
        raise UsageError(f"seed must be at least 0 and below 2**31, got {seed}")


def _write(file: Path, loaded: runs.Loaded, found: dict[str, Any]) -> None:
    """Writes what was found, and all that it depends on."""
    known = {
        "experiment": loaded.config.run.name,
        "checkpoint_step": loaded.step,
        **found,
        "versions": versions(),
        "hardware": line(describe(loaded.agent.device)),
    }
    disk.write_json(file, known)


def _changed(experiment: Experiment, settings: Sequence[str]) -> Experiment:
    """Returns an experiment with other settings of its environment, which looks the same to its agent."""
    if not settings:
        return experiment
    if wrong := [setting for setting in settings if not setting.startswith("env.")]:
        raise UsageError(
            f"settings of an evaluation must be of the environment (env.…), got {', '.join(wrong)}"
        )
    changed = toml.load(experiment, settings)
    with ExitStack() as stack:
        before, after = (
            stack.enter_context(closing(building.environments(one.env, count=1)))
            for one in (experiment, changed)
        )
        if (before.layout, before.actions) != (after.layout, after.actions):
            raise UsageError(
                "settings of an evaluation must leave observations and actions as the agent knows them, "
                f"got {', '.join(settings)}"
            )
    return changed


def evaluation_seed(experiment: Experiment) -> int:
    """Returns the seed of an experiment's evaluations: none that its training uses, the same each time."""
    return (1_000_000 + experiment.run.seed) % 2**31


def recorded(
    agent: Player,
    experiment: Experiment,
    *,
    episodes: int,
    seed: int,
    epsilon: float = 0.0,
    video: Path | None = None,
    baselines: bool = False,
) -> Evaluation:
    """Returns how the agent does in fresh environments; writes the first episode of the first one to `video`.

    With `baselines`, the scripted drivers that the environments bring along play the same episodes.

    Raises:
        UsageError: the environments cannot be made.
        RunError: the video cannot be written.
    """
    env = experiment.env.for_evaluation()
    with ExitStack() as stack:
        count = min(episodes, env.parallel)
        envs = building.environments(env, count=count, pictures=video is not None, resting=True)
        stack.enter_context(closing(envs))
        watch = video and stack.enter_context(
            Video(video, _painter(experiment, envs), frames_per_second(experiment.env))
        )
        result = play(agent, envs, episodes=episodes, seed=seed, epsilon=epsilon, watch=watch)
        names = envs.drivers if baselines else ()
        others = {n: play(Scripted(envs, n), envs, episodes=episodes, seed=seed).summary for n in names}
        notes = tuple(f"{error}; the episodes under way were played again" for error in envs.take_crashes())
    return replace(result, video=video, baselines=others, notes=notes)


def _shown(agent: Player, experiment: Experiment, episodes: int, seed: int, epsilon: float) -> Evaluation:
    """Plays one episode after the other in a window."""
    with ExitStack() as stack:
        env = experiment.env.for_evaluation()
        envs = stack.enter_context(closing(building.environments(env, count=1, pictures=True)))
        watch = stack.enter_context(Window(_painter(experiment, envs), frames_per_second(experiment.env)))
        return play(agent, envs, episodes=episodes, seed=seed, epsilon=epsilon, watch=watch, watched=episodes)


def _painter(experiment: Experiment, envs: Environments) -> Painter:
    return Painter(experiment.run.name, envs.action_names)


def frames_per_second(env: EnvConfig) -> float:
    """Returns how many env steps a second of a video shows: the game's own speed where that is known."""
    if isinstance(env, Atari):
        return 60 / env.frame_skip
    return 50 if env.kind == "cartpole" else 10
