import copy
import json
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import rlagents_envs
from rlagents import building, cli, runs, toml
from rlagents.checkpoint import Checkpoints
from rlagents.config import Experiment
from rlagents.errors import RunError, UsageError
from rlagents.evaluation import (
    Evaluation,
    Scripted,
    evaluate,
    evaluate_suites,
    evaluation_seed,
    frames_per_second,
    play,
    recorded,
)
from rlagents.types import Obs
from rlagents.video import Frame, Painter, Stop, Video, Window
from rlagents_envs import Environments, Leaf, Outcome
from rlagents_envs.config import Atari, CartPole, Gridworld, Gymnasium


class Countdown(Environments):
    """Environment i plays games of `lengths[i]` steps; each step pays 1000 plus the action."""

    actions = 3
    replayable = True

    def __init__(self, lengths: tuple[int, ...], masked: bool = False) -> None:
        self.count, self.lengths = len(lengths), np.array(lengths)
        self.layout = Leaf("index", (), "int64", size=100)
        self.mask = np.tile([False, True, True], (self.count, 1)) if masked else None

    def reset(self, seed: int):
        self.clock, self.over = np.zeros(self.count, np.int64), np.zeros(self.count, np.bool_)
        return self.clock.copy(), self.mask

    def send(self, actions: np.ndarray) -> None:
        self.sent = actions

    def recv(self) -> Outcome:
        reward = np.where(self.over, 0, 1000 + self.sent).astype(np.float32)
        self.clock = np.where(self.over, 0, self.clock + 1)
        self.over = self.clock == self.lengths
        # A terminated step that does not end the game is a life lost.
        return Outcome(
            self.clock.copy(), reward, self.clock > 0, ~self.over & False, self.over.copy(), self.mask
        )

    def picture(self) -> np.ndarray:
        return np.full((7, 5, 3), self.clock[0], np.uint8)

    def close(self) -> None: ...


class Always:
    """Takes one action, notes what it was asked, and explores on request."""

    device = torch.device("cpu")
    env_steps = 0

    def __init__(self, action: int = 1) -> None:
        self.action = action
        self.asked: list[dict[str, Any]] = []

    def act(self, obs: Obs, *, mask=None, first=None, epsilon=None, generator=None) -> np.ndarray:
        assert isinstance(obs, torch.Tensor)
        self.asked.append({"obs": obs, "mask": mask, "first": first, "epsilon": epsilon})
        drawn = torch.randint(3, (len(obs),), generator=generator)
        coin = torch.rand(len(obs), generator=generator)
        return torch.where(coin < epsilon, drawn, self.action).numpy()

    def q_values(self, obs: Obs) -> torch.Tensor:
        assert isinstance(obs, torch.Tensor)
        return obs[:, None] + torch.tensor([0.0, 1.0, -1.0])

    def observe(self, step: Any) -> None:
        raise AssertionError("an evaluation teaches nothing")

    def learn(self) -> Any:
        raise AssertionError("an evaluation teaches nothing")

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


def test_each_environment_plays_its_quota():
    result = play(Always(), Countdown((2, 5, 9)), episodes=7, seed=0)
    assert sorted(result.lengths) == [2, 2, 2, 5, 5, 9, 9]
    assert result.returns == tuple(
        1001.0 * length for length in result.lengths
    )  # raw, and each of its own game


def test_more_environments_than_episodes():
    assert play(Always(), Countdown((4, 3, 1, 1)), episodes=2, seed=0).lengths == (3, 4)


def test_agent_is_told_what_opens_an_episode_what_is_legal_and_how_to_explore():
    agent = Always()
    play(agent, Countdown((2, 3), masked=True), episodes=3, seed=0, epsilon=0.25)
    # Env 0: obs 0 1 2(final) 0 1; env 1: 0 1 2 3(final) 0.
    assert [asked["obs"].tolist() for asked in agent.asked] == [[0, 0], [1, 1], [2, 2], [0, 3], [1, 0]]
    firsts = [asked["first"].tolist() for asked in agent.asked]
    assert firsts == [[True, True], [False, False], [False, False], [True, False], [False, True]]
    assert all(asked["mask"].tolist() == [[False, True, True]] * 2 for asked in agent.asked)
    assert {asked["epsilon"] for asked in agent.asked} == {0.25}


def test_same_seed_same_games():
    def games(seed: int, epsilon: float) -> Evaluation:
        return play(Always(), Countdown((20, 30)), episodes=6, seed=seed, epsilon=epsilon)

    assert games(3, 0.5) == games(3, 0.5)
    assert games(3, 0.5).returns != games(4, 0.5).returns
    assert games(3, 0.0).returns == games(4, 0.0).returns
    assert games(3, 0.5).distinct == 6


