"""An experiment of ours in Tianshou's DQN (Weng et al. 2022), with the network and replay of its examples."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, SupportsFloat, cast

import click

from rlagents import building
from rlagents.config import DQN, EpsilonGreedy, Experiment, FixedTarget
from rlagents.peers import TIANSHOU, plain
from rlagents.schedules import Linear
from rlagents_envs.config import Atari, CartPole

if TYPE_CHECKING:
    import gymnasium
    import torch
    from tianshou.algorithm.modelfree import dqn
    from tianshou.data import CollectStats
    from tianshou.env import BaseVectorEnv

    from rlagents.timing import Plan, Row

_HIDDEN = (512,)  # units of its Nature CNN


def require(experiment: Experiment) -> tuple[DQN, FixedTarget]:
    """Returns agent and target of an experiment that Tianshou's DQN can do as it stands.

    Raises:
        UsageError: it cannot, or is not installed: one line for each field.
    """
    return plain.require(experiment, TIANSHOU, plain.HANDED_OVER, _else_wrong)


def _else_wrong(agent: DQN, env: Atari | CartPole) -> Iterator[plain.Wrong]:
    target, hidden = agent.target, tuple(agent.network.hidden)
    if isinstance(target, FixedTarget) and target.sync_every % agent.learn_every:
        must = f"a multiple of agent.learn_every, {agent.learn_every},"
        yield "agent.target.sync_every", must, target.sync_every
    if isinstance(env, Atari) and hidden not in ((), _HIDDEN):
        yield "agent.network.hidden", list(_HIDDEN), list(hidden)


def maker(experiment: Experiment, *, training: bool) -> "Callable[[], gymnasium.Env[Any, Any]]":
    """Returns what makes one environment.

    Gymnasium's wrappers stand for Tianshou's own, which numpy 2.4 refuses (Tianshou 2.0.1, 2026-11-20).
    """
    env, agent = experiment.env, experiment.agent
    sign = training and isinstance(agent, DQN) and agent.reward_transform == "sign"

    def make() -> "gymnasium.Env[Any, Any]":
        import gymnasium
        from gymnasium import wrappers

        if isinstance(env, Atari):
            name, arguments = plain.emulator(env)
            single = wrappers.AtariPreprocessing(
                gymnasium.make(name, **arguments),
                noop_max=env.noop_max,
                frame_skip=env.frame_skip,
                screen_size=(env.width, env.height),
                terminal_on_life_loss=training and env.terminal_on_life_loss,
            )
            single = wrappers.FrameStackObservation(single, env.frame_stack)
        else:
            single = gymnasium.make("CartPole-v1", max_episode_steps=getattr(env, "time_limit", None))
        return wrappers.TransformReward(single, _sign) if sign else single

    return make


def environments(experiment: Experiment, count: int, seed: int, *, training: bool) -> "BaseVectorEnv":
    """Makes environments; as in Tianshou's examples, several of Atari in processes that share memory."""
    from tianshou.env import DummyVectorEnv, ShmemVectorEnv

    several = isinstance(experiment.env, Atari) and count > 1
    envs = (ShmemVectorEnv if several else DummyVectorEnv)([maker(experiment, training=training)] * count)
    envs.seed(seed)
    return envs


def _sign(reward: SupportsFloat) -> float:
    return float((float(reward) > 0) - (float(reward) < 0))


