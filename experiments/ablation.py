"""Trains one experiment after the other, each with several seeds, and tabulates what they learned.

    python experiments/ablation.py cartpole --seeds 1 2 3 4 5
    python experiments/ablation.py pong --seeds 1 2 3 --out runs/ablation

There is nothing behind it but two loops. Settings after the name are for all experiments alike. A run that is
there already is gone on with, and one that has come to its end is only read; so this can be broken off and
started again. Columns are env steps: the greedy return of all seeds' evaluations there, their mean; the last
column has the evaluation at the end of each seed.
"""

import argparse
from pathlib import Path
from statistics import mean

import rlagents
from rlagents import runs
from rlagents.report.jsonl import read

# An experiment each, with the settings that make another one of it. The first is what the others add to.
ABLATIONS = {
    "cartpole": (
        "cartpole-double agent.double=false",
        "cartpole-double",
        "cartpole-dueling",
        "cartpole-per",
        "cartpole-c51",
        "cartpole-qrdqn",
        "cartpole-iqn",
        "cartpole-noisy",
        "cartpole-rainbow",
    ),
    "pong": (
        "pong-double agent.double=false",
        "pong-double",
        "pong-dueling",
        "pong-per",
        "pong-c51",
        "pong-qrdqn",
        "pong-iqn",
        "pong-dqn",
        "pong-rainbow",
    ),
}


def evaluations(run: Path) -> dict[int, float]:
    """Returns the mean returns of a run, by the env steps at which they were due."""
    every = runs.read(run).run.evaluate_every
    rows = [row for row in read(run / "metrics.jsonl") if "evaluate/return_mean" in row]
    return {row["step"] // every * every: row["evaluate/return_mean"] for row in rows}


def main() -> None:
    """Runs the ablation and prints its table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ablation", choices=ABLATIONS)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    given = parser.parse_intermixed_args()
    curves: dict[str, list[dict[int, float]]] = {}
    for experiment in ABLATIONS[given.ablation]:
        name, *changes = experiment.split()
        for seed in given.seeds:
            run = given.out / experiment.replace(" ", "_") / f"seed{seed}"
            if (run / "config.toml").exists():
                rlagents.train(resume=run, quiet=True)
            else:
                rlagents.train(name, *changes, *given.settings, seed=seed, out=run, quiet=True)
            curves.setdefault(experiment, []).append(evaluations(run))
    steps = sorted({step for found in curves.values() for curve in found for step in curve})
    print("| experiment |", *(f"{step:,} |" for step in steps), "at the end, by seed |")
    print("|---|" + "---|" * (len(steps) + 1))
    for experiment, found in curves.items():
        means = (f"{mean(c[step] for c in found):.4g} |" if step in found[0] else "|" for step in steps)
        print(f"| `{experiment}` |", *means, ", ".join(f"{c[max(c)]:.4g}" for c in found), "|")


if __name__ == "__main__":
    main()
