"""What `rlagents bench` measures in this process: environments, learner, replay, and all of it in the loop.

The one idea: nothing here is a model of the real thing. Frames come from the real environments, rows go
through the real replay, and learning happens in the real loop; a benchmark decides only what is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rlagents import agents, building, machine, toml
from rlagents.agents.graph import Captured
from rlagents.checkpoint import Checkpoints
from rlagents.config import DQN, PQN, Experiment, NetworkLearner
from rlagents.errors import UsageError
from rlagents.loop import Trail, interact
from rlagents.peers import OURS, SB3, Store
from rlagents.replay import Proportional
from rlagents.seeding import Streams
from rlagents.timing import Plan, Report, Row, Thing, measure, progress, ratio
from rlagents.tracker import Tracker
from rlagents.types import Agent, Batch, Metrics, Step, each
from rlagents_envs.config import Atari, CartPole, EnvConfig, Gridworld, Gymnasium
from rlagents_envs.vector import Environments

_RANDOM = ("agent.exploration.kind=epsilon", "agent.exploration.start=1.0", "agent.exploration.end=1.0")
_NEVER = f"agent.learning_starts={2**40}"
_RECORDED = 64  # ticks of the real environments that fill a replay, over and over
_BACKENDS: tuple[EnvConfig, ...] = (
    Gridworld(count=8),
    Gymnasium(id="FrozenLake-v1", backend="sync", count=8),
    Gymnasium(id="FrozenLake-v1", backend="async", count=8),
    Gymnasium(id="FrozenLake-v1", backend="model", count=64),
    *(CartPole(count=count) for count in (8, 64, 1024)),
    *(Atari(game="pong", count=count) for count in (1, 8, 16)),
)


_PHASES = (
    ("checkpoint, training waits", "s"),
    ("checkpoint, on the disk after", "s"),
    ("checkpoint, training lost in all", "s"),
    ("checkpoint, bytes of new rows", "× in memory"),
)


def lasting(plan: Plan) -> Experiment:
    """Returns the experiment as most of a training is: it learns, and exploration has come to its end.

    The user's settings win.
    """
    agent = plan.experiment().agent
    ended = ("agent.exploration.steps=0",) if hasattr(agent.exploration, "steps") else ()
    started = () if isinstance(agent, PQN) else ("agent.learning_starts=1000",)
    return plan.experiment(*started, *ended)


def env(plan: Plan, *, everything: bool = False, act: bool = False) -> Report:
    """Times environments alone, with random actions.

    Args:
        plan: with the experiment whose environments they are.
        everything: every backend, as it comes, in place of the experiment's.
        act: also the experiment's with its agent, which acts and does not learn.
    """
    experiment = plan.experiment()
    on = building.choose_device(experiment.run.device)
    players = [(config, False) for config in (_BACKENDS if everything else (experiment.env,))]
    if act:
        players.append((experiment.env, True))
    things: list[Thing] = []
    with ExitStack() as stack:
        for config, acts in players:
            envs = stack.enter_context(closing(building.environments(config)))
            agent = building.agent(experiment, envs, on, learns=False) if acts else None
            name = f"{_task(config)}, {'agent acts' if acts else 'random'}"
            things.append(Thing(name, ("env steps/s",), _playing(envs, agent)))
        return _report("bench env", plan, experiment, on, measure(things, plan, on))


def update(
    plan: Plan, *, batches: Sequence[int], precisions: Sequence[str], against: Sequence[str] = ()
) -> Report:
    """Times the learner of a DQN on a replay filled by random play, for each batch size and precision.

    It learns through `learn`, while the env steps are counted up as if they were made: so the target network
    is renewed as often as in a training.

    Args:
        plan: with the experiment whose learner it is.
        batches: in place of its batch size.
        precisions: in place of its precision.
        against: settings of the same learner to time in turn with it; how many times as long it takes is then
            told, too.
    """
    agent = plan.experiment().agent
    if not isinstance(agent, DQN):
        raise UsageError(f"agent.kind must be dqn for bench update, got {agent.kind}")
    experiment = plan.experiment("agent.learning_starts=4000")
    on = building.choose_device(experiment.run.device)
    other = " ".join(against)
    names = [f"batch {batch}, {precision}" for batch, precision in product(batches, precisions)]
    things: list[Thing] = []
    for name, (batch, precision) in zip(names, product(batches, precisions), strict=True):
        settings = (f"agent.batch_size={batch}", f"agent.precision={precision}", *_RANDOM)
        things.append(Thing(name, ("updates/s",), _updating(toml.load(experiment, settings), on)))
        if against:
            changed = _updating(toml.load(experiment, (*settings, *against)), on)
            things.append(Thing(f"{name}, {other}", ("updates/s",), changed))
    rows = measure(things, plan, on)
    if against:
        pairs = zip(names, rows[::2], rows[1::2], strict=True)
        rows += [ratio(f"times as long as {other}, {name}", there, here) for name, here, there in pairs]
    return _report("bench update", plan, experiment, on, rows)


def replay(plan: Plan, *, batches: Sequence[int]) -> Report:
    """Times a full replay of the experiment's observations, beside Stable-Baselines3's two if installed.

    Where it is prioritised, writing the priorities of a batch is timed, too.
    """
    experiment = plan.experiment()
    if isinstance(experiment.agent, PQN):
        raise UsageError(
            "agent.kind must be dqn or q_learning for bench replay, got pqn, which has no replay"
        )
    random = toml.load(experiment, (*_RANDOM, _NEVER))
    on, count = building.choose_device(experiment.run.device), experiment.env.count
    with closing(building.environments(experiment.env)) as envs:
        ring = building.agent(experiment, envs, on).replay
        if ring is None:
            raise UsageError("agent.learn_from must be replay for bench replay, got online")
        ticks = _loop(random, envs, building.agent(random, envs, on))
        steps = [step for step, _ in islice(ticks, _RECORDED)]
        stores = {OURS: Store(ring.add, [(step, step.reward) for step in steps], ring.sample, ring.nbytes)}
        if SB3.installed:
            from rlagents.peers import sb3

            stores |= sb3.stores(experiment, envs, steps, on)
    memory = [row for name, store in stores.items() for row in _filled(name, store, experiment, on)]
    insert, *sample = operations = (f"insert × {count}", *(f"sample {batch}" for batch in batches))
    things = [
        Thing(f"{name}, {insert}", ("rows/s",), _calling(store.add, store.rows, count))
        for name, store in stores.items()
    ]
    things += [
        Thing(f"{name}, {operation}", ("µs",), _calling(store.sample, [(batch,)], 1))
        for operation, batch in zip(sample, batches, strict=True)
        for name, store in stores.items()
    ]
    if ring.device.type == "cuda":  # as learner steps draw their batches there
        recorded: Captured[Batch] = Captured("a draw", [ring.sampler.generator])
        for batch in batches:
            drawn = _calling(recorded, [(partial(ring.sample, batch), batch)], 1)
            things.append(Thing(f"{OURS}, sample {batch}, recorded", ("µs",), drawn))
    if isinstance(ring.sampler, Proportional):
        things += [
            Thing(f"{OURS}, priorities {batch}", ("µs",), _prioritising(ring.sampler, batch))
            for batch in batches
        ]
    rows = measure(things, plan, on)
    by_name = {row.name: row for row in rows}
    for name, operation in product(list(stores)[1:], operations):
        ours, theirs = by_name[f"{OURS}, {operation}"], by_name[f"{name}, {operation}"]
        pair = (ours, theirs) if operation == insert else (theirs, ours)  # rates, or times
        rows.append(ratio(f"{OURS} faster than {name}, {operation}", *pair))
    note = f"capacity {experiment.timesteps_kept:,} timesteps"
    missing, extras = ([], [SB3.package]) if SB3.installed else ([SB3.missing], [])
    return _report("bench replay", plan, experiment, on, [*rows, *memory], [note, *missing], extras)


def train(plan: Plan, *, precisions: Sequence[str]) -> Report:
    """Times the loop that trains, without evaluations and checkpoints, once it learns."""
    experiment = lasting(plan)
    on = building.choose_device(experiment.run.device)
    variants = {experiment.agent.kind: experiment}
    config = experiment.agent
    if isinstance(config, NetworkLearner):
        variants = {name: toml.load(experiment, [f"agent.precision={name}"]) for name in precisions}
    sizes: list[Row] = []
    starts = experiment.timesteps_kept if isinstance(config, PQN) else config.learning_starts
    notes = [f"learning from env step {starts:,} on"]
    with ExitStack() as stack:
        things: list[Thing] = []
        for name, variant in variants.items():
            envs = stack.enter_context(closing(building.environments(variant.env)))
            agent = building.agent(variant, envs, on)
            things.append(Thing(name, ("env steps/s", "updates/s"), _training(variant, envs, agent)))
            if agent.replay is not None:
                sizes.append(Row(name, "MB of full replay", (agent.replay.nbytes / 1e6,)))
        rows = [*measure(things, plan, on), *sizes]
    return _report("bench train", plan, experiment, on, rows, notes)


def checkpoint(plan: Plan, *, timesteps: int, folder: Path) -> Report:
    """Times checkpoints of a full replay, and reading the last one back.

    What a training loses is the time until a checkpoint is on the disk, less what the env steps made
    meanwhile take without one. Rows are from the experiment's environments, over and over.

    Args:
        plan: with the experiment whose replay it is.
        timesteps: that are new at each checkpoint, and more if training makes more of them in a piece.
        folder: where there is room for the replay; what is written there is removed.
    """
    experiment = lasting(plan)
    on, count = building.choose_device(experiment.run.device), experiment.env.count
    with TemporaryDirectory(dir=folder) as place, closing(building.environments(experiment.env)) as envs:
        building.require_memory(experiment, envs, on)
        agent = building.agent(experiment, envs, on)
        if (ring := agent.replay) is None:
            raise UsageError("agent must learn from a replay for bench checkpoint")
        steps = [(step, step.reward) for step, _ in islice(_loop(experiment, envs, agent), _RECORDED)]
        checkpoints = Checkpoints(Path(place), compress=experiment.checkpoint.compress)
        segments = Path(place) / "replay"
        progress("filling the replay, and writing all of it")
        _grow(ring.add, steps, ring.rows)
        training = _training(experiment, envs, agent)
        next(training)  # it learns
        start = perf_counter()
        checkpoints.save(0, ring, agent=agent)
        rows = [Row("whole replay, on the disk after", "s", (perf_counter() - start,))]
        pieces: list[tuple[float, ...]] = []
        saved = ring.time
        for number in range(1, plan.repeat + 1):
            progress(f"{number} of {plan.repeat}")
            start, made = perf_counter(), 0
            while (passed := perf_counter() - start) < plan.seconds:
                made += next(training)[0]
            speed = made / passed
            _grow(ring.add, steps, max(0, saved + timesteps // count - ring.time))
            new, saved = (ring.time - saved) * ring.nbytes / ring.rows, ring.time
            before, start, made = set(segments.iterdir()), perf_counter(), 0
            checkpoints.save(number, ring, background=True, agent=agent)
            stopped = perf_counter() - start
            while checkpoints.writing:
                made += next(training)[0]
            checkpoints.wait()
            passed = perf_counter() - start
            written = sum(file.stat().st_size for file in set(segments.iterdir()) - before)
            pieces.append((stopped, passed, passed - made / speed, written / new))
        for (told, unit), samples in zip(_PHASES, zip(*pieces, strict=True), strict=True):
            rows.append(Row(told, unit, samples))
        size = ring.nbytes
        del ring, agent, training  # a resume has one replay in memory
        again = building.agent(experiment, envs, on)
        assert again.replay is not None
        resident = machine.resident(on)
        machine.forget_peak()
        start = perf_counter()
        Checkpoints(Path(place)).newest(again.replay).restore(agent=again)
        again.replay.reopen()
        rows.append(Row("resume, all back after", "s", (perf_counter() - start,)))
        peak = machine.peak()
        if resident is not None and peak is not None and on.type == "cpu":
            rows.append(Row("resume, peak memory", "× the replay", ((peak - resident) / size,)))
        progress("")
        kept = f"{experiment.timesteps_kept:,} timesteps, {size / 1e9:.3g} GB"
        notes = [f"the replay holds {kept}; a checkpoint after every {timesteps:,} new ones"]
        return _report("bench checkpoint", plan, experiment, on, rows, notes)


def _report(
    command: str,
    plan: Plan,
    experiment: Experiment,
    on: torch.device,
    rows: Sequence[Row],
    notes: Sequence[str] = (),
    extras: Sequence[str] = (),
) -> Report:
    known, versions = machine.describe(on), machine.versions(*extras)
    return Report(command, plan, experiment, known, versions, rows, notes)


def _task(env: EnvConfig) -> str:
    """Returns what environments are called in a table."""
    names = (env.kind, *(getattr(env, name, "") for name in ("game", "id", "backend")))
    return " ".join([*filter(None, names), f"× {env.count}"])


def _playing(envs: Environments, agent: Agent | None) -> Iterator[tuple[int]]:
    """Steps for ever; yields the env steps of each tick, of which a reset is none."""
    rng = np.random.default_rng(0)
    obs, mask = envs.reset(0)
    ended = np.zeros(envs.count, np.bool_)
    choices = cycle(rng.integers(envs.actions, size=(1024, envs.count)))

    def tensor(array: Any) -> torch.Tensor:
        return torch.as_tensor(array, device=agent.device if agent else None)

    while True:
        action = next(choices)
        if agent is not None:
            action = agent.act(each(tensor, obs), mask=mask)
        elif mask is not None:
            action = np.where(mask, rng.random(mask.shape), -1).argmax(1)
        envs.send(action)
        outcome = envs.recv()
        yield (envs.count - int(np.count_nonzero(ended)),)
        obs, mask, ended = outcome.obs, outcome.mask, outcome.ended


def _loop(
    experiment: Experiment, envs: Environments, agent: agents.AnyAgent
) -> Iterator[tuple[Step, Metrics]]:
    trail = Trail(Streams(experiment.run.seed), envs.count, envs.actions)
    return interact(envs, agent, trail, reset_every=experiment.run.reset_every)


def _training(
    experiment: Experiment, envs: Environments, agent: agents.AnyAgent
) -> Iterator[tuple[int, int]]:
    """Trains for ever; yields env steps and learner steps of each tick, from the first learner step on."""
    tracker = Tracker(envs.count)
    learned = env_steps = 0
    for step, _ in _loop(experiment, envs, agent):
        tracker.update(step)
        if learned:
            yield tracker.env_steps - env_steps, agent.learner_steps - learned
        learned, env_steps = agent.learner_steps, tracker.env_steps


def _updating(experiment: Experiment, on: torch.device) -> Iterator[tuple[int]]:
    """Fills the replay, then updates for ever; yields the updates of each call."""
    config = experiment.agent
    assert isinstance(config, DQN)  # `update` saw to it
    with closing(building.environments(experiment.env)) as envs:
        agent = building.agent(experiment, envs, on)
        for _ in _loop(experiment, envs, agent):
            if agent.replay and agent.env_steps >= config.learning_starts:
                break
    stride = max(experiment.env.count, config.learn_every)
    while True:
        before = agent.learner_steps
        agent.env_steps += stride
        agent.learn()
        yield (agent.learner_steps - before,)


def _filled(name: str, store: Store, experiment: Experiment, on: torch.device) -> list[Row]:
    """Fills a replay; returns the memory that it takes."""
    ticks = experiment.timesteps_kept // experiment.env.count
    timesteps = ticks * experiment.env.count
    before = machine.resident(on)
    _grow(store.add, store.rows, ticks)
    after = machine.resident(on)
    size = store.nbytes / timesteps
    rows = [Row(name, "bytes/timestep", (size,)), Row(name, "GB/million", (size / 1e3,))]
    if before is not None and after is not None and on.type == "cpu":
        rows.append(Row(name, "bytes/timestep, resident", ((after - before) / timesteps,)))
    return rows


def _grow(add: Callable[..., object], rows: Sequence[tuple[Any, ...]], ticks: int) -> None:
    for row in islice(cycle(rows), ticks):
        add(*row)


def _prioritising(sampler: Proportional, batch: int) -> Iterator[tuple[int]]:
    """Writes the priorities of the same rows for ever; yields 1 for each batch."""
    row, error = sampler.draw(batch)
    yield from _calling(sampler.update, [(row, error)], 1)


def _calling(
    function: Callable[..., object], arguments: Sequence[tuple[Any, ...]], amount: int
) -> Iterator[tuple[int]]:
    """Calls for ever; yields what each call does."""
    done = (amount,)
    for given in cycle(arguments):
        function(*given)
        yield done
