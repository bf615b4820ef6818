"""Environments that step together, made from an `[env]` table: `make(config)`.

The one idea: whatever stands behind it, the loop sees the same `Environments`. This package imports neither
torch nor rlagents, and a simulator's own package only when an environment of that kind is made.
"""

from typing import get_args

from gymnasium import register  # pyright: ignore[reportUnknownVariableType]

from rlagents_envs.config import Atari, Carla, CartPole, Corridor, EnvConfig, Gridworld, Gymnasium
from rlagents_envs.model import Model, ModelEnvironments
from rlagents_envs.vector import Environments, Layout, Leaf, Outcome

__all__ = ["EnvConfig", "Environments", "Layout", "Leaf", "Model", "Outcome", "describe", "make", "model_of"]

register("rlagents_envs/Carla-v0", "rlagents_envs.carla.env:CarlaEnv")


def make(
    config: EnvConfig, *, count: int | None = None, pictures: bool = False, resting: bool = False
) -> Environments:
    """Makes the vector of environments that a table describes.

    Args:
        config: The `[env]` table.
        count: N, if another than `config.count`.
        pictures: Whether `picture()` is wanted; it may cost a second emulator or a renderer.
        resting: Whether single environments may be left standing with `rest`, where a kind can.

    Raises:
        ValueError: In one line: an id, game, module or wrapper that is not there, an environment that breaks
            its contract, or actions that are not discrete.
    """
    if count is not None:
        if count < 1:
            raise ValueError(f"count must be a positive number of environments, got {count}")
        config = config.model_copy(update={"count": count})
    match config:
        case Gridworld():
            from rlagents_envs.toy import gridworld

            return gridworld(config)
        case Corridor():
            from rlagents_envs.toy import corridor

            return corridor(config)
        case CartPole():
            from rlagents_envs.cartpole import CartPoleEnvironments

            return CartPoleEnvironments(config, pictures=pictures)
        case Atari():
            from rlagents_envs.atari import AtariEnvironments

            return AtariEnvironments(config, pictures=pictures, resting=resting)
        case Gymnasium(backend="model"):
            from rlagents_envs.transitions import modelled

            return modelled(config, pictures=pictures)
        case Gymnasium():
            from rlagents_envs.gymnasium import GymnasiumEnvironments

            return GymnasiumEnvironments(config, pictures=pictures)
        case Carla():
            from rlagents_envs.carla.vector import CarlaEnvironments

            return CarlaEnvironments(config, pictures=pictures)


def model_of(config: EnvConfig) -> Model:
    """Returns the model behind the environments of a table.

    Raises:
        ValueError: In one line: they have none, or it does not say everything.
    """
    if isinstance(config, Gymnasium):
        from rlagents_envs import transitions

        return transitions.model_of(config)
    envs = make(config, count=1)
    if isinstance(envs, ModelEnvironments):
        return envs.model
    envs.close()
    raise ValueError(f"env.kind must be one whose model is known, got {config.kind}")


def describe() -> list[tuple[str, str]]:
    """Returns every kind of environment with one line about it."""
    models = get_args(get_args(EnvConfig)[0])
    return [(str(model.model_fields["kind"].default), str(model.__doc__).splitlines()[0]) for model in models]
