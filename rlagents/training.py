"""Training: builds what an experiment describes, lets it run, keeps count, evaluates and saves."""

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

import numpy as np

from rlagents import runs, tables
from rlagents.agents import DQN, QLearning
from rlagents.checkpoint import Checkpoints
from rlagents.config import Experiment
from rlagents.errors import RunError
from rlagents.evaluation import Evaluation, evaluation_seed, recorded
from rlagents.loop import Trail, interact
from rlagents.report import Console, JsonLines, Report, Several, TensorBoard, Wandb
from rlagents.report.wandb import require
from rlagents.schedules import Every
from rlagents.seeding import Streams
from rlagents.types import Metrics, State, Step
from rlagents_envs.vector import Environments

Mode = Literal["off", "offline", "online"]
_RECENT = 20  # episodes that a training return is the mean of
_REFRESH = 0.5  # seconds between renewals of the live line


class Tracker:
    """Counts env steps and finished episodes, from the rewards as the environment paid them."""

    def __init__(self, environments: int) -> None:
        self.env_steps = self.episodes = 0
        self.best: float | None = None  # mean return of the best evaluation
        self._return = np.zeros(environments)
        self._length = np.zeros(environments, np.int64)
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)

    def update(self, step: Step) -> None:
        """Takes note of one step of N environments."""
        first, final = step.first.numpy(), step.final.numpy()
        self._return[first], self._length[first] = 0, 0
        self._return += step.reward.numpy()
        self._length += ~final
        self.env_steps += int(np.count_nonzero(~final))
        # Where a simulator died there was no end; two rows are final then, the second of them first, too.
        over = final & ~first if step.lost is None else final & ~first & ~step.lost.numpy()
        for lane in np.flatnonzero(over):
            self.episodes += 1
            self._recent.append((float(self._return[lane]), int(self._length[lane])))

    def metrics(self) -> dict[str, float]:
        """Returns what is known about the newest episodes."""
        if not self._recent:
            return {}
        returns, lengths = np.array(self._recent).T
        return {
            "train/return": float(returns.mean()),
            "train/episode_length": float(lengths.mean()),
            "train/episodes": float(self.episodes),
        }

    def state_dict(self) -> State:
        """Returns counters and unfinished episodes."""
        return {
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "best": self.best,
            "return": self._return.tolist(),
            "length": self._length.tolist(),
            "recent": [list(pair) for pair in self._recent],
        }

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self.env_steps, self.episodes, self.best = state["env_steps"], state["episodes"], state["best"]
        self._return, self._length = np.array(state["return"]), np.array(state["length"])
        self._recent.extend((value, length) for value, length in state["recent"])


def train(
    experiment: Experiment, *, out: Path | None = None, wandb: Mode = "off", quiet: bool = False
) -> Path:
    """Trains from the beginning; returns the run directory.

    Args:
        experiment: what to do.
        out: the run directory, new or empty; None: `runs/<experiment>/<id>`.
        wandb: whether and how to log to Weights & Biases.
        quiet: print the last line only.

    Raises:
        UsageError: something in the experiment is impossible here.
        RunError: the training failed on its way.
        KeyboardInterrupt: Ctrl-C; the run was saved before.
    """
    on = runs.choose_device(experiment.run.device)
    if wandb != "off":
        require()
    with closing(runs.environments(experiment.env)) as envs:
        agent = runs.agent(experiment, envs, on)  # before a folder is made for what cannot run
        run = out or runs.place(experiment)
        runs.create(experiment, run)
        return _Training(experiment, run, agent, envs.actions, wandb, quiet).go(envs)


def resume(run: Path, *, wandb: Mode = "off", quiet: bool = False) -> Path:
    """Goes on with a run from its newest checkpoint; returns the run directory.

    Raises:
        RunError: it is no run, has no whole checkpoint, or failed on its way.
        KeyboardInterrupt: Ctrl-C; the run was saved before.
    """
    experiment = runs.read(run)
    with closing(runs.environments(experiment.env)) as envs:
        agent = runs.agent(experiment, envs, runs.choose_device(experiment.run.device))
        training = _Training(experiment, run, agent, envs.actions, wandb, quiet)
        training.restore()
        return training.go(envs)


