"""`rlagents solve`, and the distance of a learned table from what it prints."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import rlagents
from rlagents import cli, solving, tables
from rlagents.errors import RunError, UsageError
from rlagents_envs import model_of
from rlagents_envs.config import Gymnasium

GRID = {"env": {"kind": "gridworld", "count": 4}}
AGENT = {"kind": "q_learning", "discount": 0.9, "exploration": {"end": 1.0}, "learning_rate": 0.5}


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, arguments, prog_name="rlagents")
    return result.exit_code, result.output


def test_solve_prints_values_and_arrows() -> None:
    code, text = call("solve", "gridworld", "agent.discount=0.9")
    assert code == 0
    assert "worth 0.81000 at discount 0.9" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["0.810000", "0.900000", "1.000000"] in rows
    assert ["(1,2)", "-", "0.900000", "0.900000", "0.729000"] in rows
    assert ["│", "→↓", "│", "→↓", "│", "↓", "│"] in rows


def test_solve_takes_an_experiment_a_kind_or_an_id() -> None:
    by_name = solving.solve("frozenlake-q-learning")
    by_id = solving.solve("FrozenLake-v1", ["agent.discount=0.99", "env.kwargs.is_slippery=true"])
    np.testing.assert_array_equal(by_name.q, by_id.q)
    assert "at most 0.7442, 0.7402 with these actions" in by_id.summary()["limit"]
    assert solving.solve("corridor", ["env.length=3"]).q.shape == (3, 2)
    cliff = solving.solve("CliffWalking-v1", ["agent.discount=1"])
    assert "limit" not in cliff.summary()
    assert np.isnan(cliff.value[37:]).all()  # the cliff, and the goal
    assert cliff.value[36] == -13


def test_states_that_are_no_grid_are_listed_without_a_map(tmp_path: Path) -> None:
    code, text = call("solve", "Taxi-v4", "agent.discount=1")
    assert code == 0
    assert "worth 7.93000" in text
    assert "│" not in text
    assert sum(line[0].isdigit() for line in text.splitlines()) == 400
    code, text = call("solve", "Taxi-v4", "--picture", str(tmp_path / "taxi.png"))
    assert (code, text) == (2, "error: --picture needs states that are cells of a grid, got Taxi-v4\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["Blackjack-v1"], "Blackjack-v1 has no model to use"),
        (["cartpole"], "env.kind must be one whose model is known, got cartpole"),
        (["FrozenLak-v1"], "env.id must be a registered environment, got 'FrozenLak-v1'"),
        (["gridworld", "env.row=3"], "env.row is not a key, got 3; did you mean env.rows?"),
    ],
)
def test_what_cannot_be_solved_is_one_line(arguments: list[str], complaint: str) -> None:
    code, text = call("solve", *arguments)
    assert code == 2
    assert text.startswith(f"error: {complaint}")
    assert len(text.splitlines()) == 1


def test_arrows_point_where_actions_lead() -> None:
    up, right, down, left = (-1, 0), (0, 1), (1, 0), (0, -1)
    for slippery in (False, True):
        lake = model_of(Gymnasium(id="FrozenLake-v1", kwargs={"is_slippery": slippery}))
        assert tables.directions(lake) == [left, down, right, up]
    assert tables.directions(model_of(Gymnasium(id="CliffWalking-v1"))) == [up, right, down, left]
    assert tables.directions(model_of(Gymnasium(id="Taxi-v4"))) == [None] * 6
    assert tables.action_names(model_of(Gymnasium(id="Taxi-v4"))) == list("012345")


def test_the_picture_has_a_cell_for_each_state_and_dark_ones_where_nothing_goes_on(tmp_path: Path) -> None:
    lake = solving.solve("FrozenLake-v1")
    lake.draw(tmp_path / "new" / "lake.png")
    picture = np.asarray(Image.open(tmp_path / "new" / "lake.png"))
    assert picture.shape == (480, 480, 3)
    cells = picture.reshape(4, 120, 4, 120, 3).swapaxes(1, 2).reshape(16, 120, 120, 3)
    blank = [len(np.unique(cell.reshape(-1, 3), axis=0)) == 1 for cell in cells]
    assert np.flatnonzero(blank).tolist() == [5, 7, 11, 12, 15]
    backgrounds = cells[:, 3, 3].sum(1)
    assert backgrounds.argmax() == 14  # beside the goal: the highest value is the brightest
    (tmp_path / "taken").touch()
    with pytest.raises(RunError, match="cannot write"):
        lake.draw(tmp_path / "taken" / "lake.png")
    with pytest.raises(UsageError, match="cells of a grid"):
        solving.solve("Taxi-v4").draw(tmp_path / "taxi.png")


def test_evaluate_tells_how_far_a_table_is_from_the_exact_one(tmp_path: Path) -> None:
    run = rlagents.train(
        {**GRID, "run": {"env_steps": 4000, "keep": 99}, "agent": AGENT}, out=tmp_path / "run", quiet=True
    )
    code, text = call("evaluate", str(run), "--json", str(tmp_path / "out.json"))
    assert code == 0
    (line,) = [line for line in text.splitlines() if line.startswith("exact")]
    assert "value of the start 0.81, exactly 0.81" in line
    exact = json.loads((tmp_path / "out.json").read_text())["exact"]
    assert exact["largest"] < 1e-6
    assert exact["mean"] <= exact["largest"]
    untrained = rlagents.evaluate(run, checkpoint=0, episodes=1).exact
    assert untrained is not None
    assert (untrained.largest, untrained.start) == (1, 0)
    assert untrained.exact == pytest.approx(0.81)


def test_without_table_or_model_there_is_no_distance(tmp_path: Path) -> None:
    blackjack = {"kind": "gymnasium", "id": "Blackjack-v1", "count": 2}
    run = rlagents.train(
        {"run": {"env_steps": 20}, "env": blackjack, "agent": AGENT}, out=tmp_path / "run", quiet=True
    )
    assert rlagents.evaluate(run, episodes=2).exact is None
