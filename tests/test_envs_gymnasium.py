"""Any Gymnasium id: found, checked once, stepped here or elsewhere, and named when it fails."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from playing import Game, actions_of, assert_same, make, play
from rlagents_envs import Environments
from rlagents_envs.vector import Leaf


def gym(name: str, pictures: bool = False, **table: Any) -> Environments:
    return make(pictures, **{"kind": "gymnasium", "id": name, "count": 3, **table})


def own(name: str, pictures: bool = False, **table: Any) -> Environments:
    return gym("example_envs:" + name, pictures, **table)


def steps(envs: Environments, *actions: int) -> list[Any]:
    outcomes = []
    for action in actions:
        envs.send(np.full(envs.count, action))
        outcomes.append(envs.recv())
    return outcomes


@pytest.mark.parametrize(
    ("name", "leaf", "actions"),
    [
        ("FrozenLake-v1", Leaf("index", (), "int64", size=16), 4),
        ("Taxi-v4", Leaf("index", (), "int64", size=500), 6),
        ("CliffWalking-v1", Leaf("index", (), "int64", size=48), 4),
        ("CartPole-v1", Leaf("vector", (4,), "float32"), 2),
        ("CartPole", Leaf("vector", (4,), "float32"), 2),
        ("Acrobot-v1", Leaf("vector", (6,), "float32"), 3),
        ("ALE/Pong-v5", Leaf("pixels", (3, 210, 160), "uint8", scale=1 / 255), 6),
        ("LunarLander-v3", Leaf("vector", (8,), "float32"), 4),
        ("MinAtar/Breakout-v1", Leaf("pixels", (4, 10, 10), "uint8"), 3),
        ("MinAtar/Seaquest-v0", Leaf("pixels", (10, 10, 10), "uint8"), 6),
        ("example_envs:Counter-v0", Leaf("vector", (2,), "float32"), 3),
        ("example_envs:Counter", Leaf("vector", (2,), "float32"), 3),
    ],
)
def test_ids_are_found(name: str, leaf: Leaf, actions: int) -> None:
    envs = gym(name)
    assert (envs.layout, envs.actions) == (leaf, actions)
    envs.close()


def test_a_module_in_a_folder_of_the_users_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_own_env.py").write_text(
        "from example_envs import Counter\nimport gymnasium\n"
        "gymnasium.register('Own-v0', entry_point=Counter, max_episode_steps=2)\n"
    )
    with pytest.raises(
        ValueError, match=r"needs the module 'users_own_env', which is neither .*; put its file"
    ):
        gym("users_own_env:Own-v0")
    monkeypatch.syspath_prepend(tmp_path)
    for backend in ("sync", "async"):
        envs = gym("users_own_env:Own-v0", count=2, backend=backend)
        assert play(envs, 2).outcomes[1].truncated.all()
        envs.close()
    del sys.modules["users_own_env"]


def test_actions_start_where_the_space_does() -> None:
    envs = own("Counter", kwargs={"length": 9})
    envs.reset(0)
    assert [outcome.reward[0] for outcome in steps(envs, 0, 1, 2)] == [-1, 0, 1]


def test_ends_are_told_apart() -> None:
    envs = own("Counter-v0")  # cut after 4 of 5 steps
    envs.reset(0)
    fourth = steps(envs, 0, 0, 0, 0)[-1]
    assert (fourth.truncated.all(), fourth.terminated.any(), fourth.ended.all()) == (True, False, True)
    envs = own("Counter-v0", kwargs={"length": 4})  # both at once: the episode is over
    envs.reset(0)
    fourth = steps(envs, 0, 0, 0, 0)[-1]
    assert (fourth.truncated.any(), fourth.terminated.all(), fourth.ended.all()) == (False, True, True)


def test_environments_have_seeds_of_their_own() -> None:
    obs, _ = own("Counter").reset(3)
    later, _ = own("Counter").reset(4)
    assert isinstance(obs, np.ndarray)
    assert isinstance(later, np.ndarray)
    assert len(set(obs[:, 0].tolist())) == 3
    np.testing.assert_array_equal(obs[1:], later[:-1])


def test_wrappers_are_applied_innermost_first() -> None:
    names = ("example_envs:doubled", "example_envs:plus_one")
    for wrappers, pays in ((names, 3), (names[::-1], 4)):
        envs = own("Counter", wrappers=wrappers)
        envs.reset(0)
        assert steps(envs, 2)[0].reward.tolist() == [pays] * 3
    envs = gym("FrozenLake-v1", wrappers=("gymnasium.wrappers:FlattenObservation",))
    assert envs.layout == Leaf("vector", (16,), "float32")


def test_taxis_masks_arrive() -> None:
    """Taxi's own rule: where a move changes nothing, it is not in the mask."""
    envs = gym("Taxi-v4", count=4)
    obs, mask = envs.reset(0)
    import gymnasium

    taxi: Any = gymnasium.make("Taxi-v4").unwrapped
    for outcome in [None, *play(envs, 60, seed=0).outcomes]:
        if outcome is not None:
            obs, mask = outcome.obs, outcome.mask
        assert mask is not None
        np.testing.assert_array_equal(mask, [taxi.action_mask(int(state)) for state in np.asarray(obs)])
    assert not mask.all()


