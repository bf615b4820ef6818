"""Atari: one game whatever the threads, lives apart from games, a colour emulator that plays along."""

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv

from playing import actions_of, assert_same, make, play
from rlagents_envs.atari import AtariEnvironments
from rlagents_envs.config import Atari
from rlagents_envs.vector import Leaf


def atari(pictures: bool = False, **table: object) -> AtariEnvironments:
    made = make(pictures, **{"kind": "atari", "game": "breakout", "count": 2, **table})
    assert isinstance(made, AtariEnvironments)
    return made


def test_pong_looks_as_everyone_expects() -> None:
    pong = atari(game="pong")
    assert pong.layout == Leaf("pixels", (4, 84, 84), "uint8", stack=4, scale=1 / 255)
    assert pong.action_names == ("noop", "fire", "right", "left", "rightfire", "leftfire")
    assert atari(game="pong", full_action_space=True).actions == 18


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_the_number_of_threads_changes_nothing(sticky: float) -> None:
    games = [play(atari(threads=threads, count=3, sticky=sticky), 150) for threads in (0, 1, 3)]
    assert_same(games[0], games[1])
    assert_same(games[0], games[2])


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_games_that_rest_stand_still_and_the_others_play_on(
    sticky: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # with many cores no game rests
    together = play(atari(count=3, sticky=sticky), 40)
    config = Atari(game="breakout", count=3, sticky=sticky)
    envs = AtariEnvironments(config, pictures=True, resting=True)
    for _ in range(2):  # a reset wakes them
        obs, _ = envs.reset(7)
        np.testing.assert_array_equal(obs, together.obs)
        for at, (actions, outcome) in enumerate(zip(actions_of(envs, 40), together.outcomes, strict=True)):
            picture = envs.picture()
            envs.send(actions)
            apart = envs.recv()
            awake = slice(1 if at >= 20 else 0, 3)
            for one, other in zip(apart[:5], outcome[:5], strict=True):
                assert isinstance(one, np.ndarray)
                assert isinstance(other, np.ndarray)
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one[awake], other[awake])
            if at >= 20:
                assert isinstance(apart.obs, np.ndarray)
                assert isinstance(obs, np.ndarray)
                np.testing.assert_array_equal(apart.obs[0], obs[0])
                np.testing.assert_array_equal(envs.picture(), picture)
                assert not any(flag[0] for flag in apart[1:5])
            if at == 19:
                obs = apart.obs
                envs.rest(np.array([True, False, False]))
    envs.close()


def test_stacks_are_newest_last_and_zero_padded() -> None:
    game = play(atari(frame_stack=3), 250)
    assert isinstance(game.obs, np.ndarray)
    before, fresh, resets = game.obs, np.array([False, False]), 0
    assert not before[:, :2].any()
    for outcome in game.outcomes:
        obs = outcome.obs
        assert isinstance(obs, np.ndarray)
        resets += fresh.sum()
        assert not obs[fresh, :2].any()
        np.testing.assert_array_equal(obs[~fresh, :2], before[~fresh, 1:])
        before, fresh = obs, outcome.ended
    assert resets > 0


def test_a_lost_life_terminates_while_the_game_goes_on() -> None:
    """The same game with and without: only the terminations differ."""
    plain = play(atari(count=2), 500)
    lives = play(atari(count=2, terminal_on_life_loss=True), 500)
    lost = 0
    for a, b in zip(plain.outcomes, lives.outcomes, strict=True):
        np.testing.assert_array_equal(a.obs, b.obs)
        np.testing.assert_array_equal(a.reward, b.reward)
        np.testing.assert_array_equal(a.ended, b.ended)
        assert (b.terminated | ~a.terminated).all()
        lost += (b.terminated & ~b.ended).sum()
    games = sum(outcome.ended.sum() for outcome in plain.outcomes)
    assert games >= 2
    assert 4 * games <= lost <= 4 * (games + 2)  # five lives, the fifth ends the game


