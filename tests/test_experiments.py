"""Every experiment that ships, and the order in which a name is looked up."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from rlagents import experiments, toml
from rlagents.config import DQN
from rlagents.errors import UsageError
from rlagents_envs.config import Atari

SHIPPED = Path(__file__).resolve().parents[1] / "experiments"
NAMES = sorted(file.stem for file in SHIPPED.glob("*.toml"))
TINY = '[run]\nenv_steps = 5\n[env]\nkind = "corridor"\n'


def test_every_experiment_of_the_plan_is_there() -> None:
    assert NAMES == [
        "blackjack-q-learning",
        "breakout-dqn",
        "carla-dqn",
        "carla-dqn-camera",
        "carla-dqn-gym-carla",
        "carla-dqn-traffic",
        "cartpole-c51",
        "cartpole-double",
        "cartpole-dqn",
        "cartpole-dqn-fixed-target",
        "cartpole-dueling",
        "cartpole-iqn",
        "cartpole-noisy",
        "cartpole-per",
        "cartpole-pqn",
        "cartpole-q-learning",
        "cartpole-qrdqn",
        "cartpole-rainbow",
        "cliffwalking-expected-sarsa",
        "cliffwalking-q-learning",
        "cliffwalking-sarsa",
        "corridor-bootstrapped-dqn",
        "corridor-q-learning",
        "frozenlake-deterministic-q-learning",
        "frozenlake-q-learning",
        "gridworld-q-learning",
        "lunarlander-dqn",
        "minatar-breakout-pqn",
        "pong-c51",
        "pong-double",
        "pong-dqn",
        "pong-dqn-nature",
        "pong-dqn-plain",
        "pong-dqn-sticky",
        "pong-dueling",
        "pong-iqn",
        "pong-per",
        "pong-pqn",
        "pong-pqn-sticky",
        "pong-qrdqn",
        "pong-rainbow",
        "taxi-q-learning",
        "taxi-q-learning-unmasked",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_each_experiment_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    experiment = experiments.load(name)
    assert experiment.run.name == name
    resolved = tmp_path / "config.toml"
    resolved.write_text(toml.dump(experiment))
    assert toml.load(resolved) == experiment
    assert experiments.load(tmp_path) == experiment


@pytest.mark.parametrize("name", NAMES)
def test_each_experiment_says_what_it_shows_and_is_in_the_table(name: str) -> None:
    description = experiments.names()[name]
    assert description.endswith(".")
    assert f"| `{name}` | {description} |" in (SHIPPED / "README.md").read_text()


def test_pong_variants_differ_in_what_they_are_named_for() -> None:
    plain, sticky = experiments.load("pong-dqn"), experiments.load("pong-dqn-sticky")
    assert isinstance(plain.env, Atari)
    assert plain.env.sticky == 0
    assert sticky.env == plain.env.model_copy(update={"sticky": 0.25, "height": 84, "width": 84})


def differences(one: Mapping[str, object], other: Mapping[str, object], path: str = "") -> set[str]:
    """Returns the dotted keys that two tables do not agree on; a table of another kind counts as one."""
    found: set[str] = set()
    for name in one.keys() | other.keys():
        left, right = one.get(name), other.get(name)
        if isinstance(left, dict) and isinstance(right, dict) and left.get("kind") == right.get("kind"):
            found |= differences(left, right, f"{path}{name}.")
        elif left != right:
            found.add(f"{path}{name}")
    return found


DOUBLE, DUELING = "agent.double", "agent.network.dueling"
NOISY, NOISE = "agent.network.noisy", "agent.network.noise"
PRIORITIES, VALUES, EXPLORATION = "agent.replay.sampling", "agent.values", "agent.exploration"
LONGER = {"run.env_steps", "run.evaluate_every", "run.checkpoint_every"}
# What a bird's-eye view, which needs fewer pixels than a camera, has of its own.
COARSE = {"env.size", "env.metres", "agent.replay.capacity"}


@pytest.mark.parametrize(
    ("name", "base", "changed"),
    [
        ("cartpole-double", "cartpole-dqn-fixed-target", {"agent.n_step"}),
        ("cartpole-dueling", "cartpole-double", {DUELING}),
        ("cartpole-per", "cartpole-double", {DOUBLE, PRIORITIES}),
        ("cartpole-c51", "cartpole-double", {DOUBLE, VALUES}),
        ("cartpole-qrdqn", "cartpole-double", {DOUBLE, VALUES}),
        ("cartpole-iqn", "cartpole-double", {VALUES}),
        ("cartpole-noisy", "cartpole-double", {DOUBLE, NOISY, NOISE, f"{EXPLORATION}.end"}),
        (
            "cartpole-rainbow",
            "cartpole-double",
            {DUELING, PRIORITIES, VALUES, NOISY, NOISE, EXPLORATION},
        ),
        (
            "pong-dqn-sticky",
            "pong-dqn",
            {
                "env.sticky",
                "env.height",
                "env.width",
                "agent.learning_rate_steps",
                "agent.discount_end",
                *(f"agent.{which}" for which in ("n_step", "n_step_end", "horizon_hold", "horizon_steps")),
                "agent.replay.capacity",
                "agent.values.error",
                f"{EXPLORATION}.ladder",
                *LONGER,
            },
        ),
        (
            "pong-pqn-sticky",
            "pong-pqn",
            {"env.sticky", "agent.trace_decay", "agent.average_rate", *LONGER},
        ),
        ("pong-double", "pong-dqn", {DUELING, PRIORITIES, VALUES}),
        ("pong-dueling", "pong-dqn", {DOUBLE, PRIORITIES, VALUES}),
        ("pong-per", "pong-dqn", {VALUES}),
        ("pong-c51", "pong-dqn", {PRIORITIES, VALUES}),
        ("pong-qrdqn", "pong-dqn", {PRIORITIES}),
        ("pong-iqn", "pong-dqn", {PRIORITIES, VALUES}),
        ("pong-rainbow", "pong-dqn", {VALUES, NOISY, f"{EXPLORATION}.end"}),
        (
            "carla-dqn-traffic",
            "carla-dqn",
            {"run.env_steps", "run.checkpoint_every", "env.vehicles", "env.walkers"},
        ),
        ("carla-dqn-camera", "carla-dqn", {"env.observations", *COARSE}),
        (
            "carla-dqn-gym-carla",
            "carla-dqn",
            {f"env.{name}" for name in ("observations", "camera", "actions", "reward", "speed", "lights")}
            | COARSE
            | {"agent.reward_transform", "agent.reward_scale"},
        ),
    ],
)
def test_variants_differ_from_their_recipe_in_what_they_are_named_for(
    name: str, base: str, changed: set[str]
) -> None:
    one, other = (experiments.load(which).model_dump() for which in (name, base))
    assert differences(one, other) - {"run.name"} == changed


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script beside the experiments, as a module."""
    monkeypatch.syspath_prepend(SHIPPED)
    return import_module("ablation")


