"""Exact planning: the textbook's tables, the known values of toy text, and an independent formula."""

from itertools import islice

import numpy as np
import pytest

from rlagents import planning
from rlagents_envs import model_of
from rlagents_envs.config import Corridor, Gridworld, Gymnasium
from rlagents_envs.model import Model, settle


def lake(slippery: bool = True) -> Model:
    return model_of(Gymnasium(id="FrozenLake-v1", kwargs={"is_slippery": slippery}))


MODELS = {
    "gridworld": model_of(Gridworld()),
    "corridor": model_of(Corridor()),
    "lake": lake(),
    "firm": lake(slippery=False),
    "cliff": model_of(Gymnasium(id="CliffWalking-v1")),
    "taxi": model_of(Gymnasium(id="Taxi-v4")),
}


def start(model: Model, value: np.ndarray) -> float:
    return float(model.start @ value)


@pytest.mark.parametrize(
    ("name", "discount", "expected", "tolerance"),
    [
        ("gridworld", 0.9, 0.81, 1e-12),
        ("firm", 0.9, 0.59049, 1e-12),
        ("lake", 0.9, 0.06889, 5e-6),
        ("lake", 0.99, 0.54203, 5e-6),
        ("lake", 1.0, 0.82353, 5e-6),
        ("cliff", 1.0, -13, 1e-12),
        ("taxi", 1.0, 7.93, 1e-9),
    ],
)
def test_value_iteration_has_the_known_values(
    name: str, discount: float, expected: float, tolerance: float
) -> None:
    q, sweeps = planning.value_iteration(MODELS[name], discount)
    assert start(MODELS[name], MODELS[name].values(q)) == pytest.approx(expected, abs=tolerance)
    assert sweeps > 3
    np.testing.assert_array_equal(q, MODELS[name].optimal_q(discount))


def test_uniform_policy_evaluation_is_the_textbooks_sweep_by_sweep() -> None:
    """Places are (row, column) of the textbook; what is not named is 0."""
    model = MODELS["gridworld"]
    up, right, down, left = range(4)
    entering = {(1, 3, down): 1.0, (2, 2, right): 1.0}
    second = {(1, 2, right): 0.45, (1, 2, down): 0.3, (2, 1, right): 0.3}
    third = {(1, 1, right): 0.225, (1, 1, down): 0.135, (1, 3, left): 0.225}
    third |= {(2, 2, up): 0.225, (2, 2, left): 0.135}
    fourth = {(1, 2, right): 0.55125, (1, 2, down): 0.408, (2, 1, right): 0.408, (1, 2, left): 0.162}
    fourth |= {(2, 1, up): 0.162}
    expected = [entering, entering | second, entering | second | third]
    sweeps = list(islice(model.sweeps(0.9, planning.uniform(model)), 4))
    for sweep, told in zip(sweeps, [*expected, expected[-1] | fourth], strict=True):
        for (row, column, action), choice in np.ndenumerate(model.choices.reshape(2, 3, 4)):
            if choice:
                value = sweep.reshape(2, 3, 4)[row, column, action]
                assert value == pytest.approx(told.get((row + 1, column + 1, action), 0), abs=1e-12)


@pytest.mark.parametrize("name", ["gridworld", "corridor", "lake", "firm", "taxi", "cliff"])
def test_policy_iteration_agrees_with_value_iteration(name: str) -> None:
    model = MODELS[name]
    q, policy, rounds = planning.policy_iteration(model, 0.95)
    np.testing.assert_allclose(q, model.optimal_q(0.95), atol=1e-9)
    assert (policy.sum(1) == model.choices.any(1)).all()
    assert not policy[~planning.best_actions(model, q)].any()
    assert 1 <= rounds <= 20


@pytest.mark.parametrize("name", ["gridworld", "lake", "cliff"])
def test_policy_evaluation_solves_the_linear_equations(name: str) -> None:
    model, discount = MODELS[name], 0.9
    rng = np.random.default_rng(0)
    policy = np.where(model.choices, rng.random(model.choices.shape), 0)
    policy /= np.maximum(policy.sum(1, keepdims=True), 1e-9)
    states = len(model.start)
    moves, pay = np.zeros((states, states)), np.zeros(states)
    for state, action, outcome in np.ndindex(model.successor.shape):
        weight = policy[state, action] * model.probability[state, action, outcome]
        pay[state] += weight * model.reward[state, action, outcome]
        if not model.ends[state, action, outcome]:
            moves[state, model.successor[state, action, outcome]] += weight
    value = np.linalg.solve(np.eye(states) - discount * moves, pay)
    q = planning.evaluate_policy(model, policy, discount)
    np.testing.assert_allclose(model.values(q, policy), value, atol=1e-9)


def test_a_step_limit_bounds_what_can_be_reached() -> None:
    model = MODELS["lake"]
    assert start(model, planning.within(model, 100)) == pytest.approx(0.7442, abs=5e-5)
    for discount, expected in ((0.9, 0.730), (0.99, 0.740), (1.0, 0.740)):
        policy = planning.greedy(model, model.optimal_q(discount))
        assert start(model, planning.within(model, 100, policy)) == pytest.approx(expected, abs=5e-4)
    firm = MODELS["firm"]
    assert [start(firm, planning.within(firm, limit)) for limit in (1, 5, 6)] == [0, 0, 1]


def test_equally_good_actions_are_all_named_and_the_first_is_taken() -> None:
    model = MODELS["gridworld"]
    q = model.optimal_q(0.9)
    assert planning.best_actions(model, q)[0].tolist() == [False, True, True, False]
    assert planning.greedy(model, q)[0].tolist() == [0, 1, 0, 0]
    assert not planning.greedy(model, q)[5].any()  # the goal


def test_values_without_bound_are_told() -> None:
    model = MODELS["cliff"]
    up = np.eye(4)[np.zeros(48, np.int64)]
    with pytest.raises(ValueError, match="discount must be below 1 where a policy may never end"):
        settle(model.sweeps(1.0, up), most=200)


def test_states_that_no_episode_goes_on_in_are_not_reachable() -> None:
    assert np.flatnonzero(~MODELS["cliff"].reachable).tolist() == list(range(37, 48))  # cliff and goal
    assert MODELS["taxi"].reachable.sum() == 400  # not those where the passenger is there already
    assert np.flatnonzero(MODELS["lake"].terminal).tolist() == [5, 7, 11, 12, 15]
