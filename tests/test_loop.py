"""The order of the loop, what a step holds, and the way back."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from playing import make
from rlagents.loop import Trail, interact
from rlagents.seeding import Streams
from rlagents.tracker import Tracker
from rlagents.types import Step

CPU = torch.device("cpu")


class Recorder:
    """An agent that plays at random and writes down what happens to it."""

    def __init__(self, actions, tape, seed=0):
        self.device, self.env_steps, self.tape, self.actions = CPU, 0, tape, actions
        self.generator = torch.Generator().manual_seed(seed)
        self.steps: list[Step] = []

    def act(self, obs, *, mask=None, first=None, epsilon=None, generator=None):
        self.tape.append("act")
        return torch.randint(self.actions, (len(obs),), generator=self.generator).numpy()

    def observe(self, step):
        self.tape.append("observe")
        self.steps.append(step)
        self.env_steps += int((~step.final).sum())

    def learn(self):
        self.tape.append("learn")
        return {}


class Taped:
    """Environments that write down when they are sent and received."""

    def __init__(self, envs, tape):
        self.envs, self.tape = envs, tape

    def __getattr__(self, name):
        return getattr(self.envs, name)

    def reset(self, seed):
        self.tape.append("reset")
        return self.envs.reset(seed)

    def send(self, actions):
        self.tape.append("send")
        self.envs.send(actions)

    def recv(self):
        self.tape.append("recv")
        return self.envs.recv()


def run(ticks, *, reset_every=10**9, kind="corridor", trail=None, **table):
    tape = []
    envs = Taped(make(kind=kind, count=3, **table), tape)
    agent = Recorder(envs.actions, tape)
    trail = trail or Trail(Streams(1), envs.count, envs.actions)
    loop = interact(envs, agent, trail, reset_every=reset_every)
    for _ in range(ticks):
        next(loop)
    return agent, trail, tape, loop


@pytest.mark.parametrize(
    ("threads", "tick"),
    [
        pytest.param(1, ["act", "send", "learn", "recv", "observe"], id="a-core-to-spare"),
        pytest.param(2, ["act", "send", "recv", "learn", "observe"], id="learning-takes-every-core"),
    ],
)
def test_the_order_of_calls(threads, tick, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    _, _, tape, _ = run(3)
    assert tape == ["reset", *tick * 3]


def test_steps_follow_on_and_say_where_episodes_open_and_close():
    agent, _, _, _ = run(300, kind="gridworld", time_limit=7)
    steps = agent.steps
    assert steps[0].first.all()
    assert not steps[0].final.any()
    for one, other in pairwise(steps):
        assert torch.equal(one.next_obs, other.obs)
        assert np.array_equal(one.next_mask, other.mask)
        assert np.array_equal(other.final, one.terminated | one.truncated)  # no lives here
        assert np.array_equal(other.first, one.final)
        assert not one.reward[one.final].any()
        assert not (one.terminated | one.truncated)[one.final].any()
    assert sum(step.terminated.sum() for step in steps) > 10
    assert sum(step.truncated.sum() for step in steps) > 10
    assert agent.env_steps == sum(int((~step.final).sum()) for step in steps)


def test_a_full_reset_truncates_live_episodes_and_closes_their_rows():
    agent, trail, tape, _ = run(8, reset_every=12, time_limit=100)
    assert tape.count("reset") == 2
    assert trail.resets == 1
    before, closing, after = agent.steps[3:6]
    live = ~before.final & ~before.terminated
    assert live.any()
    assert np.array_equal(before.truncated, live)
    assert closing.final.all()
    assert torch.equal(closing.obs, before.next_obs)
    assert after.first.all()
    assert not after.final.any()


def test_seeds_of_full_resets_differ_and_come_from_the_run_s_seed():
    seeds = []
    for seed in (1, 2):
        trail = Trail(Streams(seed), 2, 2)
        for _ in range(3):
            seeds.append(trail.seed)
            trail.restart()
    assert len(set(seeds)) == 6
    assert seeds[0] == Trail(Streams(1), 2, 2).seed


@pytest.mark.parametrize("table", [{"kind": "cartpole"}, {"kind": "atari", "game": "pong", "sticky": 0.25}])
def test_a_trail_leads_back(table):
    agent, trail, _, loop = run(60, **table)
    saved = trail.state_dict()
    copy = Trail(Streams(1), 3, 2)
    copy.load_state_dict(saved)
    tape = []
    envs = make(count=3, **table)
    twin = Recorder(envs.actions, tape)
    twin.generator.set_state(agent.generator.get_state())
    again = interact(envs, twin, copy, reset_every=10**9)
    for _ in range(20):
        one, other = next(loop)[0], next(again)[0]
        for name in ("obs", "action", "reward", "terminated", "truncated", "next_obs", "first", "final"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert trail.checksum == copy.checksum
    assert tape[0] == "act"  # the agent had no part in the way back
    envs.close()


def test_a_trail_that_leads_elsewhere_is_noticed():
    _, trail, _, _ = run(30, kind="cartpole")
    state = trail.state_dict()
    state["actions"][10] = 1 - state["actions"][10]
    trail.load_state_dict(state)
    envs = make(kind="cartpole", count=3)
    loop = interact(envs, Recorder(2, []), trail, reset_every=10**9)
    with pytest.raises(RuntimeError, match="must return to where they were"):
        next(loop)


class Mortal(Taped):
    """Environments of which one, at one tick, is lost with its simulator."""

    replayable = False

    def __init__(self, envs, tape, lane, tick):
        super().__init__(envs, tape)
        self.lane, self.left = lane, tick

    def recv(self):
        outcome = super().recv()
        self.left -= 1
        if self.left:
            return outcome
        lost = np.arange(self.count) == self.lane
        return outcome._replace(
            reward=np.where(lost, 0, outcome.reward).astype(np.float32),
            terminated=outcome.terminated & ~lost,
            truncated=outcome.truncated | lost,
            ended=outcome.ended | lost,
            lost=lost,
        )


def test_a_lost_step_is_no_transition_and_counts_nowhere():
    envs = Mortal(make(kind="gridworld", count=3, time_limit=50), [], lane=1, tick=3)
    agent, tracker = Recorder(envs.actions, []), Tracker(3)
    loop = interact(envs, agent, Trail(Streams(1), 3, envs.actions), reset_every=10**9)
    for _ in range(5):
        tracker.update(next(loop)[0])
    lanes = [tuple(bool(flags[1]) for flags in (s.first, s.final, s.truncated)) for s in agent.steps]
    assert lanes == [
        (True, False, False),
        (False, False, False),
        (False, True, False),  # this action's outcome is not known
        (True, True, False),  # what the environment made up, before its reset
        (True, False, False),
    ]
    assert agent.steps[2].lost.tolist() == [False, True, False]
    assert agent.env_steps == tracker.env_steps
    assert tracker.env_steps == 15 - 2 - sum(int(step.final[[0, 2]].sum()) for step in agent.steps)
    assert tracker.episodes == sum(int(step.final[[0, 2]].sum()) for step in agent.steps)


def test_what_cannot_be_replayed_goes_on_with_new_episodes_from_a_new_seed():
    tape = []
    envs = Mortal(make(kind="corridor", count=2), tape, lane=0, tick=10**9)
    trail = Trail(Streams(1), 2, 2)
    next(interact(envs, Recorder(2, tape), trail, reset_every=10**9))
    trail.checksum += 1  # of no use here
    twin = Recorder(2, tape)
    step, _ = next(interact(envs, twin, trail, reset_every=10**9))
    assert trail.resets == 1
    assert trail.length == 1
    assert step.first.all()


def test_a_trail_grows_and_keeps_one_byte_for_each_action():
    _, trail, _, _ = run(3000)
    assert trail.actions.shape == (3000, 3)
    assert trail.state_dict()["actions"].dtype == torch.uint8
    assert set(np.unique(trail.actions)) == {0, 1}
