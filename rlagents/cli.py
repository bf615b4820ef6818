"""The command line: parses, prints, and turns errors into exit codes; everything else happens elsewhere.

Nothing but click is imported before a command runs, so that `rlagents --help` answers at once.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import click

from rlagents.errors import RunError, UsageError

if TYPE_CHECKING:
    from rlagents.config import Experiment
    from rlagents.evaluation import Evaluation
    from rlagents.timing import Plan, Report

_Command: TypeAlias = Callable[..., Any]
_Wandb: TypeAlias = Literal["off", "offline", "online"]
_RUN = "rlagents.run"  # where the context keeps the directory of the run that is being trained


class _Commands(click.Group):
    """The one place where errors become a line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command: exit code 2 for usage and configuration, 1 for the rest, 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            command = (getattr(error, "ctx", None) or ctx).command_path
            lines, code = f"{error.format_message().rstrip('.')} (see `{command} --help`)", error.exit_code
        except UsageError as error:
            lines, code = str(error), 2
        except RunError as error:
            lines, code = str(error), 1
        except KeyboardInterrupt:
            run = ctx.meta.get(_RUN)
            saved = run is not None and (run / "checkpoints").is_dir()
            click.echo(
                "interrupted" + (f"; go on with: rlagents train --resume {run}" if saved else ""), err=True
            )
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if os.environ.get("RLAGENTS_DEBUG"):
                raise
            what = " ".join(f"{type(error).__name__}: {error}".split())
            lines, code = f"unexpected {what}; set RLAGENTS_DEBUG=1 for the traceback", 1
        for line in lines.splitlines():
            click.echo(f"error: {line}", err=True)
        raise click.exceptions.Exit(code)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="rlagents")
def main() -> None:
    """Value-based reinforcement learning, from a Q-table to Atari."""


_trust = click.option("--trust", is_flag=True, help="Import what a run that was not made here names.")


@main.command()
@click.argument("experiment", required=False)
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on with a run.")
@click.option("--seed", type=int, help="Short for run.seed=N.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Short for run.device=….")
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Default: runs/<experiment>/<id>."
)
@click.option("--wandb", type=click.Choice(["off", "offline", "online"]), default="off", show_default=True)
@click.option("--quiet", is_flag=True, help="Print the last line only.")
@_trust
@click.pass_context
def train(
    ctx: click.Context,
    experiment: str | None,
    settings: tuple[str, ...],
    resume: Path | None,
    seed: int | None,
    device: str | None,
    out: Path | None,
    wandb: _Wandb,
    quiet: bool,
    trust: bool,
) -> None:
    """Train EXPERIMENT, a name or a path, with settings such as agent.learning_rate=1e-4."""
    if resume is not None:
        setting = settings or (experiment and "=" in experiment)
        given = {"KEY=VALUE": setting, "--seed": seed is not None, "--device": device, "--out": out}
        if beside := [name for name, value in given.items() if value]:
            raise click.UsageError(f"--resume goes on with a run as it is: leave out {', '.join(beside)}")
        _resume(ctx, resume, experiment, wandb, quiet, trust)
        return
    if experiment is None:
        raise click.UsageError(
            "EXPERIMENT must be given: a name of `rlagents list experiments`, or a TOML file"
        )

    from rlagents import experiments

    file = experiments.find(experiment)
    short = {"run.seed": seed, "run.device": device}
    config = experiments.load(
        file, [*settings, *(f"{key}={value}" for key, value in short.items() if value is not None)]
    )

    from rlagents import runs, training

    _importable(config, file, trust=trust)
    run = ctx.meta[_RUN] = out or runs.place(config)
    if not quiet:
        click.echo(f"experiment  {file}\ntrains      {_summary(config)}\nwrites      {run}")
    training.train(config, out=run, wandb=wandb, quiet=quiet)
    if not quiet:
        click.echo(f"watch it    rlagents evaluate {run} --render video")