class Training:
    """Tianshou's DQN with the hyper-parameters of an experiment, its collector and its trainer.

    Raises:
        UsageError: they cannot be had in it.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.agent, target = require(experiment)
        import numpy as np
        import torch
        from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import Collector, VectorReplayBuffer

        self.experiment, run, env, agent = experiment, experiment.run, experiment.env, self.agent
        torch.manual_seed(run.seed)
        np.random.seed(run.seed)  # noqa: NPY002 - it draws from there
        envs = environments(experiment, env.count, run.seed, training=True)
        like = maker(experiment, training=True)()  # theirs say the spaces of the innermost environment
        like.close()
        actions = cast("gymnasium.spaces.Discrete", like.action_space)
        pixels = isinstance(env, Atari)
        explore = cast("EpsilonGreedy", agent.exploration)  # nothing else passes
        self.policy = DiscreteQLearningPolicy(
            model=_network(agent, pixels, like.observation_space.shape or (), int(actions.n)).to(
                building.choose_device(run.device)
            ),
            action_space=actions,
            observation_space=like.observation_space,
            eps_training=explore.start,
        )
        self.algorithm = _clipping(agent.gradient_clip)(
            policy=self.policy,
            optim=AdamOptimizerFactory(lr=agent.learning_rate, eps=agent.adam_epsilon),
            gamma=agent.discount,
            n_step_return_horizon=agent.n_step,
            target_update_freq=target.sync_every // agent.learn_every,  # counted in learner steps
            is_double=False,
            huber_loss_delta=1.0,
        )
        frames = (
            {"ignore_obs_next": True, "save_only_last_obs": True, "stack_num": env.frame_stack}
            if pixels
            else {}
        )
        self.buffer = VectorReplayBuffer(agent.replay.capacity, buffer_num=env.count, **frames)
        self.collector: Collector[CollectStats] = Collector(
            self.algorithm, envs, self.buffer, exploration_noise=True
        )
        self._epsilon = Linear(explore.start, explore.end, explore.steps)
        self.env_steps = 0

    @property
    def updates(self) -> int:
        """Learner steps so far."""
        return self.algorithm._iter  # pyright: ignore[reportPrivateUsage]

    def run(self, watch: Callable[[], object], **evaluated: Any) -> None:
        """Trains to the end of the budget; `watch` is called before each tick that is learned from."""
        from tianshou.trainer import OffPolicyTrainerParams

        agent, run, count = self.agent, self.experiment.run, self.experiment.env.count
        random = math.ceil(agent.learning_starts / count) * count
        self.collector.reset()
        self.collector.collect(n_step=random, random=True)

        def before(_: int, env_steps: int) -> None:
            self.env_steps = random + env_steps
            self.policy.set_eps_training(self._epsilon(self.env_steps))
            watch()

        every = run.evaluate_every or run.env_steps
        self.algorithm.run_training(
            OffPolicyTrainerParams(
                training_collector=self.collector,
                max_epochs=math.ceil((run.env_steps - random) / every),
                epoch_num_steps=every,
                batch_size=agent.batch_size,
                collection_step_num_env_steps=plain.period(self.experiment, agent),
                update_step_num_gradient_steps_per_sample=1 / agent.learn_every,
                training_fn=before,
                verbose=False,
                show_progress=False,
                **evaluated,
            )
        )


def _network(agent: DQN, pixels: bool, shape: tuple[int, ...], actions: int) -> "torch.nn.Module":
    """Returns the network of its examples."""
    from tianshou.env.atari.atari_network import DQNet, ScaledObsInputActionReprNet
    from tianshou.utils.net.common import Net

    if pixels:
        channels, height, width = shape
        return ScaledObsInputActionReprNet(DQNet(channels, height, width, actions))
    return Net(state_shape=shape, action_shape=actions, hidden_sizes=agent.network.hidden or (128, 128))


def _clipping(limit: float) -> "type[dqn.DQN[Any]]":
    """Returns its DQN with gradients limited: it leaves how an optimiser is made to a method."""
    from tianshou.algorithm.modelfree.dqn import DQN as Theirs

    class Clipping(Theirs[Any]):
        def _create_policy_optimizer(self, optim: Any) -> Any:
            return self._create_optimizer(self.policy, optim, max_grad_norm=limit or None)

    return Clipping


class _Done(Exception):  # noqa: N818 - no error
    """Ends a training from within."""


def measure(experiment: Experiment, plan: "Plan") -> "tuple[list[Row], list[str]]":
    """Times Tianshou's training loop once it learns; returns rows and notes."""
    from rlagents.timing import Row

    training, pieces = Training(experiment), plain.Pieces(plan)

    def watch() -> None:
        if not pieces.more(training.env_steps, training.updates):
            raise _Done

    try:
        training.run(watch)
    except _Done:
        training.collector.close()
    size = _nbytes(training.buffer._meta) / 1e6  # pyright: ignore[reportPrivateUsage]
    return [*pieces.rows(TIANSHOU.name), Row(TIANSHOU.name, "MB of full replay", (size,))], []


def _nbytes(value: Any) -> int:
    """Returns the bytes of the arrays in a tree of batches."""
    return int(value.nbytes) if hasattr(value, "nbytes") else sum(map(_nbytes, value.values()))


def train(experiment: Experiment) -> None:
    """Trains and evaluates greedily as often as ours does, and prints the same lines."""
    from tianshou.data import Collector

    from rlagents.report.console import evaluation_line

    run, training = experiment.run, Training(experiment)
    envs = environments(
        experiment, min(run.evaluate_episodes, plain.EVALUATED), run.seed + 1_000_000, training=False
    )

    def score(stats: Any) -> float:
        mean = float(stats.returns_stat.mean)
        if training.updates:  # it evaluates before it starts, too
            click.echo(evaluation_line(training.env_steps, {"evaluate/return_mean": mean}))
        return mean

    training.run(
        lambda: None,
        test_collector=Collector(training.algorithm, envs),
        test_step_num_episodes=run.evaluate_episodes,
        compute_score_fn=score,
    )


main = plain.command(TIANSHOU, measure, train)

if __name__ == "__main__":
    main()
