"""One experiment as data: `[run]`, `[env]`, `[agent]`, `[checkpoint]`, frozen and checked as a whole.

A variant of an algorithm is a field here, never a subclass elsewhere. Descriptions carry the unit. How these
models are read from a file and written to one stands in `toml`.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import Field, model_validator

from rlagents_envs.config import EnvConfig, Model

Probability = Annotated[float, Field(ge=0, le=1)]
EnvSteps = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]  # of dense layers
HuberDelta = Annotated[
    float, Field(gt=0, description="error at which the Huber loss turns from square to linear")
]


class Run(Model):
    """How long, with which seed, where, and what is kept on the way."""

    name: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$|^$",
        description="of the experiment; empty: the file's name",
    )
    env_steps: EnvSteps = Field(
        description="budget: actions, in all environments together, frames skipped or not"
    )
    seed: int = Field(default=1, ge=0, lt=2**31, description="root of every random stream")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda where there is one"
    )
    torch_threads: int = Field(
        default=0, ge=0, description="on the CPU; 0: one less than there are cores, without images 1"
    )
    evaluate_every: int = Field(
        default=-1,
        ge=-1,
        description="env steps between evaluations; 0: only at the end; -1: a tenth of the budget",
    )
    evaluate_episodes: int = Field(default=30, ge=1, description="episodes of one evaluation")
    checkpoint_every: int = Field(
        default=-1,
        ge=-1,
        description="env steps between checkpoints; 0: only at the end; -1: a tenth of the budget",
    )
    video: bool = Field(default=False, description="record the first game of each evaluation as mp4")
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept, beside the best")
    reset_every: EnvSteps = Field(
        default=500_000,
        description="env steps between full resets, which bound the log that a resume replays",
    )

    @model_validator(mode="before")
    @classmethod
    def _tenths(cls, data: Any) -> Any:
        """Writes -1 out as a tenth of the budget, so that a resolved file says what is done."""
        if not isinstance(data, dict):
            return data
        table = cast("dict[str, Any]", data)
        if isinstance(steps := table.get("env_steps"), int):
            tenth = max(1, steps // 10)
            every = {k: tenth for k in ("evaluate_every", "checkpoint_every") if table.get(k, -1) == -1}
            return {**table, **every}
        return table


class Checkpoint(Model):
    """What a checkpoint keeps of the replay."""

    replay: Literal["all", "none"] = Field(
        default="all", description="rows, each written once; none: little to write, and a resume is not exact"
    )
    compress: bool = Field(default=False, description="rows compressed: less to write, more to compute")


class EpsilonGreedy(Model):
    """Epsilon-greedy, one coin per environment: linear from `start` to `end`."""

    kind: Literal["epsilon"] = "epsilon"
    start: Probability = Field(default=1.0, description="epsilon at the first env step")
    end: Probability = Field(default=0.05, description="epsilon from `steps` on")
    steps: int = Field(default=10_000, ge=0, description="env steps from `start` to `end`")
    ladder: float = Field(
        default=0.0,
        ge=0,
        description="environment i of N has epsilon ** (1 + ladder * i / (N - 1)), as in Ape-X; 0: all alike",
    )
    longest: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="steps that a random action is held at most, n of them with probability in proportion to "
        "n ** -2 (Dabney et al. 2021); 1: one step",
    )


class Boltzmann(Model):
    """Actions with probability softmax(values / temperature): linear from `start` to `end`."""

    kind: Literal["boltzmann"] = "boltzmann"
    start: float = Field(
        default=1.0, gt=0, description="temperature at the first env step, in units of value"
    )
    end: float = Field(default=0.05, gt=0, description="temperature from `steps` on")
    steps: int = Field(default=10_000, ge=0, description="env steps from `start` to `end`")


class NoisyExploration(Model):
    """The best action of a noisy network: its noise explores, each environment with its own."""

    kind: Literal["noisy"] = "noisy"


Exploration = Annotated[EpsilonGreedy | Boltzmann | NoisyExploration, Field(discriminator="kind")]


class UniformSampling(Model):
    """Every timestep is as likely as any other."""

    kind: Literal["uniform"] = "uniform"


class ProportionalSampling(Model):
    """A timestep is the likelier the larger its last error was (Schaul et al. 2016, section 3.3)."""

    kind: Literal["proportional"] = "proportional"
    exponent: Probability = Field(
        default=0.6, description="of the error, in the probability (alpha); 0: uniform"
    )
    importance_start: Probability = Field(
        default=0.4,
        description="exponent of the importance weights at the first env step (beta); 0: no weights",
    )
    importance_end: Probability = Field(
        default=1.0, description="the same at the end of the budget, linear in between"
    )
    floor: float = Field(
        default=1e-3, gt=0, description="added to each error, so that every timestep comes again"
    )


Sampling = Annotated[UniformSampling | ProportionalSampling, Field(discriminator="kind")]


class Replay(Model):
    """The shared replay of timesteps."""

    capacity: int = Field(default=100_000, ge=1, description="timesteps kept, in all environments together")
    sampling: Sampling = UniformSampling()


class NoTarget(Model):
    """Bootstraps from the online network."""

    kind: Literal["none"] = "none"


class FixedTarget(Model):
    """Bootstraps from a copy renewed now and then (Mnih et al. 2015)."""

    kind: Literal["fixed"] = "fixed"
    sync_every: EnvSteps = Field(default=1_000, description="env steps between copies of the online weights")


class SoftTarget(Model):
    """Bootstraps from a moving average of the online weights (Lillicrap et al. 2016)."""

    kind: Literal["soft"] = "soft"
    rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.005, description="part taken over per learner step"
    )


Target = Annotated[NoTarget | FixedTarget | SoftTarget, Field(discriminator="kind")]


class ScalarValues(Model):
    """One number per action: its expected return."""

    kind: Literal["scalar"] = "scalar"
    loss: Literal["huber", "mse"] = Field(default="huber", description="of the temporal-difference error")
    huber_delta: HuberDelta = 1.0


class CategoricalValues(Model):
    """A distribution over fixed returns per action: C51 (Bellemare et al. 2017)."""

    kind: Literal["categorical"] = "categorical"
    atoms: int = Field(default=51, ge=2, description="returns that have a probability each")
    low: float = Field(default=-10.0, description="least of these returns; goals below it count as this")
    high: float = Field(default=10.0, description="greatest of these returns; goals above it count as this")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(
                f"low must be less than high, got {self.low} and {self.high}; give the least and the "
                "greatest return that can come"
            )
        return self


QuantileError = Annotated[
    Literal["loss", "mean"],
    Field(
        description="what priorities go by; loss stays high where the return is a matter of chance, the "
        "difference of the means does not"
    ),
]


class QuantileValues(Model):
    """Quantiles of the return per action, at fixed fractions: QR-DQN (Dabney et al. 2018)."""

    kind: Literal["quantile"] = "quantile"
    quantiles: int = Field(
        default=51, ge=1, description="per action; the paper has 200, whose loss costs 15 times that of 51"
    )
    huber_delta: HuberDelta = 1.0
    error: QuantileError = "loss"


class ImplicitQuantileValues(Model):
    """The return as a function of a fraction that the network is asked for: IQN (Dabney et al. 2018b)."""

    kind: Literal["iqn"] = "iqn"
    learned: int = Field(default=8, ge=1, description="fractions drawn for each prediction (N)")
    goals: int = Field(default=8, ge=1, description="fractions drawn for each goal (N')")
    choice: int = Field(
        default=32, ge=1, description="evenly spread fractions behind a value, where actions are chosen (K)"
    )
    cosines: int = Field(default=64, ge=1, description="cosines of a fraction that the network reads")
    huber_delta: HuberDelta = 1.0
    error: QuantileError = "loss"


Values = Annotated[
    ScalarValues | CategoricalValues | QuantileValues | ImplicitQuantileValues, Field(discriminator="kind")
]


class Munchausen(Model):
    """Soft values, and part of the log-policy as a reward (Vieillard et al. 2020)."""

    share: Probability = Field(
        default=0.0,
        description="part of the log-policy that is added to the reward (alpha); 0: ordinary values",
    )
    temperature: float = Field(
        default=0.03, gt=0, description="of the policy softmax(values / temperature), in units of value"
    )
    lowest: float = Field(
        default=-1.0, lt=0, description="what temperature * log-policy counts as where it is below this"
    )


class Network(Model):
    """What stands between the observation and the values."""

    body: Literal["auto", "mlp", "nature_cnn", "arcade_cnn", "small_cnn", "impala"] = Field(
        default="auto", description="auto: by the observation space, each input of a dictionary on its own"
    )
    hidden: Widths = Field(
        default=(),
        description="widths of the dense layers; empty: 512 after pixels, 128 and 128 otherwise",
    )
    vector_hidden: Widths = Field(
        default=(),
        description="widths of the dense layers that each vector of numbers goes through before it is joined "
        "with other inputs; empty: joined as it is",
    )
    dueling: bool = Field(default=False, description="value and advantage streams (Wang et al. 2016)")
    layer_norm: bool = Field(default=False, description="LayerNorm before each ReLU, so that no layer dies")
    subtract_mean: bool = Field(
        default=False, description="images minus the mean image of the replay at the first learner step"
    )
    noisy: bool = Field(
        default=False, description="dense layers and head with noise of learned size (Fortunato et al. 2018)"
    )
    noise: float = Field(default=0.5, gt=0, description="size of that noise at the start (sigma_0)")


class NormalisedNetwork(Network):
    """The same, with LayerNorm unless told otherwise."""

    layer_norm: bool = Field(
        default=True, description="LayerNorm before each ReLU, which learning without a target network needs"
    )


class Learner(Model):
    """What every agent has."""

    discount: Probability = Field(
        default=0.99, description="of the rewards and values that follow, per env step"
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="at the start")
    learning_rate_end: float = Field(
        default=-1.0, ge=-1, description="after learning_rate_steps; -1: the same all the time"
    )
    learning_rate_steps: int = Field(
        default=0, ge=0, description="env steps from learning_rate to learning_rate_end; 0: the budget"
    )

    @property
    def final_learning_rate(self) -> float:
        """The learning rate that it comes to."""
        return self.learning_rate if self.learning_rate_end < 0 else self.learning_rate_end


class ReplayLearner(Learner):
    """What every agent that can learn from the replay has."""

    n_step: int = Field(default=1, ge=1, le=100, description="rewards summed before the bootstrap")
    batch_size: int = Field(default=64, ge=1, description="transitions per learner step (B)")
    learn_every: EnvSteps = Field(default=4, description="env steps per learner step")
    learning_starts: int = Field(default=1_000, ge=0, description="env steps before the first learner step")
    replay: Replay = Replay()

    @property
    def horizons(self) -> tuple[int, ...]:
        """How many rewards each return sums that a goal may come from."""
        return (self.n_step,)


class NetworkLearner(Learner):
    """What every agent with a network has."""

    learning_rate: float = Field(default=5e-4, gt=0, description="at the start")
    learning_rate_schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="way from learning_rate to learning_rate_end"
    )
    adam_epsilon: float = Field(default=1e-8, gt=0, description="added to Adam's denominator")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled (AdamW), times the learning rate; 0: none"
    )
    muon: float = Field(
        default=0.0,
        ge=0,
        description="convolutions are moved by Muon, at the learning rate times this (Jordan et al. 2024); "
        "0: by Adam, as all else is",
    )
    gradient_clip: float = Field(default=10.0, ge=0, description="largest norm of the gradient; 0: no limit")
    average_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="part taken over per learner step into the mean of the weights that evaluations act by; "
        "0: they act by the weights themselves",
    )
    average_rate_end: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="what average_rate falls to over the budget, by equal ratios; 0: it stays",
    )
    reward_transform: Literal["none", "sign", "scale", "normalise"] = Field(
        default="none",
        description="of the rewards learned, not of those reported; normalise: by the deviation of returns",
    )
    reward_scale: float = Field(default=1.0, gt=0, description="what rewards are multiplied by to scale them")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of a convolutional body; auto: bfloat16 where the device computes in it"
    )
    cuda_graph: bool = Field(
        default=True,
        description="on a GPU, learner steps and acting are recorded once and launched as CUDA graphs",
    )


class DQN(NetworkLearner, ReplayLearner):
    """Q-learning with a network and the replay."""

    kind: Literal["dqn"] = "dqn"
    n_step_end: int = Field(
        default=0, ge=0, le=100, description="what n_step falls to, by equal ratios; 0: it stays"
    )
    discount_end: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="what discount rises to: 1 - discount by equal ratios; 0: it stays",
    )
    horizon_hold: int = Field(default=0, ge=0, description="env steps before n_step and discount change")
    horizon_steps: int = Field(
        default=0, ge=0, description="env steps until they have become n_step_end and discount_end"
    )
    n_step_bound: int = Field(
        default=0,
        ge=0,
        le=100,
        description="rewards summed in a second, longer return, which is learned where it is the larger one: "
        "a lower bound where nothing is left to chance (He et al. 2017); 0: none",
    )
    n_step_bound_until: int = Field(
        default=0, ge=0, description="env steps after which that return no longer counts; 0: it always does"
    )
    double: bool = Field(
        default=False, description="online network chooses, target network values (van Hasselt et al. 2016)"
    )
    cut_traces: bool = Field(
        default=False, description="n-step returns end before the next action that was not greedy"
    )
    reset_head_every: int = Field(
        default=0, ge=0, description="env steps after which the last layers start anew; 0: never"
    )
    heads: int = Field(
        default=1,
        ge=1,
        le=100,
        description="last layers side by side, each with goals of its own; environments explore by one each, "
        "in turn from episode to episode, and evaluations act by their mean (Osband et al. 2016)",
    )
    target: Target = FixedTarget()
    values: Values = ScalarValues()
    munchausen: Munchausen = Munchausen()
    network: Network = Network()
    exploration: Exploration = EpsilonGreedy()

    @property
    def horizons(self) -> tuple[int, ...]:
        """How many rewards each return sums that a goal may come from."""
        return (self.n_step, self.n_step_bound) if self.n_step_bound else (self.n_step,)


class PQN(NetworkLearner):
    """Q-learning with a network from what many environments just did: no replay, no target network."""

    kind: Literal["pqn"] = "pqn"
    rollout: int = Field(
        default=32, ge=1, description="env steps of each environment that are learned from at once (T)"
    )
    epochs: int = Field(default=2, ge=1, description="times that each rollout is gone through (E)")
    minibatches: int = Field(default=32, ge=1, description="learner steps of an epoch (M)")
    trace_decay: Probability = Field(
        default=0.65,
        description="weight of the return against the bootstrap at each step (lambda); 0: one step only",
    )
    values: ScalarValues = ScalarValues(loss="mse")
    network: NormalisedNetwork = NormalisedNetwork()
    exploration: Annotated[EpsilonGreedy | Boltzmann, Field(discriminator="kind")] = EpsilonGreedy()


class QLearning(ReplayLearner):
    """A table of values, learned online or from the replay: Q-learning, SARSA and their kin."""

    kind: Literal["q_learning"] = "q_learning"
    learn_from: Literal["online", "replay"] = Field(
        default="online", description="each step once as it comes, or batches of the replay"
    )
    target_policy: Literal["greedy", "expected", "sampled"] = Field(
        default="greedy",
        description="greedy: a goal counts on the best next action (Q-learning); expected: on the mean over "
        "the agent's own policy (expected SARSA); sampled: on the action it then took (SARSA)",
    )
    double: bool = Field(
        default=False, description="two tables, each valuing what the other chose (van Hasselt 2010)"
    )
    trace_decay: Probability = Field(
        default=1.0,
        description="weight of the return against the bootstrap at each of the n_step steps (lambda); "
        "1: the n-step return",
    )
    cut_traces: bool = Field(
        default=False, description="returns end before the first action that was not greedy (Watkins 1989)"
    )
    learning_rate: float = Field(
        default=0.1, gt=0, le=1, description="part of the error corrected, at the start"
    )
    initial_value: float = Field(default=0.0, description="of every entry; above the best return: optimistic")
    exploration: EpsilonGreedy = EpsilonGreedy()


AgentConfig = Annotated[DQN | PQN | QLearning, Field(discriminator="kind")]


class Experiment(Model):
    """Everything that a run is made of."""

    run: Run
    env: EnvConfig
    agent: AgentConfig = DQN()
    checkpoint: Checkpoint = Checkpoint()

    @property
    def timesteps_kept(self) -> int:
        """Timesteps that the agent keeps at once, in all environments together."""
        agent = self.agent
        return agent.rollout * self.env.count if isinstance(agent, PQN) else agent.replay.capacity

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Refuses values that are each fine and impossible together."""
        if problems := list(_clashes(self.agent, self.env)):
            raise ValueError("\n".join(problems))
        return self