def _resume(
    ctx: click.Context, run: Path, experiment: str | None, wandb: _Wandb, quiet: bool, trust: bool
) -> None:
    """Goes on with a run, if the experiment named beside it is its own."""
    from rlagents import experiments, runs, training

    config = runs.trusted(run, trust=trust)
    file = experiments.find(experiment) if experiment else None
    if file and (other := experiments.load(file).run.name) != config.run.name:
        raise UsageError(
            f"EXPERIMENT beside --resume must be the run's own, {config.run.name}, got {other}; leave it out"
        )
    _importable(config, file, trust=trust)
    ctx.meta[_RUN] = run
    training.resume(run, wandb=wandb, quiet=quiet, trust=trust)


def _checkpoint(ctx: click.Context, parameter: click.Parameter, value: str) -> str | int:
    """Returns `latest`, `best` or a number of env steps."""
    if value in ("latest", "best"):
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"must be latest, best or a number of env steps, got {value}") from None


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("settings", metavar="[env.KEY=VALUE]...", nargs=-1)
@click.option("--episodes", type=click.IntRange(1), default=30, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Default: 1 000 000 above the run's.")
@click.option("--epsilon", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="0: greedy.")
@click.option(
    "--checkpoint", metavar="latest|best|STEPS", default="latest", show_default=True, callback=_checkpoint
)
@click.option("--render", type=click.Choice(["none", "human", "video"]), default="none", show_default=True)
@click.option(
    "--suite",
    "suites",
    metavar="all|NAME",
    multiple=True,
    help="Play the episodes of a suite of the environment instead; may be repeated.",
)
@click.option(
    "--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here."
)
@_trust
def evaluate(
    run: Path,
    settings: tuple[str, ...],
    suites: tuple[str, ...],
    episodes: int,
    seed: int | None,
    epsilon: float,
    checkpoint: str | int,
    render: Literal["none", "human", "video"],
    file: Path | None,
    trust: bool,
) -> None:
    """Play whole episodes with the agent of RUN in fresh environments, otherwise set up if you like."""
    from rlagents import evaluation, runs

    _importable(runs.trusted(run, trust=trust))
    options: dict[str, Any] = {
        "episodes": episodes,
        "seed": seed,
        "epsilon": epsilon,
        "checkpoint": checkpoint,
        "json": file,
        "trust": trust,
        "settings": settings,
    }
    if suites:
        if render != "none":
            raise UsageError(f"--suite must be without --render, got --render {render}")
        names = () if "all" in suites else suites
        _suites(evaluation.evaluate_suites(run, names=names, **options), runs.read(run).env.suite_metrics)
        return
    result = evaluation.evaluate(run, render=render, **options)
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    how = f"epsilon {result.epsilon:g}" if result.epsilon else "greedy"
    rows = {"run": f"{run}, {how}, seed {result.seed}", "score": str(result)}
    if result.sticky:
        rows["sticky"] = str(result.sticky)
    if result.exact:
        rows["exact"] = str(result.exact)
    if result.summary:
        columns = {"agent": result.summary, **result.baselines}
        rows["played by"] = "".join(f"{name:>12}" for name in columns)
        for name in result.summary:
            rows[f"  {name}"] = "".join(f"{values.get(name, nan):>12.4g}" for values in columns.values())
    if result.video:
        rows["video"] = str(result.video)
    if file:
        rows["json"] = str(file)
    click.echo(_columns(rows))


def _suites(results: "Iterator[tuple[str, Evaluation]]", metrics: Sequence[str]) -> None:
    """Prints a table of suites, each as soon as it has been played."""
    titles = [metric.split("_") for metric in metrics]
    widths = [max(map(len, title)) + 2 for title in titles]
    for number, (name, result) in enumerate(results):
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        if not number:
            for line in range(max(map(len, titles))):
                words = ["".join(title[line : line + 1]) for title in titles]
                click.echo(" " * 26 + "".join(f"{word:>{w}}" for word, w in zip(words, widths, strict=True)))
        for driver, values in {"agent": result.summary, **result.baselines}.items():
            cells = [f"{values.get(metric, nan):.4g}" for metric in metrics]
            click.echo(
                f"{name:18}{driver:8}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
            )


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@click.option("--exact", is_flag=True, required=True, help="To the last bit.")
@click.pass_context
def compare(ctx: click.Context, run: Path, other: Path, exact: bool) -> None:
    """Tell the first env step at which two runs differ, and in what; exit code 1 if they do."""
    from rlagents import difference

    found = difference.first(run, other)
    if found is None:
        click.echo("no difference in metrics.jsonl, nor in the checkpoints that both have")
        return
    click.echo(f"they differ first at {found.step:,} env steps: {found.what}")
    ctx.exit(1)


@main.command(name="list")
@click.argument("what", type=click.Choice(["experiments", "environments", "agents"]), required=False)
def list_(what: str | None) -> None:
    """List what there is to train, to train on and to train with."""
    import rlagents_envs
    from rlagents import config, experiments

    agents = get_args(get_args(config.AgentConfig)[0])
    tables: dict[str, Mapping[str, str]] = {
        "experiments": experiments.names(),
        "environments": dict(rlagents_envs.describe()),
        "agents": {each.model_fields["kind"].default: str(each.__doc__).splitlines()[0] for each in agents},
    }
    if what:
        _write(_columns(tables[what]))
    else:
        _write("\n\n".join(f"{title}:\n{_columns(rows, '  ')}" for title, rows in tables.items()))


@main.command()
@click.argument("experiment")
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
def show(experiment: str, settings: tuple[str, ...]) -> None:
    """Print every setting of EXPERIMENT, as TOML."""
    from rlagents import experiments, toml

    _write(toml.dump(experiments.load(experiment, settings)).rstrip("\n"))


@main.command()
@click.argument("environment")
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--picture",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the values of a grid and its best actions, as PNG.",
)
@_trust
def solve(environment: str, settings: tuple[str, ...], picture: Path | None, trust: bool) -> None:
    """Print the exact values of ENVIRONMENT: an experiment, a kind such as gridworld, or a Gymnasium id.

    Settings are such as agent.discount=0.9 or env.kwargs.is_slippery=false.
    """
    import rich.console

    from rlagents import solving

    _importable(solving.described(environment, settings, trust=trust))
    solution = solving.solve(environment, settings, trust=trust)
    if picture:
        solution.draw(picture)
    click.echo(_columns(solution.summary() | ({"picture": str(picture)} if picture else {})))
    solution.show(rich.console.Console())


