"""Trains variants of an experiment, one after the other, and tabulates their evaluations.

    python experiments/search.py pong-dqn experiments/pong-search.txt --seeds 1 2 3 --out runs/search

The file names one variant a line, as the settings that `rlagents train` takes; a line that starts with # is
none. Runs that are there already are not repeated, so a search can be broken off and gone on with. The last
column tells how many channels of the first convolution are zero everywhere in 64 observations of the replay:
units that died.
"""

import argparse
from pathlib import Path
from statistics import median

import rlagents  # isort: skip  # before torch: it says how OpenMP threads wait
import torch
import torch.nn.functional as F

from rlagents import runs
from rlagents.checkpoint import Checkpoints
from rlagents.networks.bodies import Images
from rlagents.report.jsonl import read


def dead(run: Path) -> str:
    """Returns how many channels of the first convolution never fire, of how many."""
    agent = runs.load(run, device="cpu").agent
    Checkpoints(run).newest(agent.replay)
    agent.replay.reopen()
    body = agent.online.bodies[0]
    first = body.layers[0]
    images = Images.prepare(body, agent.replay.sample(64).obs, torch.float32)  # pixel by pixel
    with torch.no_grad():
        units = F.conv2d(images, first.weight / 255, first.bias, first.stride)
    alive = int((units > 0).any(3).any(2).any(0).sum())
    return f"{units.shape[1] - alive} of {units.shape[1]}"


def main() -> None:
    """Runs the search and prints its table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("variants", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    given = parser.parse_args()
    lines = [line.strip() for line in given.variants.read_text("utf-8").splitlines()]
    variants = [line for line in lines if not line.startswith("#")]
    print(
        "| variant | seed | greedy return at env steps | env steps/s | dead channels |\n|---|---|---|---|---|"
    )
    for variant in variants:
        for seed in given.seeds:
            name = variant.replace("/", "-").replace(" ", "_") or "as-it-is"
            run = given.out / given.experiment / name / f"seed{seed}"
            if not (run / "config.toml").exists():
                rlagents.train(given.experiment, *variant.split(), seed=seed, out=run, quiet=True)
            rows = [row for row in read(run / "metrics.jsonl") if "evaluate/return_mean" in row]
            curve = ", ".join(f"{row['evaluate/return_mean']:.1f} at {row['step']:,}" for row in rows)
            key = "speed/env_steps_per_second"
            speed = f"{median(row[key] for row in read(run / 'timings.jsonl') if key in row):.0f}"
            print(f"| `{variant or 'as it is'}` | {seed} | {curve} | {speed} | {dead(run)} |", flush=True)


if __name__ == "__main__":
    main()