# What is wrong; of the agent's setting `key`; what it must do or be; why, or what else to do.
_Rule: TypeAlias = tuple[bool, str, str, str]


def _clashes(agent: DQN | PQN | QLearning, env: EnvConfig) -> Iterator[str]:
    """Yields what is impossible together, each in one line."""
    rules = _table_rules(agent) if isinstance(agent, QLearning) else _network_rules(agent)
    for wrong, key, requirement, why in (*rules, _size_rule(agent, env)):
        if wrong:
            yield f"agent.{key} must {requirement}, got {str(attrgetter(key)(agent)).lower()}{why}"


def least_timesteps(agent: DQN | QLearning, env: EnvConfig) -> int:
    """Returns how many timesteps of each environment a replay must hold for one to be whole."""
    return getattr(env, "frame_stack", 1) + max(agent.horizons) + 1


def _size_rule(agent: DQN | PQN | QLearning, env: EnvConfig) -> _Rule:
    """Returns what makes the replay or rollout fit the number of environments."""
    if isinstance(agent, PQN):
        product = f"env.count * agent.rollout = {env.count} * {agent.rollout}"
        steps = env.count * agent.rollout
        requirement = f"divide the env steps of a rollout, {product} = {steps}"
        return steps % agent.minibatches > 0, "minibatches", requirement, ""
    need = least_timesteps(agent, env)
    return (
        agent.replay.capacity // env.count < need,
        "replay.capacity",
        f"hold at least {need} timesteps of each environment (frame_stack + the steps of a return + 1)",
        f" for {env.count} environments; set agent.replay.capacity to {need * env.count} or more",
    )