@main.group()
def bench() -> None:
    """Measure how fast this machine is at the parts and the whole of a training."""


def _bench(name: str, experiment: str, seconds: float) -> Callable[[Callable[..., "Report"]], click.Command]:
    """Makes a command of what returns a report: it gets the plan, and the options that are its own."""

    def make(measure: Callable[..., "Report"]) -> click.Command:
        @bench.command(name)
        @click.argument("arguments", metavar="[EXPERIMENT] [KEY=VALUE]...", nargs=-1)
        @click.option(
            "--repeat", type=click.IntRange(1), default=5, show_default=True, help="Pieces of each."
        )
        @click.option(
            "--seconds",
            type=click.FloatRange(0, min_open=True),
            default=seconds,
            show_default=True,
            help="Length of a piece.",
        )
        @click.option(
            "--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write every sample here."
        )
        @_trust
        @functools.wraps(measure)
        def command(
            arguments: tuple[str, ...],
            repeat: int,
            seconds: float,
            file: Path | None,
            trust: bool,
            **options: Any,
        ) -> None:
            from rlagents import experiments
            from rlagents.timing import Plan

            named = bool(arguments) and "=" not in arguments[0]
            path = experiments.find(arguments[0] if named else experiment)
            plan = Plan(path, arguments[named:], repeat, seconds)
            _importable(plan.experiment(), path, trust=trust)
            report = measure(plan, **options)
            report.show()
            if file:
                report.write(file)

        return command

    return make


def _precisions(command: _Command) -> _Command:
    """Adds the option that stands for `agent.precision`."""
    choice, both = click.Choice(["float32", "bfloat16"]), ("float32", "bfloat16")
    text = "In place of agent.precision; may be repeated."
    return click.option(
        "--precision", "precisions", type=choice, multiple=True, default=both, show_default=True, help=text
    )(command)


def _batches(*sizes: int) -> Callable[[_Command], _Command]:
    """Adds the option that stands for `agent.batch_size`."""
    text = "In place of agent.batch_size; may be repeated."
    return click.option(
        "--batch",
        "batches",
        type=click.IntRange(1),
        multiple=True,
        default=sizes,
        show_default=True,
        help=text,
    )