def test_what_an_ablation_compares_are_all_one_recipe(ablation: ModuleType) -> None:
    for name, compared in ablation.ABLATIONS.items():
        loaded = [experiments.load(*line.split()[:1], line.split()[1:]) for line in compared]
        first, *others = (one.model_dump() for one in loaded)
        assert all(one.run.name.startswith(f"{name}-") for one in loaded)
        for other in others:
            changed = differences(first, other)
            assert changed
            known = {DOUBLE, DUELING, NOISY, NOISE, PRIORITIES, VALUES, EXPLORATION, f"{EXPLORATION}.end"}
            assert changed <= {"run.name", *known}


def test_an_ablation_is_a_table_of_runs_that_are_made_once(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = "gridworld-q-learning"
    monkeypatch.setattr(ablation, "ABLATIONS", {"grid": (plain, f"{plain} agent.learning_rate=0.5")})
    small = ["run.env_steps=48", "run.evaluate_every=16", "run.evaluate_episodes=2"]
    monkeypatch.setattr(
        sys, "argv", ["ablation.py", "grid", *small, "--seeds", "1", "2", "--out", str(tmp_path)]
    )
    ablation.main()
    printed = capsys.readouterr().out.splitlines()[-4:]  # after what each training says
    head, _, first, second = ([part.strip() for part in line.split("|")[1:-1]] for line in printed)
    assert head == ["experiment", "16", "32", "48", "at the end, by seed"]
    one, two = (ablation.evaluations(tmp_path / plain / f"seed{seed}") for seed in (1, 2))
    means = [f"{(one[step] + two[step]) / 2:.4g}" for step in (16, 32, 48)]
    assert first == [f"`{plain}`", *means, f"{one[48]:.4g}, {two[48]:.4g}"]
    assert second[0] == f"`{plain} agent.learning_rate=0.5`"
    written = {file: file.read_bytes() for file in tmp_path.rglob("metrics.jsonl")}
    assert len(written) == 4
    ablation.main()
    assert capsys.readouterr().out.splitlines()[-4:] == printed
    assert {file: file.read_bytes() for file in tmp_path.rglob("metrics.jsonl")} == written


def test_pong_dqn_nature_has_the_zoos_values() -> None:
    experiment = experiments.load("pong-dqn-nature")
    agent = experiment.agent
    assert isinstance(agent, DQN)
    assert experiment.run.env_steps == 10_000_000
    assert (agent.learning_rate, agent.batch_size, agent.learn_every) == (1e-4, 32, 4)
    assert (agent.replay.capacity, agent.learning_starts) == (100_000, 100_000)
    assert (agent.exploration.end, agent.exploration.steps) == (0.01, 1_000_000)
    assert agent.target.kind == "fixed"
    assert agent.target.sync_every == 1_000
    assert (agent.double, agent.network.dueling, agent.n_step) == (False, False, 1)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """Three folders for experiments: the user's, a checkout's and the installed package's."""
    user, checkout = tmp_path / "user", tmp_path / "checkout"
    package = checkout / "rlagents"
    for folder in (user / "experiments", checkout / "experiments", package / "_experiments"):
        folder.mkdir(parents=True)
        (folder / "same.toml").write_text(f"# {folder.parent.name}\n{TINY}")
    monkeypatch.chdir(user)
    monkeypatch.setattr(experiments, "__file__", str(package / "experiments.py"))
    monkeypatch.setattr(experiments.resources, "files", lambda _: package)
    return user / "experiments", checkout, package / "_experiments"


def test_a_name_is_looked_up_in_order(places: tuple[Path, Path, Path]) -> None:
    user, checkout, package = places
    (checkout / "pyproject.toml").touch()
    assert experiments.find("same").samefile(user / "same.toml")
    assert experiments.names() == {"same": "user"}
    (user / "same.toml").unlink()
    assert experiments.find("same") == checkout / "experiments" / "same.toml"
    (checkout / "experiments" / "same.toml").unlink()
    assert experiments.find("same") == package / "same.toml"
    assert experiments.names() == {"same": "rlagents"}


def test_a_folder_beside_an_installed_package_is_not_a_checkout(places: tuple[Path, Path, Path]) -> None:
    user, _, package = places
    (user / "same.toml").unlink()
    assert experiments.find("same") == package / "same.toml"


def test_a_path_is_taken_as_it_is(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "user" / "here.toml").write_text(TINY)
    assert experiments.find("here.toml").samefile(tmp_path / "user" / "here.toml")
    assert experiments.find("../user/here.toml").is_file()
    run = tmp_path / "user" / "same"  # a folder of that name is only in the way if it is a run directory
    run.mkdir()
    assert experiments.find("same").parent.name == "experiments"
    (run / "config.toml").write_text(TINY)
    assert experiments.find("same").samefile(run / "config.toml")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("pong-dq", 'got "pong-dq"; did you mean pong-dqn or pong-qrdqn or pong-pqn?'),
        ("breakout", 'got "breakout"; did you mean breakout-dqn?'),
        ("xyzzy", 'got "xyzzy"; see `rlagents list experiments`'),
        (
            "there/taxi-qlearning.toml",
            "there/taxi-qlearning.toml does not exist; did you mean taxi-q-learning",
        ),
        ("./", "./ is a folder without config.toml"),
        ("", 'got ""'),
    ],
)
def test_an_unknown_experiment_is_told_the_nearest(
    wrong: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        experiments.find(wrong)
    assert str(caught.value).startswith("experiment must be a name or a TOML file")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