class _Training:
    """One run on its way: consumes the loop."""

    def __init__(
        self,
        experiment: Experiment,
        run: Path,
        agent: DQN | QLearning,
        actions: int,
        wandb: Mode,
        quiet: bool,
    ) -> None:
        self.experiment, self.run, self.agent = experiment, run, agent
        self.wandb: Mode = wandb
        self.quiet = quiet
        self.tracker = Tracker(experiment.env.count)
        self.trail = Trail(Streams(experiment.run.seed), experiment.env.count, actions)
        self.checkpoints = Checkpoints(run, experiment.run.keep)
        self.resumed: int | None = None
        self._start = time.perf_counter()

    def restore(self) -> None:
        """Brings everything back from the newest checkpoint."""
        saved = self.checkpoints.newest()
        saved.restore(agent=self.agent, tracker=self.tracker, trail=self.trail)
        if self.agent.replay is not None:
            self.checkpoints.restore_rows(saved, self.agent.replay)
        self.resumed = saved.step

    def go(self, envs: Environments) -> Path:
        """Runs to the end of the budget."""
        settings, tracker = self.experiment.run, self.tracker
        budget = settings.env_steps
        log = Every(max(1, budget // 500))
        evaluate, save = (
            Every(period or budget) for period in (settings.evaluate_every, settings.checkpoint_every)
        )
        with ExitStack() as stack:
            self._open(stack)
            interrupted = stack.enter_context(_signals())
            if self.resumed is None:
                self._save()
            else:
                done = ", the end of its budget" if self.resumed >= budget else ""
                self.console.note(f"resumed at {self.resumed:,} env steps{done}")
            metrics: Metrics = {}
            clock = _Clock(tracker.env_steps, self.agent.learner_steps)
            refresh = time.monotonic() + _REFRESH
            steps = interact(envs, self.agent, self.trail, reset_every=settings.reset_every)
            while tracker.env_steps < budget:
                try:
                    step, news = next(steps)
                except RuntimeError as error:
                    raise RunError(f"at {tracker.env_steps:,} env steps: {error}") from error
                before = tracker.env_steps
                tracker.update(step)
                after = tracker.env_steps
                metrics = news or metrics
                if log.due(before, after):
                    values = self._values(metrics)
                    self._write(after, values, clock.speeds(after, self.agent.learner_steps))
                elif time.monotonic() > refresh:
                    speeds = clock.speeds(after, self.agent.learner_steps)
                    self.console.write(after, {**self._values(metrics), **speeds})
                    refresh = time.monotonic() + _REFRESH
                if interrupted:
                    self._save()
                    raise KeyboardInterrupt
                done = after >= budget
                better = bool(evaluate.due(before, after) or done) and self._evaluate(after)
                if better or save.due(before, after) or done:
                    self._save(best=better)
                if evaluate.due(before, after) or save.due(before, after):
                    clock.restart(after, self.agent.learner_steps)
            if table := tables.readable(self.agent, envs):
                self.console.note(table)
        return self.run

    def _open(self, stack: ExitStack) -> None:
        run, resumed = self.run, self.resumed
        self.console = Console(self.experiment.run.env_steps, quiet=self.quiet)
        metrics, timings = (
            JsonLines(run / f"{name}.jsonl", resume=resumed) for name in ("metrics", "timings")
        )
        curves: list[Report] = [TensorBoard(run / "tensorboard", resume=resumed)]
        if self.wandb != "off":
            config = self.experiment.model_dump(mode="json")
            name = f"{self.experiment.run.name}-{run.name}"
            curves.append(Wandb(run, mode=self.wandb, config=config, name=name, run_id=runs.identity(run)))
        # Metrics are the same in every run of a seed; what depends on the clock has a file of its own.
        self.metrics, self.speeds = Several([metrics, *curves]), Several([timings, *curves])
        stack.enter_context(closing(Several([metrics, timings, *curves, self.console])))

    def _values(self, metrics: Metrics) -> dict[str, float]:
        learned = {f"train/{name}": float(value) for name, value in metrics.items()}
        for name, value in learned.items():
            if not np.isfinite(value):
                raise RunError(
                    f"{name} is {value} at {self.tracker.env_steps:,} env steps: the learning diverged; "
                    f"lower agent.learning_rate, or clip gradients or rewards; {self.run} is whole"
                )
        return {**self.tracker.metrics(), "train/epsilon": self.agent.epsilon, **learned}

    def _write(self, step: int, values: Mapping[str, float], speeds: Mapping[str, float]) -> None:
        self.metrics.write(step, values)
        self.speeds.write(step, {**speeds, **self._elapsed()})
        self.console.write(step, {**values, **speeds})

    def _elapsed(self) -> dict[str, float]:
        return {"speed/seconds": time.perf_counter() - self._start}

    def _evaluate(self, step: int) -> bool:
        """Plays greedily in fresh environments; returns whether it never went better."""
        result = self._play(step)
        self.speeds.write(step, self._elapsed())
        for report in (self.metrics, self.console):
            report.write(step, result.metrics())
            if result.video:
                report.video(step, result.video)
        if self.tracker.best is not None and result.mean <= self.tracker.best:
            return False
        self.tracker.best = result.mean
        return True

    def _play(self, step: int) -> Evaluation:
        settings = self.experiment.run
        video = (
            self.run / "videos" / f"train-{step:012d}.mp4" if settings.video or self.wandb != "off" else None
        )
        return recorded(
            self.agent,
            self.experiment,
            episodes=settings.evaluate_episodes,
            seed=evaluation_seed(self.experiment),
            video=video,
        )

    def _save(self, *, best: bool = False) -> None:
        try:
            self.checkpoints.save(
                self.tracker.env_steps,
                self.agent.replay,
                best=best,
                agent=self.agent,
                tracker=self.tracker,
                trail=self.trail,
            )
        except OSError as error:
            self.console.note(
                f"no checkpoint at {self.tracker.env_steps:,} env steps: {error}; the one before it stays"
            )


class _Clock:
    """Env steps and learner steps per second since the last time it was asked."""

    def __init__(self, env_steps: int, learner_steps: int) -> None:
        self.restart(env_steps, learner_steps)

    def restart(self, env_steps: int, learner_steps: int) -> None:
        """Leaves out the time since it was asked, such as that of an evaluation."""
        self._last = (time.perf_counter(), env_steps, learner_steps)

    def speeds(self, env_steps: int, learner_steps: int) -> dict[str, float]:
        """Returns both rates."""
        now = time.perf_counter()
        then, env_before, learner_before = self._last
        self.restart(env_steps, learner_steps)
        seconds = max(now - then, 1e-9)
        return {
            "speed/env_steps_per_second": (env_steps - env_before) / seconds,
            "speed/learner_steps_per_second": (learner_steps - learner_before) / seconds,
        }


@contextmanager
def _signals() -> Generator[list[int]]:
    """Yields a list that holds the first Ctrl-C or SIGTERM once it came; a second one interrupts at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        sys.stderr.write("\nstopping: finishing this step and saving; once more to stop at once\n")

    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield caught
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