def _network_rules(agent: DQN | PQN) -> Iterator[_Rule]:
    if isinstance(agent, PQN):
        yield (
            agent.network.noisy,
            "network.noisy",
            "be false where agent.kind is pqn",
            ": its goals count on the values that it acts on, which noise would make too high",
        )
        yield (
            agent.rollout == 1 and agent.trace_decay > 0,
            "rollout",
            "be above 1 for agent.trace_decay to weigh anything",
            "; set agent.trace_decay to 0 for one-step goals",
        )
    else:
        yield (
            agent.exploration.kind == "noisy" and not agent.network.noisy,
            "network.noisy",
            "be true where agent.exploration.kind is noisy",
            ": nothing else would explore",
        )
        yield (
            agent.heads > 1 and agent.values.kind == "iqn",
            "heads",
            "be 1 where agent.values.kind is iqn",
            ": what the network is asked for, it is asked for once; take quantile",
        )
        yield (
            agent.cut_traces and max(agent.horizons) == 1,
            "n_step",
            "be above 1 for agent.cut_traces to cut anything",
            "",
        )
        yield agent.n_step_end > agent.n_step, "n_step_end", f"be at most agent.n_step = {agent.n_step}", ""
        yield (
            0 < agent.n_step_bound <= agent.n_step,
            "n_step_bound",
            f"be above agent.n_step = {agent.n_step}",
            ", or 0 for no second return",
        )
        yield (
            agent.n_step_bound_until > 0 == agent.n_step_bound,
            "n_step_bound_until",
            "be 0 where agent.n_step_bound is 0",
            ": there is nothing to end",
        )
        yield (
            0 < agent.discount_end < agent.discount,
            "discount_end",
            f"be at least agent.discount = {agent.discount}",
            "",
        )
        changes, until = max(agent.n_step_end, agent.discount_end) > 0, agent.horizon_steps
        yield (
            changes and until <= agent.horizon_hold,
            "horizon_steps",
            f"be above agent.horizon_hold = {agent.horizon_hold}",
            ": agent.n_step_end or agent.discount_end is not 0",
        )
        yield (
            not changes and max(until, agent.horizon_hold) > 0,
            "horizon_steps" if until else "horizon_hold",
            "be 0 where agent.n_step_end and agent.discount_end are 0",
            ": there is nothing to change",
        )
        yield (
            agent.munchausen.share > 0 and agent.double,
            "double",
            "be false where agent.munchausen.share is not 0",
            ": soft values have no best action that the other network could choose",
        )
        yield (
            getattr(agent.values, "error", "loss") != "loss" and agent.replay.sampling.kind == "uniform",
            "values.error",
            "be loss where agent.replay.sampling.kind is uniform",
            ": there are no priorities",
        )
    yield (
        agent.average_rate_end > agent.average_rate,
        "average_rate_end",
        f"be at most agent.average_rate = {agent.average_rate}",
        "",
    )
    yield (
        agent.reward_scale != 1 and agent.reward_transform != "scale",
        "reward_scale",
        f'be 1 where agent.reward_transform is "{agent.reward_transform}"',
        "; set agent.reward_transform to scale",
    )