def test_distinct_counts_games_that_differ_in_an_action_or_a_reward():
    assert play(Always(), Countdown((4, 4, 5)), episodes=9, seed=0).distinct == 2

    class Paying(Countdown):
        def recv(self) -> Outcome:
            outcome = super().recv()
            return outcome._replace(reward=outcome.reward + np.array([0, 0, 0.5], np.float32))

    assert play(Always(), Paying((4, 4, 4)), episodes=3, seed=0).distinct == 2


def test_numbers_against_naive_ones():
    returns = (3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0)
    result = Evaluation(returns, (1, 2, 3, 4, 5, 6, 8), seed=5, epsilon=0.1, distinct=6)
    mean = sum(returns) / 7
    assert result.mean == pytest.approx(mean)
    assert result.std == pytest.approx((sum((x - mean) ** 2 for x in returns) / 7) ** 0.5)
    assert (result.min, result.max, result.length) == (-5.0, 9.0, pytest.approx(29 / 7))
    rng = np.random.default_rng(0)
    means = sorted(float(np.mean([returns[i] for i in rng.integers(7, size=7)])) for _ in range(10_000))
    assert result.interval == pytest.approx((np.quantile(means, 0.025), np.quantile(means, 0.975)))
    assert result.min < result.interval[0] < mean < result.interval[1] < result.max
    assert result.metrics()["evaluate/return_low"] == result.interval[0]
    assert json.loads(json.dumps(result.as_dict()))["returns"] == list(returns)
    assert str(result).startswith("return 1.8571 [")
    assert Evaluation((2.0,), (1,), seed=0, epsilon=0, distinct=1).interval == (2.0, 2.0)


def test_watcher_sees_the_first_environment_while_its_quota_lasts():
    frames: list[Frame] = []
    play(Always(), Countdown((2, 9)), episodes=4, seed=0, watch=frames.append, watched=2)
    seen = [(f.episode, f.step, f.action, f.total, int(f.picture[0, 0, 0]), f.q_values[1]) for f in frames]
    one = [(0, 1, 0.0, 0, 1.0), (1, 1, 1001.0, 1, 2.0), (2, None, 2002.0, 2, 3.0)]
    assert seen == [(episode, *row) for episode in (0, 1) for row in one]
    frames.clear()
    play(Always(), Countdown((2, 9)), episodes=6, seed=0, watch=frames.append)
    assert [f.step for f in frames] == [0, 1, 2]


def test_watcher_may_stop_the_evaluation():
    def stop_at(count: int):
        frames: list[Frame] = []

        def watch(frame: Frame) -> None:
            frames.append(frame)
            if len(frames) == count:
                raise Stop

        return watch

    stopped = play(Always(), Countdown((2,)), episodes=9, seed=0, watch=stop_at(8), watched=9)
    assert stopped.lengths == (2, 2)
    with pytest.raises(RunError, match="before its first episode"):
        play(Always(), Countdown((2,)), episodes=9, seed=0, watch=stop_at(2), watched=9)


def test_real_agent_is_left_as_it_was():
    envs = rlagents_envs.make(CartPole(count=3))
    agent = building.agent(toml.load(CARTPOLE), envs, torch.device("cpu"))
    before = copy.deepcopy(agent.state_dict())
    state = torch.get_rng_state()
    one = play(agent, envs, episodes=7, seed=11, epsilon=0.3)
    two = play(agent, envs, episodes=7, seed=11, epsilon=0.3)
    other = play(agent, envs, episodes=7, seed=12, epsilon=0.3)
    envs.close()
    assert one == two
    assert one != other
    assert len(one.returns) == 7
    assert one.returns == one.lengths  # CartPole pays 1 a step
    assert flat(agent.state_dict()) == flat(before)
    assert torch.equal(state, torch.get_rng_state())


