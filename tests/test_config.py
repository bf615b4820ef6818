"""An experiment as TOML: what is read, what KEY=VALUE changes, how mistakes are told, and what is written."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlagents import toml
from rlagents.config import DQN, Experiment, QLearning, Run, SoftTarget
from rlagents.errors import UsageError
from rlagents_envs.config import Atari, CartPole, Gymnasium

SMALL: dict[str, Any] = {"run": {"env_steps": 1_000}, "env": {"kind": "cartpole"}}
PONG: dict[str, Any] = {
    "run": {"env_steps": 1_000},
    "env": {"kind": "atari", "game": "pong"},
    "agent": {"kind": "dqn", "n_step": 3, "target": {"kind": "fixed", "sync_every": 10}},
}
KINDS, TARGETS, LOSS = (
    "gridworld, corridor, cartpole, atari, gymnasium, carla",
    "none, fixed, soft",
    "agent.values.loss",
)


def complaints(source: Any, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        toml.load(source, overrides)
    return str(caught.value).splitlines()


def test_everything_has_a_default_but_the_environment_and_the_budget() -> None:
    experiment = toml.load(SMALL)
    assert experiment.agent == DQN()
    assert complaints({}) == [
        "run.env_steps must be given: budget: actions, in all environments together, frames skipped or not",
        f"env.kind must be one of {KINDS}",
    ]


def test_unsaid_periods_become_a_tenth_of_the_budget() -> None:
    run = toml.load(SMALL, ["run.checkpoint_every=0"]).run
    assert (run.evaluate_every, run.checkpoint_every) == (100, 0)


def test_a_table_without_kind_is_of_the_default_kind() -> None:
    experiment = toml.load({**SMALL, "agent": {"target": {"sync_every": 7}}})
    assert isinstance(experiment.agent, DQN)
    assert experiment.agent.target.kind == "fixed"
    assert toml.load(SMALL, ["agent.target.sync_every=7"]) == experiment


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("agent.learning_rate=1e-4", "agent.learning_rate", 1e-4),
        ("agent.learning_rate=1", "agent.learning_rate", 1.0),
        ("run.env_steps = 2_000", "run.env_steps", 2_000),
        ("agent.double=true", "agent.double", True),
        ("env.bins=[1, 1, 6, 12]", "env.bins", (1, 1, 6, 12)),
        ("agent.values.loss=mse", "agent.values.loss", "mse"),
        ('agent.values.loss="mse"', "agent.values.loss", "mse"),
        ("run.name=2024-01-31", "run.name", "2024-01-31"),
        ('agent.target={kind="soft", rate=0.5}', "agent.target", SoftTarget(rate=0.5)),
    ],
)
def test_a_setting_is_a_toml_value_or_a_bare_string(override: str, path: str, value: object) -> None:
    found: Any = toml.load(SMALL, [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_setting_may_reach_into_the_keyword_arguments_of_an_environment() -> None:
    base = {**SMALL, "env": {"kind": "gymnasium", "id": "A-v0", "kwargs": {"size": 3, "deep": {"a": 1}}}}
    env = toml.load(base, ["env.kwargs.size=[4, 5]", "env.kwargs.deep.b=x"]).env
    assert isinstance(env, Gymnasium)
    assert env.kwargs == {"size": [4, 5], "deep": {"a": 1, "b": "x"}}


def test_the_last_setting_wins() -> None:
    assert toml.load(SMALL, ["run.seed=3", "run.seed=5"]).run.seed == 5
    later = toml.load(
        SMALL, ["agent.target.rate=0.5", "agent.target.kind=soft", 'agent.target={kind="none"}']
    )
    assert isinstance(later.agent, DQN)
    assert later.agent.target.kind == "none"


def test_another_kind_drops_what_the_file_said_of_the_former() -> None:
    soft = toml.load(PONG, ["agent.target.kind=soft"])
    assert isinstance(soft.agent, DQN)
    assert soft.agent.target == SoftTarget()
    table = toml.load(PONG, ["agent.kind=q_learning", "agent.learn_from=replay"])
    assert table.agent == QLearning(n_step=3, learn_from="replay")
    assert toml.load(PONG, ["env.kind=cartpole"]).env == CartPole()


def test_another_kind_drops_neither_settings_nor_mistakes() -> None:
    assert complaints(PONG, "agent.target.kind=soft", "agent.target.sync_every=5") == [
        'agent.target.sync_every is not a key, got 5; agent.target.kind = "fixed" has it'
    ]
    misspelt = {**PONG, "agent": {"target": {"kind": "fixed", "zzz": 5}}}
    assert complaints(misspelt, "agent.target.kind=soft") == ["agent.target.zzz is not a key, got 5"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("agent.n_step=0", "agent.n_step must be greater than or equal to 1, got 0"),
        ("agent.n_steps=2", "agent.n_steps is not a key, got 2; did you mean agent.n_step?"),
        ("learning_rate=1", "learning_rate is not a key, got 1; did you mean agent.learning_rate?"),
        ("agent.sync_every=1", "agent.sync_every is not a key, got 1; did you mean agent.target.sync_every?"),
        ("agent.target.rate=1", 'agent.target.rate is not a key, got 1; agent.target.kind = "soft" has it'),
        ("agent.zzz=1", "agent.zzz is not a key, got 1"),
        ("env.kind=atary", f'env.kind must be one of {KINDS}, got "atary"; did you mean atari?'),
        (
            "agent.target.kind=sofd",
            f'agent.target.kind must be one of {TARGETS}, got "sofd"; did you mean soft?',
        ),
        ("agent.target.kind=7", f"agent.target.kind must be one of {TARGETS}, got 7"),
        ("agent.values.loss=hubr", f'{LOSS} must be one of huber, mse, got "hubr"; did you mean huber?'),
        ("agent.double=True", 'agent.double must be true or false, got "True"'),
        ("agent.double=1", "agent.double must be true or false, got 1"),
        ("agent.n_step=true", "agent.n_step must be an integer, got true"),
        ("agent.n_step='3'", 'agent.n_step must be an integer, got "3"'),
        ("agent.n_step=1.5", "agent.n_step must be an integer, got 1.5"),
        ("run.env_steps=1e6", "run.env_steps must be an integer, got 1000000.0; write 1_000_000"),
        ("agent.learning_rate=nan", "agent.learning_rate must be a finite number, got NaN"),
        ("agent.learning_rate=-inf", "agent.learning_rate must be a finite number, got -Infinity"),
        ("agent.learning_rate=fast", 'agent.learning_rate must be a number, got "fast"'),
        ("agent.network.hidden=[64, 0]", "agent.network.hidden[1] must be greater than or equal to 1, got 0"),
        ("agent.network.hidden=64", "agent.network.hidden must be an array, got 64"),
        ("agent.replay=5", "agent.replay must be a table, got 5"),
        ("agent=5", "agent must be a table, got 5"),
        ("env.game=7", "env.game must be a string, got 7"),
        ("run.env_steps.x=1", "run.env_steps must be a table to set run.env_steps.x, got 1000"),
        ("agent.n_step", 'an override must be KEY=VALUE, got "agent.n_step"'),
        ("agent..n_step=3", 'an override must be KEY=VALUE, got "agent..n_step=3"'),
    ],
)
def test_each_mistake_is_told_in_one_line(override: str, complaint: str) -> None:
    assert complaints(PONG, override) == [complaint]


def test_a_replay_too_small_for_one_stack_is_refused() -> None:
    (line,) = complaints(PONG, "agent.replay.capacity=40")
    assert line.startswith("agent.replay.capacity must hold at least 8 timesteps of each environment")
    assert line.endswith("got 40 for 8 environments; set agent.replay.capacity to 64 or more")
    assert toml.load(PONG, ["agent.replay.capacity=64"]).agent.replay.capacity == 64


LATER = "where agent.learn_from is replay, which has no later actions"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            ("learn_from=replay", "target_policy=sampled"),
            f"target_policy must be greedy or expected {LATER}, got sampled",
        ),
        (("learn_from=replay", "trace_decay=0.5"), f"trace_decay must be 1 {LATER}, got 0.5"),
        (("learn_from=replay", "cut_traces=true"), f"cut_traces must be false {LATER}, got true"),
        (
            ("n_step=1", "trace_decay=0.5"),
            "n_step must be above 1 for agent.trace_decay to weigh anything, got 1",
        ),
        (
            ("n_step=1", "cut_traces=true"),
            "n_step must be above 1 for agent.cut_traces to cut anything, got 1",
        ),
        (
            ("target_policy=sampled", "cut_traces=true"),
            "target_policy must be greedy for agent.cut_traces, got sampled",
        ),
    ],
)
def test_settings_of_a_table_that_contradict_each_other(settings: tuple[str, ...], complaint: str) -> None:
    (line,) = complaints(PONG, "agent.kind=q_learning", *(f"agent.{setting}" for setting in settings))
    assert line == f"agent.{complaint}"


def test_all_that_contradicts_each_other_is_told_at_once() -> None:
    table = ("agent.kind=q_learning", "agent.learn_from=replay")
    lines = complaints(PONG, *table, "agent.target_policy=sampled", "agent.trace_decay=0.5")
    assert lines == [
        f"agent.target_policy must be greedy or expected {LATER}, got sampled",
        f"agent.trace_decay must be 1 {LATER}, got 0.5",
    ]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["agent.exploration.kind=noisy"],
            (
                "agent.network.noisy must be true where agent.exploration.kind is noisy, got false: nothing "
                "else would explore"
            ),
        ),
        (
            ["agent.n_step=1", "agent.cut_traces=true"],
            "agent.n_step must be above 1 for agent.cut_traces to cut anything, got 1",
        ),
        (
            ["agent.n_step_end=5", "agent.horizon_steps=9"],
            "agent.n_step_end must be at most agent.n_step = 3, got 5",
        ),
        (
            ["agent.discount_end=0.5", "agent.horizon_steps=9"],
            "agent.discount_end must be at least agent.discount = 0.99, got 0.5",
        ),
        (
            ["agent.n_step_end=1", "agent.horizon_hold=100", "agent.horizon_steps=100"],
            (
                "agent.horizon_steps must be above agent.horizon_hold = 100, got 100: agent.n_step_end or "
                "agent.discount_end is not 0"
            ),
        ),
        (
            ["agent.horizon_hold=100"],
            (
                "agent.horizon_hold must be 0 where agent.n_step_end and agent.discount_end are 0, got 100: "
                "there is nothing to change"
            ),
        ),
        (
            ["agent.average_rate_end=0.1"],
            "agent.average_rate_end must be at most agent.average_rate = 0.0, got 0.1",
        ),
        (
            ["agent.munchausen.share=0.9", "agent.double=true"],
            (
                "agent.double must be false where agent.munchausen.share is not 0, got true: soft values "
                "have no best action that the other network could choose"
            ),
        ),
        (
            ["agent.values.kind=iqn", "agent.values.error=mean"],
            (
                "agent.values.error must be loss where agent.replay.sampling.kind is uniform, got mean: "
                "there are no priorities"
            ),
        ),
        (
            ["agent.reward_scale=0.5"],
            (
                'agent.reward_scale must be 1 where agent.reward_transform is "none", got 0.5; set '
                "agent.reward_transform to scale"
            ),
        ),
        (
            ["agent.values.kind=categorical", "agent.values.low=5", "agent.values.high=5"],
            (
                "agent.values: low must be less than high, got 5.0 and 5.0; give the least and the greatest "
                "return that can come"
            ),
        ),
        (
            ["agent.kind=q_learning", "agent.n_step=1", "agent.replay.sampling.kind=proportional"],
            (
                "agent.replay.sampling.kind must be uniform for a table, got proportional: it keeps no "
                "errors of its timesteps"
            ),
        ),
        (
            ["agent.kind=q_learning", "agent.target_policy=expected", "agent.exploration.longest=5"],
            (
                "agent.exploration.longest must be 1 where agent.target_policy is expected, got 5: what an "
                "agent does that holds its actions is not a matter of the state alone"
            ),
        ),
        (
            ["agent.n_step_bound=3"],
            "agent.n_step_bound must be above agent.n_step = 3, got 3, or 0 for no second return",
        ),
        (
            ["agent.n_step_bound_until=9"],
            (
                "agent.n_step_bound_until must be 0 where agent.n_step_bound is 0, got 9: "
                "there is nothing to end"
            ),
        ),
        (
            ["agent.heads=4", "agent.values.kind=iqn"],
            (
                "agent.heads must be 1 where agent.values.kind is iqn, got 4: what the network is asked for, "
                "it is asked for once; take quantile"
            ),
        ),
        (
            ["agent.values.kind=c51"],
            'agent.values.kind must be one of scalar, categorical, quantile, iqn, got "c51"',
        ),
        (
            ["agent.values.kind=quantile", "agent.values.atoms=51"],
            'agent.values.atoms is not a key, got 51; agent.values.kind = "categorical" has it',
        ),
    ],
)
def test_what_is_impossible_together_is_refused_with_the_reason(overrides: list[str], complaint: str) -> None:
    assert complaints(PONG, *overrides) == [complaint]


def test_traces_of_the_second_return_can_be_cut_too() -> None:
    settings = ("agent.n_step=1", "agent.cut_traces=true", "agent.n_step_bound=10")
    assert toml.load(PONG, settings).agent.horizons == (1, 10)


def test_several_impossible_pairs_are_told_at_once() -> None:
    found = complaints(
        PONG, "agent.exploration.kind=noisy", "agent.reward_scale=2", "agent.replay.capacity=9"
    )
    assert [line.split()[0] for line in found] == [
        "agent.network.noisy",
        "agent.reward_scale",
        "agent.replay.capacity",
    ]


def test_every_variant_can_be_set_by_its_kind() -> None:
    kinds = {
        "agent.values": ["scalar", "categorical", "quantile", "iqn"],
        "agent.exploration": ["epsilon", "boltzmann", "noisy"],
        "agent.replay.sampling": ["uniform", "proportional"],
    }
    for path, names in kinds.items():
        for name in names:
            experiment = toml.load(PONG, [f"{path}.kind={name}", "agent.network.noisy=true"])
            found: Any = experiment
            for part in path.split("."):
                found = getattr(found, part)
            assert found.kind == name
            assert toml.load(tomllib.loads(toml.dump(experiment))) == experiment


def test_all_mistakes_are_told_at_once() -> None:
    found = complaints(PONG, "agent.n_steps=2", "agent.values.loss=hubr", "nonsense", "run.seed=-1")
    assert {line.split()[0] for line in found} == {"an", "run.seed", "agent.values.loss", "agent.n_steps"}


def test_a_long_or_many_lined_value_stays_in_one_line() -> None:
    (line,) = complaints(PONG, f"agent.values.loss='''a\n{'b' * 500}'''")
    assert len(line) < 200


def test_a_malformed_file_is_told_with_its_name_line_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[run]\nenv_steps = = 5\n")
    assert complaints(file) == [f"{file} must be TOML: Invalid value (at line 2, column 13)"]
    file.write_bytes(b"# \xff\n")
    assert complaints(file) == [f"{file} must be UTF-8, got byte 0xff"]
    assert complaints(tmp_path) == [f"{tmp_path} cannot be read: Is a directory"]


def test_content_that_toml_cannot_hold_is_refused() -> None:
    (line,) = complaints({**SMALL, "env": {"kind": "gymnasium", "id": "A-v0", "kwargs": {"mode": None}}})
    assert line.startswith("an experiment must hold only what TOML can")


def test_the_name_is_the_files_unless_said(tmp_path: Path) -> None:
    file = tmp_path / "my first.toml"
    file.write_text('[run]\nenv_steps = 5\n[env]\nkind = "corridor"\n')
    assert toml.load(file).run.name == "my-first"
    assert toml.load(file, ["run.name=said"]).run.name == "said"
    assert toml.load(SMALL).run.name == "experiment"


def test_a_dump_holds_every_field_with_its_description() -> None:
    text = toml.dump(toml.load(PONG))
    lines = {line.split(" = ")[0]: line for line in text.splitlines()}
    for field, info in [*Run.model_fields.items(), *Atari.model_fields.items(), *DQN.model_fields.items()]:
        if info.description:
            assert info.description in lines[field]
    assert "none | fixed | soft" in text
    assert tomllib.loads(text)["agent"]["target"] == {"kind": "fixed", "sync_every": 10}


# Without subnormals: a training in this process may have switched them off.
numbers = st.floats(min_value=1e-300, allow_infinity=False, allow_subnormal=False)
values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    seed=st.integers(0, 2**31 - 1),
    rate=numbers,
    hidden=st.lists(st.integers(1, 4096), max_size=3),
    kwargs=st.dictionaries(st.text(), values, max_size=3),
    target=st.sampled_from(
        [{"kind": "none"}, {"kind": "fixed", "sync_every": 9}, {"kind": "soft", "rate": 0.1}]
    ),
    clip=st.just(0.0) | numbers,
)
def test_what_is_dumped_loads_as_the_same(
    seed: int, rate: float, hidden: list[int], kwargs: dict[str, Any], target: dict[str, Any], clip: float
) -> None:
    agent = {"learning_rate": rate, "gradient_clip": clip, "target": target, "network": {"hidden": hidden}}
    env = {"kind": "gymnasium", "id": "A-v0", "kwargs": kwargs}
    experiment = Experiment.model_validate(
        {"run": {"env_steps": 5, "seed": seed, "name": "x"}, "env": env, "agent": {"kind": "dqn", **agent}}
    )
    assert toml.load(tomllib.loads(toml.dump(experiment))) == experiment
    assert toml.load(experiment) == experiment