def _table_rules(agent: QLearning) -> Iterator[_Rule]:
    cut, decays, policy = agent.cut_traces, agent.trace_decay < 1, agent.target_policy
    if agent.learn_from == "replay":
        later = "where agent.learn_from is replay, which has no later actions"
        yield policy == "sampled", "target_policy", f"be greedy or expected {later}", ""
        yield decays, "trace_decay", f"be 1 {later}", ""
        yield cut, "cut_traces", f"be false {later}", ""
    else:
        short = agent.n_step == 1
        yield short and decays, "n_step", "be above 1 for agent.trace_decay to weigh anything", ""
        yield short and cut, "n_step", "be above 1 for agent.cut_traces to cut anything", ""
        yield cut and policy != "greedy", "target_policy", "be greedy for agent.cut_traces", ""
    sampling = agent.replay.sampling.kind
    why = ": it keeps no errors of its timesteps"
    yield sampling != "uniform", "replay.sampling.kind", "be uniform for a table", why
    yield agent.exploration.ladder > 0, "exploration.ladder", "be 0 for a table", ""
    yield (
        agent.exploration.longest > 1 and policy != "greedy",
        "exploration.longest",
        f"be 1 where agent.target_policy is {policy}",
        ": what an agent does that holds its actions is not a matter of the state alone",
    )
