"""The ring against a naive replay that keeps whole transitions, and its sampler."""

import errno
import mmap
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlagents.replay import Ring, Uniform
from rlagents.types import Step, each
from rlagents_envs.vector import Leaf

CPU = torch.device("cpu")
DISCOUNT = 0.9


def ring(layout, *, environments, rows, n_step, seed=0, actions=4, discount=DISCOUNT):
    generator = torch.Generator().manual_seed(seed)
    return Ring(
        layout,
        actions,
        environments=environments,
        capacity=rows * environments,
        n_step=n_step,
        discount=discount,
        sampler=Uniform(rows * environments, generator),
        device=CPU,
    )


class Naive:
    """Random streams of experience, and every transition in them built by hand.

    Frames are numbered, so that a wrong one shows. `life_losses` makes some terminations go on with the next
    row, as a lost life does in Atari.
    """

    def __init__(self, environments, stack, length, seed, *, life_losses=False, masks=False):
        rng = np.random.default_rng(seed)
        self.steps, self.log, self.stack = [], [[] for _ in range(environments)], stack
        self.cut = rng.random((length, environments)) < (0.2 if life_losses else 0)
        first, final = np.ones(environments, bool), np.zeros(environments, bool)
        history = [[] for _ in range(environments)]
        number = 1
        for _ in range(length):
            obs = np.zeros((environments, stack, 1, 2), np.float32)
            for i in range(environments):
                if first[i]:
                    history[i] = []
                history[i].append(number)
                number += 1
                seen = history[i][-stack:]
                obs[i, stack - len(seen) :, 0, 0] = seen
            action = rng.integers(4, size=environments)
            reward = np.where(final, 0, rng.normal(size=environments)).astype(np.float32)
            terminated = ~final & (rng.random(environments) < 0.1)
            truncated = ~final & ~terminated & (rng.random(environments) < 0.1)
            ended = terminated & (rng.random(environments) < 0.5 if life_losses else True) | truncated
            mask = rng.random((environments, 4)) < 0.7 if masks else None
            self.steps.append(
                Step(
                    obs=torch.from_numpy(obs),
                    action=action,
                    reward=reward,
                    terminated=terminated,
                    truncated=truncated,
                    next_obs=torch.zeros(()),
                    first=first,
                    final=final,
                    mask=mask,
                )
            )
            for i in range(environments):
                legal = None if mask is None else mask[i]
                self.log[i].append(
                    (obs[i], action[i], reward[i], terminated[i], truncated[i], final[i], legal)
                )
            first, final = final, ended

    def transition(self, i, t, n_step):
        total, discount, k = 0.0, 1.0, 0
        while k < n_step:
            _, _, reward, terminated, truncated, _, _ = self.log[i][t + k]
            total += discount * reward
            discount *= DISCOUNT
            k += 1
            if terminated:
                discount = 0.0
            if terminated or truncated or self.cut[t + k, i]:
                break
        return (
            self.log[i][t][0],
            self.log[i][t][1],
            total,
            discount,
            self.log[i][t + k][0],
            self.log[i][t + k][6],
        )


def layout_of(stack):
    return Leaf("pixels", (stack, 1, 2), "float32", stack)


def sampleable(replay):
    queue = replay.sampler
    place = torch.arange(queue._start, queue._end) % len(queue._queue)
    return queue._queue[place]


