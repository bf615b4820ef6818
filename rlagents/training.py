"""Training: builds what an experiment describes, lets it run, keeps count, evaluates and saves."""

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from rlagents import building, runs, tables
from rlagents.agents import AnyAgent
from rlagents.checkpoint import Checkpoints, write_tensors
from rlagents.config import Experiment
from rlagents.errors import RunError, UsageError
from rlagents.evaluation import Evaluation, evaluation_seed, recorded
from rlagents.loop import Trail, interact
from rlagents.report import Console, JsonLines, Report, Several, TensorBoard, Wandb
from rlagents.report.wandb import require
from rlagents.schedules import Every
from rlagents.seeding import Streams
from rlagents.signals import Signals
from rlagents.tracker import Clock, Tracker
from rlagents_envs.vector import Environments

Mode = Literal["off", "offline", "online"]
_REFRESH = 0.5  # seconds between renewals of the live line


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
        RunError: the replay does not fit into memory, or the training failed on its way.
        KeyboardInterrupt: Ctrl-C; the run was saved before.
    """
    on = building.choose_device(experiment.run.device)
    if wandb != "off":
        require()
    with closing(building.environments(experiment.env)) as envs:
        building.require_memory(experiment, envs, on)
        agent = building.agent(experiment, envs, on)  # before a folder is made for what cannot run
        run = out or runs.place(experiment)
        runs.create(experiment, run)
        with runs.locked(run):
            return _Training(experiment, run, agent, envs.actions, wandb, quiet).go(envs)


def resume(run: Path, *, wandb: Mode = "off", quiet: bool = False, trust: bool = False) -> Path:
    """Goes on with a run from its newest checkpoint; returns the run directory.

    Args:
        run: the run directory.
        wandb: whether and how to log to Weights & Biases.
        quiet: print the last line only.
        trust: import what a run that was not made here names.

    Raises:
        RunError: it is no run, is in use, has no whole checkpoint, or failed on its way.
        KeyboardInterrupt: Ctrl-C; the run was saved before.
    """
    experiment = runs.trusted(run, trust=trust)
    with runs.locked(run), closing(building.environments(experiment.env)) as envs:
        on = building.choose_device(experiment.run.device)
        building.require_memory(experiment, envs, on)
        agent = building.agent(experiment, envs, on)
        training = _Training(experiment, run, agent, envs.actions, wandb, quiet)
        training.restore(replayable=envs.replayable)
        return training.go(envs)


class _Training:
    """One run on its way: consumes the loop."""

    def __init__(
        self,
        experiment: Experiment,
        run: Path,
        agent: AnyAgent,
        actions: int,
        wandb: Mode,
        quiet: bool,
    ) -> None:
        self.experiment, self.run, self.agent = experiment, run, agent
        self.wandb: Mode = wandb
        self.quiet = quiet
        self.tracker = Tracker(experiment.env.count)
        self.trail = Trail(Streams(experiment.run.seed), experiment.env.count, actions)
        self.replay = agent.replay if experiment.checkpoint.replay == "all" else None  # what is saved of it
        # All that the weights depend on, but not for how long: a budget may be raised, and a run that crashed
        # may go on with another way out of a crash.
        settings = experiment.model_dump(mode="json")
        settings["env"].pop("on_crash", None)
        same = {"run": {name: settings["run"][name] for name in ("seed", "reset_every")}}
        self.checkpoints = Checkpoints(
            run,
            experiment.run.keep,
            experiment={**same, "env": settings["env"], "agent": settings["agent"]},
            compress=experiment.checkpoint.compress,
            device=agent.device.type,
        )
        self.resumed: int | None = None
        self._start = time.perf_counter()
        self._signals = Signals()
        self._notes: list[str] = []  # to be printed once the screen is there
        self._unsaved = False  # whether a checkpoint could not be written
        self._surpassed: float | None = None  # the best score before the newest one that was better
        self._names_best = False  # whether the checkpoint that is being written has the best score

    def restore(self, *, replayable: bool) -> None:
        """Brings everything back from the newest checkpoint that is whole; without any, starts anew.

        Args:
            replayable: whether the environments come back to where they were, too.
        """
        self.resumed = 0
        if not any(file for name in ("[!.]*", ".*.old") for file in self.checkpoints.folder.glob(name)):
            return  # killed before the first one was written
        saved = self.checkpoints.newest(self.replay)
        saved.restore(agent=self.agent, tracker=self.tracker, trail=self.trail)
        if self.agent.replay is not None:
            self.agent.replay.reopen()  # with the priorities that the agent has now
        self.resumed = saved.step
        self._notes += saved.skipped
        here = self.checkpoints.made_with()
        there = {**here, **saved.manifest["versions"]}
        if changed := [f"{name} {there[name]} → {new}" for name, new in here.items() if there[name] != new]:
            self._notes.append(f"this resume may not be exact: {', '.join(changed)}")
        if self.replay is not self.agent.replay:
            self._notes.append(
                "THIS RESUME IS NOT EXACT: checkpoint.replay is none, so the replay starts empty, "
                "and results may dip until it is full again"
            )
        if not replayable:
            self._notes.append(
                f"this resume is not exact: {self.experiment.env.kind} cannot return to where it was, so new "
                "episodes begin"
            )

    def go(self, envs: Environments) -> Path:
        """Runs to the end of the budget."""
        with ExitStack() as stack:
            self._open(stack)
            stack.enter_context(self._signals)
            stack.callback(self._settle)  # whatever ends the run: a checkpoint begun is brought to its end
            self._begin()
            self._loop(envs)
            self._settle()
            if self._unsaved:
                raise RunError(
                    "the end is reached, but its checkpoint could not be written; make room, then: "
                    f"rlagents train --resume {self.run}"
                )
            if table := tables.readable(self.agent, self.experiment.env):
                self.console.note(table)
        return self.run

    def _begin(self) -> None:
        """Tells what there is to know, and makes up for what a Ctrl-C left undone."""
        budget = self.experiment.run.env_steps
        if self.resumed is not None:
            done = ", the end of its budget" if self.resumed >= budget else ""
            self.console.note(f"resumed at {self.resumed:,} env steps{done}")
        for note in self._notes:
            self.console.note(note, always=True)
        if not self.tracker.env_steps:
            self._save()
        if self.tracker.unevaluated:
            self._finish(save=True)

    def _loop(self, envs: Environments) -> None:
        """Takes step after step, and does what is due after each."""
        settings, tracker, signals = self.experiment.run, self.tracker, self._signals
        budget = settings.env_steps
        log = Every(max(1, budget // 500))
        evaluate, save = (
            Every(period or budget) for period in (settings.evaluate_every, settings.checkpoint_every)
        )
        clock = Clock(tracker.env_steps, self.agent.learner_steps)
        refresh = time.monotonic() + _REFRESH
        steps = interact(envs, self.agent, self.trail, reset_every=settings.reset_every)
        signals.at_once = True  # playing the trail again takes long, and loses nothing
        while tracker.env_steps < budget:
            try:
                step, news = next(steps)
            except RuntimeError as error:
                self._tell_crashes(envs)
                raise RunError(self._told(error)) from error
            signals.at_once = False
            before = tracker.env_steps
            tracker.update(step)
            after = tracker.env_steps
            self._tell_crashes(envs)
            tracker.learned = news or tracker.learned
            logged = log.due(before, after)
            if logged:
                self._write(after, self._values(), clock.speeds(after, self.agent.learner_steps))
                self._settle(wait=False)
            elif time.monotonic() > refresh:
                speeds = clock.speeds(after, self.agent.learner_steps)
                self.console.write(after, {**self._values(), **speeds})
                refresh = time.monotonic() + _REFRESH
            done = after >= budget
            tracker.unevaluated = done or bool(evaluate.due(before, after))
            due = done or bool(save.due(before, after)) or bool(logged and self._unsaved)
            if tracker.unevaluated or due or signals.caught:
                self._finish(save=due)
                clock.restart(after, self.agent.learner_steps)

    def _told(self, error: RuntimeError) -> str:
        """Returns when and how an environment failed; where its traceback is known, writes that to a file."""
        told = f"at {self.tracker.env_steps:,} env steps: {error}"
        notes: list[str] = getattr(error, "__notes__", [])
        file = self.run / "crash.txt"
        with suppress(OSError):
            if notes:
                file.write_text("\n".join(notes), "utf-8")
                told += f"; its traceback lies in {file}"
        return told

    def _tell_crashes(self, envs: Environments) -> None:
        for error in envs.take_crashes():
            self.console.note(f"{self._told(error)}; all environments start anew", always=True)

    def _finish(self, *, save: bool) -> None:
        """Evaluates and saves what is due after a step; stops there after a Ctrl-C."""
        self._settle()  # whether the best score is on the disk is known before the next one is compared
        better = self.tracker.unevaluated and not self._signals.caught and self._evaluate()
        if self._signals.caught:
            self._save(best=better, background=False)
            raise KeyboardInterrupt
        if better or save:
            self._save(best=better)

    def _open(self, stack: ExitStack) -> None:
        run, resumed = self.run, self.resumed
        self.console = Console(self.experiment.run.env_steps, quiet=self.quiet)
        self.record = metrics = JsonLines(run / "metrics.jsonl", resume=resumed)
        timings = JsonLines(run / "timings.jsonl", resume=resumed)
        curves: list[Report] = [TensorBoard(run / "tensorboard", resume=resumed)]
        if self.wandb != "off":
            config = self.experiment.model_dump(mode="json")
            name = f"{self.experiment.run.name}-{run.name}"
            curves.append(Wandb(run, mode=self.wandb, config=config, name=name, run_id=runs.identity(run)))
        # Metrics are the same in every run of a seed; what depends on the clock has a file of its own.
        self.metrics, self.speeds = Several([metrics, *curves]), Several([timings, *curves])
        stack.enter_context(closing(Several([metrics, timings, *curves, self.console])))

    def _values(self) -> dict[str, float]:
        return {**self.tracker.metrics(), "train/epsilon": self.agent.epsilon, **self._learned()}

    def _learned(self) -> dict[str, float]:
        """Returns what the newest learner step said; a number that is none stops the run, for good reason."""
        learned = {f"train/{name}": float(value) for name, value in self.tracker.learned.items()}
        wrong = [f"{name} is {value}" for name, value in learned.items() if not np.isfinite(value)]
        suspect = self.agent.suspect()
        if not wrong and suspect is None:
            return learned
        what = wrong[0] if wrong else "the gradient is no number"
        if suspect is None:
            raise self._diverged(what)
        number, batch = suspect
        file = self.run / "diverged.safetensors"
        with suppress(OSError):
            write_tensors(file, {name: part for name, part in batch._asdict().items() if part is not None})
        raise self._diverged(what, f"it began at learner step {number:,}, whose batch lies in {file}; ")

    def _diverged(self, what: str, since: str = "") -> RunError:
        return RunError(
            f"{what} at {self.tracker.env_steps:,} env steps: the learning diverged; {since}lower "
            f"agent.learning_rate, or clip gradients or rewards; {self.run} is whole"
        )

    def _write(self, step: int, values: Mapping[str, float], speeds: Mapping[str, float]) -> None:
        self.metrics.write(step, values)
        self.speeds.write(step, {**speeds, **self._elapsed()})
        self.console.write(step, {**values, **speeds})

    def _elapsed(self) -> dict[str, float]:
        return {"speed/seconds": time.perf_counter() - self._start}

    def _evaluate(self) -> bool:
        """Plays greedily in fresh environments; returns whether it never went better.

        A Ctrl-C cuts it off at once: it changes nothing, and the resumed run makes it from its beginning.
        """
        step, signals = self.tracker.env_steps, self._signals
        signals.at_once = True
        try:
            result = self._play(step)
        except KeyboardInterrupt:
            signals.caught = True
            return False
        except RuntimeError as error:
            raise RunError(self._told(error)) from error
        finally:
            signals.at_once = False
        self.tracker.unevaluated = False
        self.speeds.write(step, self._elapsed())
        for note in result.notes:
            self.console.note(note, always=True)
        for report in (self.metrics, self.console):
            report.write(step, result.metrics())
            if result.video:
                report.video(step, result.video)
        if self.tracker.best is not None and result.mean <= self.tracker.best:
            return False
        self._surpassed, self.tracker.best = self.tracker.best, result.mean
        return True

    def _play(self, step: int) -> Evaluation:
        settings = self.experiment.run
        play = partial(
            recorded,
            self.agent,
            self.experiment,
            episodes=settings.evaluate_episodes,
            seed=evaluation_seed(self.experiment),
        )
        if settings.video or self.wandb != "off":
            try:
                return play(video=self.run / "videos" / f"train-{step:012d}.mp4")
            except (UsageError, RunError) as error:
                self.console.note(f"evaluated without a video: {error}", always=True)
        return play()

    def _save(self, *, best: bool = False, background: bool = True) -> None:
        """Writes a checkpoint; where that fails the run goes on, and tries again when it next reports."""
        self._learned()  # weights that are none replace no good ones
        for name, weight in self.agent.state_dict()["policy"].items():
            if weight.is_floating_point() and not weight.isfinite().all():
                raise self._diverged(f"{name} holds what is no number")
        self._names_best = best
        try:
            self.record.sync()  # a checkpoint stands for all that was reported before
            self.checkpoints.save(
                self.tracker.env_steps,
                self.replay,
                best=best,
                background=background,
                agent=self.agent,
                tracker=self.tracker,
                trail=self.trail,
            )
            self._unsaved = False
        except OSError as error:
            self._not_saved(error)

    def _settle(self, *, wait: bool = True) -> None:
        """Takes note of whether the checkpoint written in the background is there."""
        try:
            if wait or not self.checkpoints.writing:
                self.checkpoints.wait()
        except OSError as error:
            self._not_saved(error)

    def _not_saved(self, error: OSError) -> None:
        self._unsaved = True
        if self._names_best:  # whose weights are gone: the best is what there is a checkpoint of
            self.tracker.best, self._names_best = self._surpassed, False
        self.console.note(
            f"no checkpoint at {self.tracker.env_steps:,} env steps: {error}; the one before it stays",
            always=True,
        )