def test_missing_and_empty_masks_mean_that_all_is_legal() -> None:
    envs = own("Masked", kwargs={"length": 5})
    assert envs.reset(0)[1] is None
    one, two, three, four, five = steps(envs, 0, 1, 2, 0, 1)
    assert one.mask is None
    assert two.mask.tolist() == [[True, False, True]] * 3
    assert three.mask is None
    assert four.mask.all()
    assert five.mask is None
    # A row without a mask, beside rows with one.
    mixed = gym("example_envs:MaskedByChance")
    seen = {
        bool(outcome.mask[n].all())
        for outcome in play(mixed, 20).outcomes
        for n in range(3)
        if outcome.mask is not None
    }
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("name", "stack"),
    [("example_envs:Masked", 2), ("example_envs:Everything", 2), ("CartPole-v1", 1), ("Taxi-v4", 1)],
)
def test_processes_change_nothing(name: str, stack: int) -> None:
    games = []
    for backend in ("sync", "async"):
        envs = gym(name, backend=backend, count=2, frame_stack=stack)
        games.append(play(envs, 120))
        envs.close()
    assert_same(*games)


def test_workers_are_not_forked_and_leave_with_their_parent() -> None:
    envs: Any = own("Counter", backend="async", count=2)
    workers = envs._vector.processes
    assert all(type(worker).__name__ in ("ForkServerProcess", "SpawnProcess") for worker in workers)
    envs.close()
    assert not any(worker.is_alive() for worker in workers)


def test_workers_step_between_send_and_recv(tmp_path: Path) -> None:
    mark = tmp_path / "stepped"
    envs = own("Marks", backend="async", count=1, kwargs={"path": str(mark)})
    mark.unlink()  # made when the environment was checked
    envs.reset(0)
    envs.send(np.zeros(1, np.int64))
    deadline = time.monotonic() + 20
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    envs.recv()
    envs.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_pictures_show_environment_0(backend: str) -> None:
    envs = own("Counter", pictures=True, backend=backend, count=2)
    envs.reset(0)
    outcome = steps(envs, 0, 0)[-1]
    assert outcome.obs[0, 1] == 3
    assert envs.picture().shape == (8, 6, 3)
    assert envs.picture().dtype == np.uint8
    assert (envs.picture() == 2).all()
    envs.send(np.zeros(2, np.int64))
    with pytest.raises(RuntimeError, match="no step under way"):
        envs.picture()
    envs.close()