@pytest.mark.parametrize(
    ("n_step", "stack", "rows", "life_losses"), [*product((1, 2, 3, 5), (1, 3), (12, 40, 400), (False, True))]
)
def test_every_sampleable_row_is_the_transition_built_by_hand(n_step, stack, rows, life_losses):
    environments, length = 3, 150
    naive = Naive(environments, stack, length, n_step * 100 + rows, life_losses=life_losses, masks=True)
    replay = ring(layout_of(stack), environments=environments, rows=rows, n_step=n_step)
    for step, cut in zip(naive.steps, naive.cut, strict=True):
        replay.add(step, step.reward, cut if life_losses else None)
    row = sampleable(replay)
    expected = [
        (t, i)
        for t in range(max(0, length - rows + stack - 1), length - n_step)
        for i in range(environments)
        if not naive.log[i][t][5]
    ]
    assert row.tolist() == [t % rows * environments + i for t, i in expected]
    batch = replay.gather(row, torch.ones(len(row)))
    for b, (t, i) in enumerate(expected):
        obs, action, reward, discount, next_obs, mask = naive.transition(i, t, n_step)
        assert batch.obs[b].tolist() == obs.tolist()
        assert batch.action[b] == action
        assert batch.reward[b].item() == pytest.approx(reward, abs=1e-5)
        assert batch.discount[b].item() == pytest.approx(discount, abs=1e-6)
        assert batch.next_obs[b].tolist() == next_obs.tolist()
        assert batch.mask[b].tolist() == mask.tolist()


@pytest.mark.parametrize("horizon", [1, 2, 4])
def test_another_horizon_gives_what_a_ring_of_that_n_and_discount_gives(horizon):
    naive = Naive(3, 2, 150, 7, life_losses=True, masks=True)
    common = {"environments": 3, "rows": 40}
    longest = ring(layout_of(2), n_step=5, discount=0.5, **common)
    short = ring(layout_of(2), n_step=horizon, **common)
    for step, cut in zip(naive.steps, naive.cut, strict=True):
        longest.add(step, step.reward, cut)
        short.add(step, step.reward, cut)
    longest.set_horizons((horizon,), DISCOUNT)
    row = sampleable(longest)
    assert len(row) < len(sampleable(short))  # rows are not let in earlier: later n may be longer again
    mine, theirs = (replay.gather(row, torch.ones(len(row))) for replay in (longest, short))
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)


def test_with_several_horizons_a_batch_has_the_returns_of_each():
    naive = Naive(3, 2, 150, 7, life_losses=True, masks=True)
    replay = ring(layout_of(2), n_step=5, environments=3, rows=40)
    for step, cut in zip(naive.steps, naive.cut, strict=True):
        replay.add(step, step.reward, cut)
    row = sampleable(replay)
    batches = []
    for horizons in ((1, 5), (1,), (5,)):
        replay.set_horizons(horizons, DISCOUNT)
        batches.append(replay.gather(row, torch.ones(len(row))))
    both, *alone = batches
    for name in ("reward", "discount", "next_obs", "mask"):
        expected = torch.cat([getattr(batch, name) for batch in alone])
        assert torch.equal(getattr(both, name), expected), name
    for name in ("obs", "action", "row", "weight", "obs_mask"):
        assert torch.equal(getattr(both, name), getattr(alone[0], name)), name


@settings(max_examples=40, deadline=None)
@given(
    environments=st.integers(1, 4),
    stack=st.integers(1, 4),
    n_step=st.integers(1, 4),
    spare=st.integers(1, 30),
    length=st.integers(1, 80),
    seed=st.integers(0, 2**31),
)
def test_a_final_row_or_a_torn_one_is_never_sampled(environments, stack, n_step, spare, length, seed):
    rows = stack + n_step + spare
    naive = Naive(environments, stack, length, seed)
    replay = ring(layout_of(stack), environments=environments, rows=rows, n_step=n_step)
    for step in naive.steps:
        replay.add(step, step.reward)
        final = torch.from_numpy(replay._final).view(-1)
        assert not final[sampleable(replay)].any()
        assert len(replay) == len(sampleable(replay)) <= rows * environments
    if len(replay):
        batch = replay.sample(16)
        numbers = batch.obs[:, :, 0, 0]
        assert (numbers[:, -1] > 0).all()  # the newest frame is always there
        assert ((numbers[:, 1:] == 0) <= (numbers[:, :-1] == 0)).all()  # zeros only before the others


def test_without_a_mask_a_batch_has_none_and_a_late_mask_leaves_older_rows_all_legal():
    naive, masked = Naive(2, 1, 6, 0), Naive(2, 1, 6, 1, masks=True)
    replay = ring(layout_of(1), environments=2, rows=20, n_step=1)
    for step in naive.steps:
        replay.add(step, step.reward)
    assert replay.sample(4).mask is None
    for step in masked.steps:
        replay.add(step, step.reward)
    row = sampleable(replay)
    mask = replay.gather(row, torch.ones(len(row))).mask
    time = row // 2
    assert mask[time < 5].all()
    assert not mask[time >= 5].all()


