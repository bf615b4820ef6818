"""The tabular agent: every method against exact values and against a naive twin."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from learning import build, train
from playing import make
from rlagents import building, evaluation, experiments, planning
from rlagents.agents.exploration import epsilon_greedy, probabilities
from rlagents.loop import Trail, interact
from rlagents.seeding import Streams
from rlagents.types import Step
from rlagents_envs import model_of
from rlagents_envs.config import Gymnasium
from rlagents_envs.model import ModelEnvironments
from rlagents_envs.vector import Leaf

UNIFORM = {"start": 1.0, "end": 1.0, "steps": 0}
GREEDY = {"start": 0.0, "end": 0.0, "steps": 0}

# What each method learns under a uniform behaviour: Q*, or the values of that behaviour.
TO_THE_BEST = {
    "q-learning": {},
    "double": {"double": True},
    "replay": {"learn_from": "replay", "learn_every": 16, "learning_starts": 64, "batch_size": 64},
    "watkins-lambda": {"n_step": 6, "trace_decay": 0.9, "cut_traces": True},
    "watkins-n-step": {"n_step": 3, "cut_traces": True},
}
TO_THE_BEHAVIOUR = {
    "sarsa": {"target_policy": "sampled"},
    "expected-sarsa": {"target_policy": "expected"},
    "double-expected-sarsa": {"target_policy": "expected", "double": True},
    "expected-sarsa-replay": {"target_policy": "expected", **TO_THE_BEST["replay"]},
    "n-step-sarsa": {"target_policy": "sampled", "n_step": 4},
    "sarsa-lambda": {"target_policy": "sampled", "n_step": 6, "trace_decay": 0.8},
}
METHODS = {**TO_THE_BEST, **TO_THE_BEHAVIOUR}


def lakes(count=64):
    """Slippery lakes in which episodes begin anywhere, so that every entry is met as often."""
    model = model_of(Gymnasium(id="FrozenLake-v1"))
    anywhere = (model.reachable & ~model.terminal).astype(float)
    return ModelEnvironments(replace(model, start=anywhere), None, count=count, picture=lambda _: None)


def learned(envs, method, *, env_steps, rate, rate_end):
    """Returns the largest distance of a method's table from what it should be."""
    agent = build(
        envs.layout,
        envs.actions,
        environments=envs.count,
        env_steps=env_steps,
        kind="q_learning",
        discount=0.9,
        learning_rate=rate,
        learning_rate_end=rate_end,
        exploration=UNIFORM,
        replay={"capacity": 64_000},
        **METHODS[method],
    )
    train(envs, agent, env_steps)
    model = envs.model
    exact = model.optimal_q(0.9)
    if method in TO_THE_BEHAVIOUR:
        exact = planning.evaluate_policy(model, planning.uniform(model), 0.9)
    return np.nanmax(np.abs(np.where(model.choices, agent.q.numpy() - exact, np.nan)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_to_its_exact_table_of_the_gridworld(method):
    """Within 1e-6 where nothing is left to chance, and within 0.03 where what follows is."""
    by_chance = method in ("sarsa", "n-step-sarsa", "sarsa-lambda")
    envs = make(kind="gridworld", count=16)
    env_steps, rate, rate_end = (60_000, 0.1, 0.001) if by_chance else (20_000, 0.5, 0.5)
    distance = learned(envs, method, env_steps=env_steps, rate=rate, rate_end=rate_end)
    assert distance < (0.03 if by_chance else 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_close_to_its_exact_table_of_the_slippery_lake(method):
    """Within 0.05, of values up to 0.64."""
    assert learned(lakes(), method, env_steps=200_000, rate=0.2, rate_end=0.001) < 0.05


def naive_goal(path, table, other, acts_on, epsilon, lane, config):
    """Returns the goal of the first step, by the definition, one lane at a time."""

    def value(state, mask, step_after, cut_off):
        legal = [action for action in range(4) if mask[action]]
        if config.target_policy == "greedy":
            return other[state, max(legal, key=lambda action: table[state, action])]
        if config.target_policy == "sampled" and not cut_off:
            return other[state, int(step_after.action[lane])]
        best = max(acts_on[state, action] for action in legal)
        ties = [action for action in legal if acts_on[state, action] == best]
        spread = {action: epsilon / len(legal) for action in legal}
        for action in ties:
            spread[action] += (1 - epsilon) / len(ties)
        return sum(share * other[state, action] for action, share in spread.items())

    def goal(k):
        step = path[k]
        reward = float(step.reward[lane])
        if step.terminated[lane]:
            return reward
        state, mask = int(step.next_obs[lane]), step.next_mask[lane]
        bootstrap = value(state, mask, path[k + 1], bool(step.truncated[lane]))
        carry = config.trace_decay
        if k == config.n_step - 1 or step.truncated[lane]:
            carry = 0
        elif config.cut_traces:
            best = max(acts_on[state, action] for action in range(4) if mask[action])
            carry *= acts_on[state, int(path[k + 1].action[lane])] == best
        ahead = (1 - carry) * bootstrap + (carry * goal(k + 1) if carry else 0)
        return reward + config.discount * ahead

    return goal(0)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("target_policy", ["greedy", "expected", "sampled"])
@pytest.mark.parametrize(
    "returns",
    [
        {"n_step": 1},
        {"n_step": 3},
        {"n_step": 4, "trace_decay": 0.7},
        {"n_step": 4, "trace_decay": 0.7, "cut_traces": True},
    ],
    ids=str,
)
def test_goals_agree_with_a_naive_twin(target_policy, double, returns):
    lanes, states = 200, 50_000  # so many that no two lanes meet in one entry
    table = {"target_policy": target_policy, "double": double, "discount": 0.8, "learning_rate": 1.0}
    explore = {"start": 0.3, "end": 0.3, "steps": 0}
    layout = Leaf("index", (), "int64", size=states)
    agent = build(layout, 4, kind="q_learning", exploration=explore, **table, **returns)
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.rand, generator=generator)
    agent._tables[:] = draw(agent._tables.shape, dtype=torch.float64).numpy()
    before, acts_on = agent._tables.copy(), agent.q.numpy().copy()
    obs, path, final = torch.randperm(states, generator=generator)[:lanes], [], np.zeros(lanes, bool)
    for _ in range(6):
        ended, dead = (draw(lanes) < 0.3).numpy(), (draw(lanes) < 0.5).numpy()
        next_obs = torch.randint(states, (lanes,), generator=generator)
        mask = (draw(lanes, 4) < 0.7).numpy()
        mask[:, 2] = True
        terminated, truncated = ended & dead & ~final, ended & ~dead & ~final
        action = torch.randint(4, (lanes,), generator=generator).numpy()
        path.append(
            Step(obs, action, draw(lanes).numpy(), terminated, truncated, next_obs, ~final, final, None, mask)
        )
        obs, final = next_obs, terminated | truncated
    for step in path[: agent._horizon]:
        agent.observe(step)
    agent.learn()
    moved = np.argwhere(agent._tables != before)
    assert len(moved) == lanes
    for which, state, action in moved:
        lane = int((path[0].obs == state).nonzero()[0, 0])
        assert action == path[0].action[lane]
        tables = before[which], before[1 - which] if double else before[0]
        goal = naive_goal(path, *tables, acts_on, 0.3, lane, agent.config)
        assert agent._tables[which, state, action] == pytest.approx(goal, abs=1e-12)
    assert {int(which) for which, *_ in moved} == ({0, 1} if double else {0})


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_the_policys_probabilities_are_those_of_its_choices(epsilon):
    values = torch.tensor([[1.0, 3.0, 3.0, 5.0]])
    mask = torch.tensor([[True, True, True, False]])
    likely = probabilities(values, epsilon, mask)[0]
    assert likely.sum().item() == pytest.approx(1)
    many = values.expand(40_000, 4), epsilon, torch.Generator().manual_seed(0), mask.expand(40_000, 4)
    share = torch.bincount(epsilon_greedy(*many, ties=True), minlength=4) / 40_000
    torch.testing.assert_close(share, likely, atol=0.012, rtol=0)


def test_an_optimistic_start_tries_everything_without_exploration():
    envs = make(kind="corridor", count=1, length=4)
    table = {"kind": "q_learning", "discount": 0.9, "learning_rate": 1.0, "exploration": GREEDY}
    hopeful = train(envs, build(envs.layout, 2, environments=1, initial_value=2.0, **table), 300)
    assert (hopeful.q.numpy() < 1.9).all()
    assert (hopeful.q.numpy().argmax(1) == 1).all()


def test_ties_are_broken_by_the_stream_of_exploration_but_not_in_an_evaluation():
    layout = Leaf("index", (), "int64", size=1)
    agents = [build(layout, 4, kind="q_learning", exploration=GREEDY, seed=seed) for seed in (1, 1, 2)]
    state = torch.zeros(1000, dtype=torch.int64)
    one, same, other = (agent.act(state) for agent in agents)
    assert np.bincount(one, minlength=4).min() > 200
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not agents[0].act(state, epsilon=0.0).any()


def test_a_tuple_of_indices_is_one_state():
    envs = make(kind="gymnasium", id="Blackjack-v1", count=8)
    agent = build(envs.layout, envs.actions, environments=8, kind="q_learning", exploration=UNIFORM)
    assert agent.q.shape == (32 * 11 * 2, 2)
    obs = {"0": torch.tensor([20, 0]), "1": torch.tensor([10, 0]), "2": torch.tensor([1, 1])}
    rows = torch.arange(704.0)[:, None].expand(704, 2)
    agent._tables[0] = rows.numpy()
    expected = np.ravel_multi_index(([20, 0], [10, 0], [1, 1]), (32, 11, 2))
    assert agent.q_values(obs)[:, 0].tolist() == expected.tolist()
    agent._tables[:] = 0
    train(envs, agent, 20_000)
    twenty = agent.q.numpy().reshape(32, 11, 2, 2)[20, 2:, 0]  # [card of the dealer, action]
    assert (twenty[:, 0] > twenty[:, 1]).all()  # stick


@pytest.mark.parametrize("learn_from", ["online", "replay"])
@pytest.mark.parametrize("env_steps", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("target_policy", ["greedy", "expected"])
def test_a_table_with_masks_never_takes_an_illegal_action(target_policy, env_steps, learn_from):
    envs = make(kind="gymnasium", id="Taxi-v4", backend="model", count=16)
    agent = build(
        envs.layout,
        envs.actions,
        environments=16,
        kind="q_learning",
        target_policy=target_policy,
        learn_from=learn_from,
        learn_every=16,
        exploration={"start": 1.0, "end": 0.0, "steps": env_steps // 2},
    )
    for step, _ in interact(envs, agent, Trail(Streams(1), 16, 6), reset_every=env_steps // 3):
        assert step.mask[np.arange(16), step.action][~step.final].all()
        if agent.env_steps > env_steps:
            break
    illegal = ~envs.model.legal
    assert not agent.q.numpy()[illegal].any()  # never taken, never learned


def walk(name, *settings):
    """Trains a shipped experiment on the cliff; returns the cells of its greedy walk from the start."""
    experiment = experiments.load(name, settings)
    envs = building.environments(experiment.env)
    agent = train(envs, building.agent(experiment, envs, torch.device("cpu")), experiment.run.env_steps)
    model, greedy = envs.model, agent.q.numpy().argmax(1)
    cells = [36]
    while cells[-1] != 47 and len(cells) < 50:
        cells.append(int(model.successor[cells[-1], greedy[cells[-1]], 0]))
    return cells


def test_q_learning_walks_along_the_cliff_and_sarsa_does_not():
    edge = range(25, 35)  # the cells above the cliff
    assert walk("cliffwalking-q-learning", "env.count=32") == [
        36,
        *range(24, 36),
        47,
    ]  # the shortest way, of 13 steps
    for name in ("cliffwalking-sarsa", "cliffwalking-expected-sarsa"):
        cells = walk(name, "env.count=32")
        assert cells[-1] == 47
        assert not set(cells) & set(edge)
        assert len(cells) - 1 in (15, 17)


@pytest.mark.parametrize(("longest", "found"), [(100, True), (1, False)])
def test_random_actions_that_are_held_find_the_end_of_a_corridor_and_single_ones_do_not(longest, found):
    experiment = experiments.load("corridor-q-learning", [f"agent.exploration.longest={longest}"])
    envs = building.environments(experiment.env)
    q = train(envs, building.agent(experiment, envs, torch.device("cpu")), experiment.run.env_steps).q
    exact = envs.model.optimal_q(experiment.agent.discount)
    np.testing.assert_allclose(q.numpy(), exact if found else 0)


def test_the_taxi_learns_faster_with_masks_of_its_legal_actions():
    """After 40 000 env steps, when neither is done: the mean return of a hundred greedy episodes."""
    scores = {}
    for name in ("taxi-q-learning", "taxi-q-learning-unmasked"):
        experiment = experiments.load(name, ["env.count=16"])
        envs = building.environments(experiment.env)
        agent = train(envs, building.agent(experiment, envs, torch.device("cpu")), 40_000)
        scores[name] = evaluation.recorded(agent, experiment, episodes=100, seed=5).mean
    assert scores["taxi-q-learning"] > scores["taxi-q-learning-unmasked"] + 20


@pytest.mark.parametrize("n_step", [1, 2, 3, 4, 5])
def test_no_return_reaches_across_a_lost_step(n_step):
    """The simulator died in the second step: the first one brought 1 + 0.5 * 8, whatever came later."""
    table = {"discount": 0.5, "learning_rate": 1.0, "exploration": GREEDY, "n_step": n_step}
    agent = build(Leaf("index", (), "int64", size=2), 2, environments=1, kind="q_learning", **table)
    agent._tables[0] = [[0.0, 0.0], [8.0, 0.0]]

    def seen(obs, reward, next_obs, *, final=False, first=False):
        action, reward, no, first, final = map(np.atleast_1d, (0, reward, False, first, final))
        return Step(torch.tensor([obs]), action, reward, no, no, torch.tensor([next_obs]), first, final)

    agent.observe(seen(0, 1.0, 1, first=True))
    agent.observe(seen(1, 0.0, 1, final=True))  # lost
    agent.observe(seen(1, 0.0, 1, final=True))  # closing
    agent.observe(seen(1, 100.0, 1, first=True))
    for _ in range(n_step):
        agent.observe(seen(1, 100.0, 1))
    agent._online()  # from the oldest step
    assert agent._tables[0, 0, 0] == 5.0