def test_pictures_of_gymnasiums_own() -> None:
    for name, shape in (
        ("FrozenLake-v1", (256, 256, 3)),
        ("ALE/Pong-v5", (210, 160, 3)),
        ("MinAtar/Breakout-v1", (10, 10, 3)),
    ):
        envs = gym(name, pictures=True, count=2)
        envs.reset(0)
        assert envs.picture().shape == shape
        assert envs.picture().max() > 100
        envs.close()
    without = gym("FrozenLake-v1")
    without.reset(0)
    with pytest.raises(RuntimeError, match="pictures=True"):
        without.picture()


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (
            {"id": "FrozenLke-v1"},
            "env.id must be a registered environment, got 'FrozenLke-v1'; nearest: FrozenLake-v1",
        ),
        ({"id": "CartPole-v7"}, "got 'CartPole-v7'; nearest: CartPole-v0, CartPole-v1"),
        ({"id": "Taxi-v3"}, "got 'Taxi-v3'; nearest: Taxi-v4"),
        ({"id": "ALE/Pog-v5"}, "nearest: ALE/Pong-v5"),
        ({"id": "MinAtar/Brekout-v1"}, "nearest: MinAtar/Breakout-v1"),
        ({"id": "example_envs:Countr"}, "nearest: Counter"),
        ({"id": "json:Quux-v0"}, "write module:id for one in a module of yours"),
        (
            {"id": "no_such_module:X-v0"},
            "needs the module 'no_such_module', which is neither installed nor in",
        ),
        (
            {"id": "example_broken:X-v0"},
            "needs the module 'example_broken', whose import failed: ZeroDivisionError: division by zero",
        ),
        ({"id": "example_envs:doubled"}, "could not be made: TypeError"),
        ({"id": "example_envs:os"}, "must be a registered environment"),
        ({"id": "example_envs:np"}, "must be a registered environment"),
        (
            {"kwargs": {"bad": 1}},
            "env.id 'example_envs:Counter' with kwargs {'bad': 1} could not be made: TypeError",
        ),
        ({"wrappers": ["doubled"]}, "env.wrappers must be written as \"module:function\", got 'doubled'"),
        ({"wrappers": ["example_envs:doubld"]}, "not in example_envs; nearest: doubled"),
        (
            {"wrappers": ["example_envs:broken_wrapper"]},
            "env.wrappers 'example_envs:broken_wrapper' failed: KeyError: 'screw'",
        ),
        ({"wrappers": ["example_envs:not_an_env"]}, "env.id must make a gymnasium.Env, got int"),
        ({"wrappers": ["gymnasium.wrappers:Autoreset"]}, "must leave resets to the vector"),
        (
            {"id": "MountainCarContinuous-v0"},
            "MountainCarContinuous-v0 needs a discrete action space, got Box(",
        ),
        (
            {"id": "example_envs:BareReset"},
            "BareReset failed in reset: TypeError: it must return (observation, info), got list",
        ),
        (
            {"id": "example_envs:FourStep"},
            "(observation, reward, terminated, truncated, info), got a tuple of 4",
        ),
        ({"id": "example_envs:TextReward"}, "it must return a number as reward, got 'much'"),
        ({"id": "example_envs:TextFlag"}, "it must return terminated and truncated as bool, got 'no'"),
        ({"id": "example_envs:ShortMask"}, "info['action_mask'] must have 3 entries, got shape (2,)"),
        ({"id": "example_envs:ListInfo"}, "it must return info as a dictionary, got list"),
        ({"id": "example_envs:WrongShape"}, "got one from reset of shape (2,) in place of (3,)"),
        ({"id": "example_envs:OutOfBounds"}, "got one from reset outside low and high of Box(-1.0, 0.0"),
        ({"id": "example_envs:WrongCell"}, "got one from step that is 5, not in Discrete(5) at 'cell'"),
        ({"id": "example_envs:Words"}, "example_envs:Words: observation space must be made of Box"),
        (
            {"id": "Taxi-v4", "frame_stack": 2},
            "Taxi-v4: env.frame_stack must be 1 where an observation is a number",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    table: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "example_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        make(**{"kind": "gymnasium", "id": "example_envs:Counter", **table})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("LunarLander-v3", "Box2D", "box2d"), ("MinAtar/Breakout-v1", "minatar", "minatar")],
)
def test_what_is_not_installed_is_told_with_the_command_that_installs_it(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [*sys.modules]:
        if loaded.startswith((f"{module}.", "gymnasium.envs.box2d")):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    for known in [key for key in gymnasium.registry if key.startswith("MinAtar/")]:
        monkeypatch.delitem(gymnasium.registry, known)
    told = (
        f"env.id {name!r} could not be made: {module} is not installed; "
        f'install it with: pip install "rlagents[{extra}]"'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        gym(name)


def test_no_pictures_of_what_cannot_be_rendered() -> None:
    with pytest.raises(ValueError, match="NoPictures must have the render mode 'rgb_array' to be shown"):
        own("NoPictures", pictures=True)
    own("NoPictures")


@pytest.mark.parametrize(
    ("name", "backend", "line"),
    [
        ("Fails", "sync", "example_envs:Fails failed in step: Peculiar: the engine is on fire"),
        ("Fails", "async", "example_envs:Fails failed in step: Peculiar: the engine is on fire"),
        ("Dies", "async", "example_envs:Dies failed: a worker process ended (environment 0, exit code 3, "),
        ("Grows", "sync", "got one from step of shape (3,) in place of (2,) (environment 0, action 0)"),
        ("Grows", "async", "got one from step of shape (3,) in place of (2,) (environment "),
        ("Blurs", "sync", "got one from step of float64 in place of uint8 (environment 0, action 0)"),
        ("Blurs", "async", "got one from step of float64 in place of uint8 (environment "),
        (
            "NotANumber",
            "sync",
            "from step with numbers that are not finite (environment 0, action 0)",
        ),
        (
            "Priceless",
            "sync",
            "it must return a finite reward, got nan (environment 0, action 0)",
        ),
    ],
)
def test_a_failure_in_mid_game_names_the_environment(
    name: str, backend: str, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    envs = own(name, backend=backend, count=2)
    envs.reset(0)
    steps(envs, 1, 1)
    with pytest.raises(RuntimeError, match=re.escape(line)) as caught:
        steps(envs, 1)
    assert "\n" not in str(caught.value)
    if name != "Dies":
        (trace,) = caught.value.__notes__
        assert trace.startswith("Traceback")
    with pytest.raises(RuntimeError, match="not closed"):
        envs.reset(0)
    envs.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("moment", ["before send", "after send", "before reset"])
def test_a_killed_process_loses_the_episodes_and_nothing_else(moment: str) -> None:
    children = len(multiprocessing.active_children())
    envs = own("Counter", backend="async", count=2, on_crash="restart", frame_stack=2)
    twin = own("Counter", count=2, frame_stack=2)
    envs.reset(5)
    (seen,) = steps(envs, 1)
    victim: Any = envs._vector.processes[1]  # type: ignore[attr-defined]
    os.kill(victim.pid, signal.SIGSTOP if moment == "after send" else signal.SIGKILL)
    if moment != "before reset":
        if moment == "before send":
            victim.join()
        envs.send(np.array([0, 2]))
        victim.kill()
        outcome = envs.recv()
        assert outcome.lost is not None
        assert outcome.lost.tolist() == outcome.ended.tolist() == outcome.truncated.tolist() == [True, True]
        assert not outcome.reward.any()
        assert not outcome.terminated.any()
        np.testing.assert_array_equal(outcome.obs, seen.obs)
        envs.send(np.array([0, 0]))
        after = envs.recv()
        assert after.lost is None
        assert not after.ended.any()
        np.testing.assert_array_equal(after.obs, twin.reset(7)[0])  # not the games of before once more
        assert_same_steps(envs, twin, 12)
        (told,) = envs.crashes  # type: ignore[attr-defined]
        assert str(told) == (
            "example_envs:Counter failed: a worker process ended (environment 1, exit code -9, action 1)"
        )
    np.testing.assert_array_equal(envs.reset(5)[0], twin.reset(5)[0])
    assert_same_steps(envs, twin, 12)
    assert len(envs.crashes) == 1  # type: ignore[attr-defined]
    assert len(multiprocessing.active_children()) == children + 2
    envs.close()
    assert len(multiprocessing.active_children()) == children


def assert_same_steps(one: Environments, other: Environments, count: int) -> None:
    for actions in actions_of(one, count):
        for envs in (one, other):
            envs.send(actions)
        for mine, theirs in zip(one.recv(), other.recv(), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_crashes_with_episodes_between_go_on(backend: str) -> None:
    """Two episodes of five steps, two resets, a step that fails, and the step that starts anew."""
    envs = own("Late", backend=backend, count=2, on_crash="restart")
    envs.reset(0)
    outcomes = steps(envs, *[1] * 14 * 7)
    assert [tick for tick, outcome in enumerate(outcomes) if outcome.lost is not None] == [*range(12, 98, 14)]
    envs.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_crashes_without_an_episode_between_do_not_go_on_for_ever(backend: str) -> None:
    envs = own("Fails", backend=backend, count=1, on_crash="restart")
    envs.reset(0)
    assert sum(outcome.lost is not None for outcome in steps(envs, *[1] * 4 * 5)) == 5
    told = "is on fire (environment 0, action 0); it crashed 5 times before, without an episode between"
    with pytest.raises(RuntimeError, match=re.escape(told)) as caught:
        steps(envs, 1, 1, 1)
    (trace,) = caught.value.__notes__
    assert trace.startswith("Traceback")
    with pytest.raises(RuntimeError, match="not closed"):
        envs.reset(0)


def test_infos_of_any_shape_are_no_trouble() -> None:
    """Counter's infos change their shape from step to step, which Gymnasium's vectors cannot join."""
    game = play(own("Counter"), 20)
    assert isinstance(game, Game)
    assert all(outcome.mask is None for outcome in game.outcomes)


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_metrics_losses_and_drivers_reach_the_vector(backend: str) -> None:
    envs = make(kind="gymnasium", id="example_envs:Surveyed", count=2, backend=backend)
    assert envs.drivers == ("down", "up")
    envs.reset(1)
    outcomes = []
    for _ in range(14):
        actions = envs.scripted("up")
        assert actions.tolist() == [2, 2]  # counted from 0
        envs.send(actions)
        outcomes.append(envs.recv())
    told = {t: outcome.episode_metrics for t, outcome in enumerate(outcomes) if outcome.episode_metrics}
    one, three = ({"steps": 5.0, "episode": e, "sign": 1.0} for e in (1.0, 3.0))
    assert told == {4: {0: one, 1: one}, 13: {0: three, 1: three}}  # 5 steps, reset, 2, reset, 5
    lost = {t: outcome.lost.tolist() for t, outcome in enumerate(outcomes) if outcome.lost is not None}
    assert lost == {7: [True, True]}
    assert outcomes[7].ended.all()
    envs.close()


def test_metrics_must_be_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"step: TypeError: info.'episode_metrics'. must be a dictionary of numbers"
    ):
        make(kind="gymnasium", id="example_envs:OddMetrics", count=1)


def test_a_script_that_starts_workers_wherever_it_is_imported_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    lines = (
        "import rlagents_envs",
        "from rlagents_envs.config import Gymnasium",
        'config = Gymnasium(id="Acrobot-v1", count=1, backend="async")',
        "try:",
        "    rlagents_envs.make(config).close()",
        "except ValueError as error:",
        "    print(error)",
    )
    script.write_text("\n".join(lines), "utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    (told,) = done.stdout.splitlines()
    assert 'under `if __name__ == "__main__":`' in told
    assert "bootstrapping" not in done.stderr  # what the worker met is not shown