def test_dictionaries_are_stored_entry_by_entry():
    layout = {"image": Leaf("pixels", (2, 1, 2), "float32", 2), "speed": Leaf("vector", (3,), "float32")}
    naive = Naive(2, 2, 30, 3)
    replay = ring(layout, environments=2, rows=50, n_step=2)
    plain = ring(layout_of(2), environments=2, rows=50, n_step=2)
    for t, step in enumerate(naive.steps):
        both = {"image": step.obs, "speed": torch.full((2, 3), float(t))}
        replay.add(step._replace(obs=both), step.reward)
        plain.add(step, step.reward)
    batch, same = replay.sample(32), plain.sample(32)
    assert torch.equal(batch.row, same.row)
    assert torch.equal(batch.obs["image"], same.obs)
    assert torch.equal(batch.obs["speed"][:, 0], (batch.row // 2).float())


def test_only_the_newest_frame_is_kept():
    replay = ring(Leaf("pixels", (4, 84, 84), "uint8", 4), environments=8, rows=125, n_step=1)
    per_row = replay.nbytes / 1000
    assert per_row < 7200  # 1 M timesteps of Pong take at most 7.2 GB
    replay.add(
        Step(
            obs=torch.arange(4, dtype=torch.uint8)[None, :, None, None].expand(8, 4, 84, 84),
            action=np.zeros(8, np.int64),
            reward=np.zeros(8, np.float32),
            terminated=np.zeros(8, bool),
            truncated=np.zeros(8, bool),
            next_obs=torch.zeros(()),
            first=np.ones(8, bool),
            final=np.zeros(8, bool),
        ),
        np.zeros(8, np.float32),
    )
    assert (replay._frames[""][:8] == 3).all()


def test_uniform_sampling_is_uniform_after_the_ring_has_wrapped():
    naive = Naive(3, 2, 200, 5)
    replay = ring(layout_of(2), environments=3, rows=30, n_step=2)
    for step in naive.steps:
        replay.add(step, step.reward)
    legal = sampleable(replay)
    draws = 200_000
    count = torch.bincount(replay.sampler.draw(draws)[0], minlength=90)
    assert count.sum() == count[legal].sum() == draws
    expected = draws / len(legal)
    chi_square = ((count[legal] - expected) ** 2 / expected).sum().item()
    degrees = len(legal) - 1
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5  # five standard deviations


@pytest.mark.parametrize("length", [3, 17, 200])
def test_windows_bring_the_same_ring_back(length):
    layout = {"image": Leaf("pixels", (3, 1, 2), "float32", 3), "number": Leaf("index", (), "int64", size=9)}
    naive = Naive(3, 3, length + 20, 9, masks=True)
    steps = [
        step._replace(obs={"image": step.obs, "number": torch.full((3,), t % 9)})
        for t, step in enumerate(naive.steps)
    ]
    replay = ring(layout, environments=3, rows=40, n_step=2)
    copy = ring(layout, environments=3, rows=40, n_step=2)
    cuts = [*range(0, length, 13), length]
    for start, stop in pairwise(cuts):
        for step in steps[start:stop]:
            replay.add(step, step.reward)
        copy.restore(start, replay.window(start, stop))
    copy.reopen()
    for step in steps[length:]:
        for each_ring in (replay, copy):
            each_ring.add(step, step.reward)
    assert torch.equal(sampleable(replay), sampleable(copy))
    one, other = replay.sample(64), copy.sample(64)
    for name in one._fields:
        each(
            lambda a, b, name=name: pytest.fail(name) if not torch.equal(a, b) else None,
            getattr(one, name),
            getattr(other, name),
        )


def rows_of(first, final, ended):
    """Steps of one environment: row t shows t + 1 and pays 10 ** t."""
    no = np.zeros(1, bool)
    for t in range(len(first)):
        yield Step(
            obs=torch.full((1, 1, 1, 2), t + 1.0),
            action=np.array([t]),
            reward=np.array([0.0 if final[t] else 10.0**t], np.float32),
            terminated=no,
            truncated=np.array([bool(ended[t])]),
            next_obs=torch.zeros(()),
            first=np.array([bool(first[t])]),
            final=np.array([bool(final[t])]),
        )


@pytest.mark.parametrize("saved", [None, 2, 3, 4])
@pytest.mark.parametrize("known", [True, False])
def test_where_a_successor_got_lost_the_row_before_is_truncated_and_nothing_is_invented(known, saved):
    """Row 2 acted and nobody knows what came of it; the row after it says so, or only a new episode does."""
    first = [1, 0, 0, 1, 1, 0, 0, 0] if known else [1, 0, 0, 1, 0, 0, 0, 0]
    final = [0, 0, 1, 1, 0, 0, 0, 0] if known else [0] * 8
    replay = ring(layout_of(1), environments=1, rows=12, n_step=2)
    for t, step in enumerate(rows_of(first, final, [0] * 8)):
        replay.add(step, step.reward)
        if t + 1 == saved:  # a segment is written before the loss is known, and never again
            segment = replay.window(0, saved)
    if saved:
        copy = ring(layout_of(1), environments=1, rows=12, n_step=2)
        copy.restore(0, segment)
        copy.restore(saved, replay.window(saved, 8))
        copy.reopen()
        replay = copy
    row = sampleable(replay)
    assert row.tolist() == ([0, 1, 4, 5] if known else [0, 1, 3, 4, 5])
    batch = replay.gather(row[:2], torch.ones(2))
    assert batch.reward.tolist() == pytest.approx([1 + 10 * DISCOUNT, 10])
    assert batch.discount.tolist() == pytest.approx([DISCOUNT**2, DISCOUNT])
    assert batch.next_obs[:, 0, 0, 0].tolist() == [3, 3]


def test_a_loss_in_the_first_step_of_an_episode_leaves_the_episode_before_as_it_is():
    first, final, ended = [1, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]
    replay = ring(layout_of(1), environments=1, rows=12, n_step=1)
    for step in rows_of(first, final, ended):
        replay.add(step, step.reward)
    assert sampleable(replay).tolist() == [0, 1, 5, 6]
    assert replay.window(0, 8)["ended"].tolist() == [False, True] + [False] * 6


def test_a_ring_too_small_for_a_stack_is_refused():
    with pytest.raises(ValueError, match="capacity must hold 6 timesteps of each environment, got 8 for 2"):
        ring(layout_of(3), environments=2, rows=4, n_step=2)


def test_a_ring_too_large_for_the_memory_is_refused_as_one(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", full)
    with pytest.raises(MemoryError, match="bytes cannot be had"):
        ring(layout_of(1), environments=1, rows=12, n_step=1)


def test_frames_of_several_channels_are_stacked_as_they_were_seen():
    leaf = Leaf("pixels", (9, 1, 2), "uint8", 3)  # three frames of three channels
    replay = ring(leaf, environments=2, rows=40, n_step=1)
    generator, no = torch.Generator().manual_seed(0), np.zeros(2, bool)
    zeros = np.zeros(2, np.float32)
    seen, obs = [], torch.zeros(2, 9, 1, 2, dtype=torch.uint8)
    for time in range(30):
        frame = torch.randint(256, (2, 3, 1, 2), dtype=torch.uint8, generator=generator)
        obs = torch.cat((obs[:, 3:], frame), 1)
        seen.append(obs)
        replay.add(
            Step(obs, np.zeros(2, np.int64), zeros, no, no, obs, no | (time == 0), no),
            zeros,
        )
    rows = torch.arange(2, 40)
    batch = replay.gather(rows, torch.ones(len(rows)))
    assert torch.equal(batch.obs, torch.stack([seen[row // 2][row % 2] for row in rows]))
    assert torch.equal(batch.next_obs, torch.stack([seen[row // 2 + 1][row % 2] for row in rows]))