def flat(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: flat(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


CARTPOLE: dict[str, Any] = {
    "run": {"name": "cartpole-test", "env_steps": 1000, "seed": 3},
    "env": {"kind": "cartpole", "time_limit": 30},
    "agent": {"kind": "dqn", "replay": {"capacity": 1000}},
}
PONG: dict[str, Any] = {
    "run": {"name": "pong-test", "env_steps": 1000},
    "env": {"kind": "atari", "game": "pong", "max_frames": 240, "noop_max": 0, "count": 2},
    "agent": {"kind": "dqn", "replay": {"capacity": 1000}},
}


def saved(experiment: dict[str, Any], folder: Path, step: int = 500) -> Path:
    """Returns a run directory with one checkpoint of an agent that has learned nothing."""
    loaded = toml.load(experiment)
    runs.create(loaded, folder)
    envs = building.environments(loaded.env, count=1)
    agent = building.agent(loaded, envs, torch.device("cpu"))
    envs.close()
    Checkpoints(folder).save(step, None, agent=agent)
    return folder


def decoded(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Returns what a video says of itself, and its frames [T, H, W, 3]."""
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    reader.close()
    raw = ["-loglevel", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *raw], capture_output=True, check=True)
    assert done.stderr == b""
    width, height = about["size"]
    return about, np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def test_evaluates_a_saved_run(tmp_path: Path):
    run = saved(CARTPOLE, tmp_path / "run")
    result = evaluate(run, episodes=40, json=tmp_path / "new" / "result.json")
    assert result == evaluate(run, episodes=40, checkpoint=500)
    assert result.seed == 1_000_003
    assert (len(result.returns), result.sticky, result.video) == (40, None, None)
    assert result != evaluate(run, episodes=40, seed=5)
    written = json.loads((tmp_path / "new" / "result.json").read_text())
    assert {**written, **result.as_dict()} == written
    assert (written["experiment"], written["checkpoint_step"]) == ("cartpole-test", 500)
    assert written["versions"]["torch"] == torch.__version__
    assert written["hardware"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["result.json"]
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "config.toml", "run.json", "signature"]


def test_video_shows_the_game_pixel_by_pixel_and_atari_also_plays_sticky(tmp_path: Path):
    run = saved(PONG, tmp_path / "run")
    result = evaluate(run, episodes=3, render="video", seed=7)
    assert result.video == run / "videos" / "evaluate-500.mp4"
    assert [p.name for p in (run / "videos").iterdir()] == ["evaluate-500.mp4"]
    about, frames = decoded(result.video)
    assert (about["codec"], about["fps"]) == ("h264", 15.0)
    assert "yuv420p" in about["pix_fmt"]
    # One frame before each step, and the end for a second. Truncated games all have one length.
    assert len(set(result.lengths)) == 1
    assert frames.shape == (result.lengths[0] + 15, 420, 320 + 380, 3)

    # The same game played once more, without the agent's video: its first picture is the video's first.
    envs = building.environments(toml.load(PONG).env, count=3, pictures=True)
    envs.reset(7)
    picture = envs.picture().repeat(2, 0).repeat(2, 1).astype(int)
    envs.close()
    assert np.abs(frames[0, :, :320] - picture).mean() < 4  # what the codec loses
    assert np.ptp(picture, axis=(0, 1)).min() > 50  # colours, not a blank
    panel = frames[:, :, 320:].astype(int)
    assert (panel.max((1, 2, 3)) > 200).all()  # text in every frame
    chosen = (np.abs(panel - (255, 178, 62)) < 30).all(-1).sum((1, 2))
    assert (chosen[: result.lengths[0]] > 20).all()  # a bar or name highlighted while there is a choice
    assert (chosen[-14:] == 0).all()

    assert result.sticky is not None
    assert len(result.sticky.returns) == 3
    assert (result.sticky.seed, result.sticky.sticky) == (7, None)
    assert result.as_dict()["sticky"]["episodes"] == 3


def frame(action: int | None = 0, actions: int = 2, shape: tuple[int, int] = (31, 45)) -> Frame:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return Frame(picture, np.linspace(-1, 2, actions, dtype=np.float32), action, 1.5, 3, 0)


def test_painter_scales_by_a_whole_number_to_an_even_size():
    moment = frame()
    image = Painter("an experiment with a name that is much too long for the panel beside the game").paint(
        moment
    )
    assert image.shape == (31 * 13 + 1, 45 * 13 + 380 + 1, 3)
    assert np.array_equal(image[6 : 31 * 13 : 13, 6 : 45 * 13 : 13], moment.picture)
    tall = Painter("x").paint(frame(actions=40))
    assert tall.shape[0] > 40 * 16
    assert not (np.array_equal(tall[-60:-30, -100:], tall[:30, -100:]))  # the last action has its row
    broken = frame()._replace(q_values=np.array([np.nan, np.inf], np.float32))
    assert Painter("x", ("left", "right")).paint(broken).shape == image.shape


def test_video_that_fails_leaves_no_file(tmp_path: Path):
    path = tmp_path / "videos" / "a.mp4"

    def write(path: Path, error: Exception | None = None) -> None:
        with Video(path, Painter("x"), 10) as video:
            video(frame())
            assert not path.exists()
            if error:
                raise error

    with pytest.raises(KeyError):
        write(path, KeyError())
    assert list(path.parent.iterdir()) == []
    with Video(path, Painter("x"), 10):
        pass
    assert list(path.parent.iterdir()) == []
    write(path)
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the video"):
        write(tmp_path / "file" / "a.mp4")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_video_on_a_full_disk_is_one_clear_line_and_no_file(tmp_path: Path):
    path = tmp_path / "a.mp4"
    (tmp_path / "a.part.mp4").symlink_to("/dev/full")

    def write(frames: int) -> None:
        with Video(path, Painter("x"), 10) as video:
            for _ in range(frames):
                video(frame())

    for frames in (1, 300):  # noticed at the end, and on the way
        with pytest.raises(
            RunError, match=r"^cannot write the video .*a\.mp4: [^\n]*No space left"
        ) as caught:
            write(frames)
        assert "\n" not in str(caught.value)
        assert not path.exists()
        assert not (tmp_path / "a.part.mp4").exists()
        (tmp_path / "a.part.mp4").symlink_to("/dev/full")


def test_window_shows_and_its_closing_ends_the_evaluation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    import pygame

    envs = rlagents_envs.make(Gridworld(time_limit=6), count=1, pictures=True)
    agent = Always(0)  # bumps into the wall until the time limit
    agent.q_values = lambda obs: torch.zeros(len(obs), envs.actions)  # type: ignore[method-assign]
    painter = Painter("gridworld", ("up", "right", "down", "left"))
    shown: list[np.ndarray] = []
    with Window(painter, 1000) as window:

        def watch(moment: Frame) -> None:
            window(moment)
            surface = pygame.display.get_surface()
            shown.append(pygame.surfarray.array3d(surface).swapaxes(0, 1))
            assert np.array_equal(shown[-1], painter.paint(moment))
            if moment.episode == 1:
                pygame.event.post(pygame.event.Event(pygame.QUIT))

        result = play(agent, envs, episodes=5, seed=0, watch=watch, watched=5)
    envs.close()
    assert result.lengths == (6,)
    assert len(shown) == 8
    assert np.ptp(shown[0]) > 100
    assert not pygame.display.get_init()


def test_human_rendering_plays_one_game_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    short = {**CARTPOLE, "env": {"kind": "cartpole", "time_limit": 3}}
    run = saved(short, tmp_path / "run")
    assert evaluate(run, episodes=2, render="human").lengths == (3, 3)


def test_no_display_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    run = saved(CARTPOLE, tmp_path / "run")
    with pytest.raises(RunError, match=r"^--render human needs a display.*use --render video"):
        evaluate(run, render="human")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"epsilon": 1.5}, "epsilon must be between 0 and 1, got 1.5"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_impossible_arguments(tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        evaluate(tmp_path, **arguments)


def test_json_that_cannot_be_written_says_so(tmp_path: Path):
    run = saved(CARTPOLE, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        evaluate(run, episodes=1, json=tmp_path / "file" / "result.json")


def test_speed_of_a_video_is_that_of_the_game():
    assert frames_per_second(Atari(game="pong")) == 15
    assert frames_per_second(Atari(game="pong", frame_skip=2)) == 30
    assert frames_per_second(CartPole()) == 50
    assert frames_per_second(Gridworld()) == 10


def test_play_needs_an_episode():
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        play(Always(), Countdown((2,)), episodes=0, seed=0)


def test_training_records_an_agent_in_fresh_environments(tmp_path: Path):
    experiment = toml.load({**CARTPOLE, "env": {"kind": "cartpole", "time_limit": 10, "count": 5}})
    envs = building.environments(experiment.env)
    agent = building.agent(experiment, envs, torch.device("cpu"))
    envs.close()
    seed = evaluation_seed(experiment)
    plain = recorded(agent, experiment, episodes=4, seed=seed)
    filmed = recorded(agent, experiment, episodes=4, seed=seed, video=tmp_path / "a.mp4")
    assert filmed.video == tmp_path / "a.mp4"
    assert (filmed.returns, plain.video) == (plain.returns, None)
    about, frames = decoded(tmp_path / "a.mp4")
    assert about["fps"] == 50
    assert frames.shape[1:] == (400, 600 + 380, 3)
    assert len(frames) - 50 in filmed.lengths


def test_what_environments_report_is_tabulated_beside_their_drivers_and_lost_episodes_are_played_again(
    tmp_path: Path,
):
    table = {"kind": "gymnasium", "id": "example_envs:Surveyed", "count": 2}
    config = Experiment.model_validate({"run": {"name": "surveyed", "env_steps": 10}, "env": table})
    with closing(building.environments(config.env)) as envs:
        agent = building.agent(config, envs, torch.device("cpu"))
    result = recorded(agent, config, episodes=4, seed=0, baselines=True)
    assert result.lengths == (5, 5, 5, 5)
    assert result.summary["steps"] == 5
    assert result.summary["episode"] == 1  # one environment for each of four episodes
    assert result.baselines["up"]["sign"] == 1
    assert result.baselines["down"]["sign"] == -1
    assert result.metrics()["evaluate/steps"] == 5
    assert json.loads(json.dumps(result.as_dict()))["baselines"]["up"]["sign"] == 1
    with closing(building.environments(config.env, count=1)) as envs:
        alone = play(Scripted(envs, "up"), envs, episodes=3, seed=0)
    assert alone.lengths == (5, 5, 5)
    assert alone.summary["episode"] == pytest.approx((1 + 3 + 4) / 3)
    assert play(Always(1), Countdown((2,)), episodes=1, seed=0).summary == {}


def test_an_evaluation_may_change_the_environment_but_not_what_the_agent_sees(tmp_path: Path):
    run = saved(CARTPOLE, tmp_path / "run")
    short = evaluate(run, episodes=8, settings=["env.time_limit=7"])
    assert max(short.lengths) == 7
    with pytest.raises(UsageError, match="must leave observations and actions as the agent knows them"):
        evaluate(run, episodes=8, settings=["env.bins=[2, 2, 2, 2]"])
    with pytest.raises(UsageError, match=r"must be of the environment .*, got agent\.double=true"):
        evaluate(run, episodes=8, settings=["agent.double=true"])


def test_suites_are_played_in_turn_beside_the_drivers_and_saved_after_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table = {"kind": "gymnasium", "id": "example_envs:Surveyed", "count": 2}
    run = saved({"run": {"name": "surveyed", "env_steps": 10}, "env": table}, tmp_path / "run")
    sizes = {"few": 1, "many": 2}
    suites = property(lambda env: {n: env.model_copy(update={"count": c}) for n, c in sizes.items()})
    monkeypatch.setattr(Gymnasium, "suites", suites)
    monkeypatch.setattr(Gymnasium, "suite_metrics", property(lambda env: ("sign", "steps", "no_such")))
    found = tmp_path / "found.json"
    seen = []
    for name, result in evaluate_suites(run, episodes=4, json=found, trust=True):
        seen.append(name)
        saved_now = json.loads(found.read_text())
        assert list(saved_now["suites"]) == seen
        assert saved_now["suites"][name]["env"]["count"] == sizes[name]
        assert saved_now["suites"][name]["summary"] == dict(result.summary)
        assert result.baselines["down"]["sign"] == -1
    assert seen == ["few", "many"]
    assert saved_now["experiment"] == "surveyed"
    command = ["evaluate", str(run), "--suite", "many", "--episodes", "4", "--trust", "--json", str(found)]
    printed = CliRunner().invoke(cli.main, command)
    assert printed.exit_code == 0, printed.output
    head, below, *rows = [line.split() for line in printed.output.splitlines()]
    assert (head, below) == (["sign", "steps", "no"], ["such"])
    assert [row[:2] for row in rows] == [["many", who] for who in ("agent", "down", "up")]
    assert rows[2][2:] == ["1", "5", "nan"]
    assert list(json.loads(found.read_text())["suites"]) == ["many"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--suite", "some"], "suites need an environment that has some, got kind cartpole"),
        (["--suite", "all", "--render", "video"], "--suite must be without --render, got --render video"),
    ],
)
def test_suites_that_cannot_be_played(tmp_path: Path, arguments: list[str], complaint: str):
    run = saved(CARTPOLE, tmp_path / "run")
    told = CliRunner().invoke(cli.main, ["evaluate", str(run), *arguments])
    assert (told.exit_code, told.stderr) == (2, f"error: {complaint}\n")


def test_a_suite_must_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CartPole, "suites", property(lambda env: {"a": env, "b": env}))
    with pytest.raises(UsageError, match="suites must be among a, b, got c"):
        next(evaluate_suites(saved(CARTPOLE, tmp_path / "run"), names=["b", "c"]))