@_bench("env", "pong-dqn", 2.0)
@click.option("--all", "everything", is_flag=True, help="Every backend in place of the experiment's.")
@click.option("--act", is_flag=True, help="Also with the agent that acts, in one batched pass.")
def _bench_env(plan: "Plan", everything: bool, act: bool) -> "Report":
    """Env steps a second of the environments of EXPERIMENT alone."""
    from rlagents import bench

    return bench.env(plan, everything=everything, act=act)


@_bench("update", "pong-dqn", 2.0)
@_batches(32, 64, 256)
@_precisions
@click.option(
    "--against",
    multiple=True,
    metavar="KEY=VALUE",
    help="Also with this setting, and how many times as long it takes without; may be repeated.",
)
def _bench_update(
    plan: "Plan", batches: tuple[int, ...], precisions: tuple[str, ...], against: tuple[str, ...]
) -> "Report":
    """Updates a second of the learner of EXPERIMENT alone."""
    from rlagents import bench

    return bench.update(plan, batches=batches, precisions=precisions, against=against)


@_bench("replay", "pong-dqn", 1.0)
@_batches(32, 256)
def _bench_replay(plan: "Plan", batches: tuple[int, ...]) -> "Report":
    """Insertion, sampling and memory of the replay of EXPERIMENT, beside Stable-Baselines3's."""
    from rlagents import bench

    return bench.replay(plan, batches=batches)


@_bench("checkpoint", "pong-dqn", 5.0)
@click.option(
    "--timesteps", type=click.IntRange(1), default=10_000, show_default=True, help="New at each checkpoint."
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Where there is room for the replay; default: here.",
)
def _bench_checkpoint(plan: "Plan", timesteps: int, folder: Path) -> "Report":
    """Checkpoints of a full replay of EXPERIMENT, and reading the last one back."""
    from rlagents import bench

    return bench.checkpoint(plan, timesteps=timesteps, folder=folder)


@_bench("train", "pong-dqn-nature", 10.0)
@_precisions
def _bench_train(plan: "Plan", precisions: tuple[str, ...]) -> "Report":
    """Env steps and updates a second while EXPERIMENT trains."""
    from rlagents import bench

    return bench.train(plan, precisions=precisions)


@_bench("peers", "pong-dqn-nature", 20.0)
@_precisions
@click.option("--until", "score", type=float, metavar="SCORE", help="Train to this greedy mean instead.")
def _bench_peers(plan: "Plan", precisions: tuple[str, ...], score: float | None) -> "Report":
    """EXPERIMENT here and in Stable-Baselines3's DQN, in turn, each time in a process of its own."""
    from rlagents.peers import compare

    return compare.compare(plan, precisions=precisions, score=score)


def _importable(config: "Experiment", file: Path | None = None, *, trust: bool = False) -> None:
    """Lets `id = "my_env:MyEnv-v0"` find a module in the current folder, or else beside the experiment.

    An experiment that names no module finds none there. A run directory is perhaps a stranger's: it is
    trusted first, and no module in it is found.
    """
    from rlagents import provenance, runs

    if not provenance.imports(config):
        return
    folders = [str(Path.cwd())]
    if file is not None:
        runs.require_trust(file, trust=trust)
        if file.name != "config.toml":
            folders.append(str(file.resolve().parent))
    sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]


def _summary(config: "Experiment") -> str:
    """Returns what a training will do, in one line."""
    run, env = config.run, config.env
    task = " ".join(filter(None, (env.kind, getattr(env, "game", ""), getattr(env, "id", ""))))
    return f"{config.agent.kind} on {task} × {env.count}: {run.env_steps:,} env steps, seed {run.seed}"


def _columns(rows: Mapping[str, str], indent: str = "") -> str:
    """Returns names and texts in two columns."""
    width = max((len(name) for name in rows), default=0)
    return "\n".join(f"{indent}{name:{width}}  {text}".rstrip() for name, text in rows.items())


def _write(text: str) -> None:
    """Prints for `| head`, which may close the pipe before the end."""
    try:
        click.echo(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
