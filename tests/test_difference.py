"""Where two runs part."""

import json
import shutil

import pytest
from click.testing import CliRunner

import rlagents
from rlagents import cli, difference
from rlagents.checkpoint import Checkpoints
from rlagents.errors import RunError

GRID = {
    "run": {"env_steps": 400, "evaluate_every": 200, "evaluate_episodes": 2, "checkpoint_every": 100},
    "env": {"kind": "gridworld", "count": 2},
    "agent": {"kind": "q_learning", "discount": 0.9},
}


def compare(one, other):
    return CliRunner().invoke(cli.main, ["compare", "--exact", str(one), str(other)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return [rlagents.train(GRID, out=folder / name, quiet=True) for name in "ab"]


@pytest.fixture
def runs(trained, tmp_path):
    """Two runs of one seed, to do anything to."""
    return [shutil.copytree(run, tmp_path / run.name) for run in trained]


def test_runs_of_one_seed_do_not_differ(runs):
    result = compare(*runs)
    assert (result.exit_code, result.output.split()[:2]) == (0, ["no", "difference"])


def test_the_first_line_and_its_values_are_told(runs):
    file = runs[1] / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[6]["train/loss"] = 0.5
    rows[9]["train/loss"] = 0.25
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[6])
    result = compare(*runs)
    assert result.exit_code == 1
    told = f"{rows[6]['step']} env steps: metrics.jsonl, line 7: train/loss {before['train/loss']} | 0.5"
    assert told in result.output
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    assert difference.first(*runs) == (rows[3]["step"], f"{runs[1]} ends before it")


def test_a_weight_that_differs_is_named(runs):
    loaded = rlagents.load(runs[1])
    value = loaded.agent.q[2, 1].item()
    loaded.agent.q[2, 1] += 1
    Checkpoints(runs[1]).save(loaded.step, None, agent=loaded.agent)
    told = f"checkpoint: agent/policy/q[0, 2, 1] {value} | {value + 1}"
    assert difference.first(*runs) == (loaded.step, told)


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        difference.first(runs[0], tmp_path / "none")