def test_the_next_life_begins_with_fire_and_nothing_else_is_legal() -> None:
    """Without it, who never presses FIRE would wait for ever: the ball comes with it."""
    envs = atari(terminal_on_life_loss=True)
    fire = envs.action_names.index("fire")
    envs.reset(3)
    actions, lost, games = np.zeros(2, np.int64), 0, 0
    for _ in range(400):
        envs.send(actions)
        outcome = envs.recv()
        assert outcome.mask is not None
        life = outcome.terminated & ~outcome.ended
        np.testing.assert_array_equal(outcome.mask.sum(1), np.where(life, 1, envs.actions))
        assert outcome.mask[:, fire].all()
        actions = np.where(life, fire, 0)
        lost, games = lost + life.sum(), games + outcome.ended.sum()
    envs.close()
    assert games >= 4  # by standing still, but for FIRE
    assert lost >= 4 * games


@pytest.mark.parametrize("table", [{"fire_reset": False}, {"game": "pong"}, {"game": "ms_pacman"}])
def test_where_no_life_begins_with_fire_every_action_is_legal(table: dict[str, object]) -> None:
    game = play(atari(terminal_on_life_loss=True, **table), 300)
    assert all(outcome.mask is None for outcome in game.outcomes)


def test_rewards_are_the_games_own() -> None:
    rewards = {float(r) for outcome in play(atari(game="ms_pacman"), 300).outcomes for r in outcome.reward}
    assert max(rewards) >= 10


def test_a_game_is_truncated_by_emulator_frames() -> None:
    outcomes = play(atari(game="pong", max_frames=120, noop_max=0), 70).outcomes
    length = 1 + next(t for t, outcome in enumerate(outcomes) if outcome.ended.any())
    assert 25 <= length <= 30  # 120 frames, four a step, less those of the reset
    assert outcomes[length - 1].truncated.all()
    assert not outcomes[length - 1].terminated.any()
    assert outcomes[2 * length].truncated.all()  # one step for the reset, then as long again


@pytest.mark.parametrize("sticky", [0.0, 0.25])
@pytest.mark.parametrize("lives", [False, True])
def test_the_colour_emulator_plays_the_same_game(
    sticky: float, lives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rewards and ends are those of game 0, over lost lives and automatic resets."""
    heard: list[tuple[AtariVectorEnv, float, bool, bool]] = []
    receive = AtariVectorEnv.recv

    def listen(emulators: AtariVectorEnv) -> object:
        answer = receive(emulators)
        heard.append((emulators, float(answer[1][0]), bool(answer[2][0]), bool(answer[3][0])))
        return answer

    monkeypatch.setattr(AtariVectorEnv, "recv", listen)
    envs = atari(pictures=True, sticky=sticky, terminal_on_life_loss=lives, max_frames=1500)
    game = play(envs, 700)
    pairs = list(zip(heard[::2], heard[1::2], strict=True))
    assert len(pairs) == 700
    for gray, colour in pairs:
        assert gray[0] is not colour[0]
        assert gray[1:] == colour[1:]
    assert sum(gray[1] for gray, _ in pairs) > 0
    assert sum(outcome.ended[0] for outcome in game.outcomes) >= 2


def test_pictures_are_the_newest_frame_of_game_0_in_colour() -> None:
    envs = atari(pictures=True)
    with pytest.raises(RuntimeError, match="picture needs"):
        envs.picture()
    game = play(envs, 60)
    picture = envs.picture()
    assert picture.shape == (210, 160, 3)
    assert picture.dtype == np.uint8
    assert (picture.min(2) != picture.max(2)).any()  # not gray
    # Shrunk and gray it is what the agent sees: rows and columns agree on where it is bright.
    gray = picture @ np.array([0.299, 0.587, 0.114])
    seen = game.outcomes[-1].obs[0, -1]  # type: ignore[call-overload, index]
    small = gray[np.linspace(0, 209, 84).astype(int)][:, np.linspace(0, 159, 84).astype(int)]
    assert np.corrcoef(small.ravel(), seen.ravel())[0, 1] > 0.8
    picture[:] = 0
    assert envs.picture().any()
    without = atari()
    without.reset(0)
    with pytest.raises(RuntimeError, match="pictures=True"):
        without.picture()


def test_pictures_do_not_change_the_game() -> None:
    assert_same(play(atari(sticky=0.25), 100), play(atari(pictures=True, sticky=0.25), 100))


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("pongg", "pong"), ("MsPacman", "ms_pacman"), ("space-invader", "space_invaders")],
)
def test_an_unknown_game_names_the_nearest(written: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"env.game must be .* got '{written}'; nearest: .*\b{nearest}\b"):
        atari(game=written)
