"""N cars on N servers, as the loop sees them.

The one idea: `CarlaEnv` in Gymnasium's vector, each in a process of its own beside its server. What can be
known without a server, such as that there is none, is said before anything is started.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from gymnasium import spaces

from rlagents_envs.carla import actions as tables
from rlagents_envs.carla.connection import ServerError, address, launch_command, library, probe
from rlagents_envs.carla.env import CarlaEnv
from rlagents_envs.carla.metrics import summary
from rlagents_envs.config import Carla
from rlagents_envs.gymnasium import GymnasiumEnvironments
from rlagents_envs.single import Maker
from rlagents_envs.vector import Bools, Obs

_ENV = "rlagents_envs.carla.env:CarlaEnv"


class CarlaEnvironments(GymnasiumEnvironments):
    """N environments, each with a server of its own.

    Raises:
        ValueError: the carla package is not there, no server answers, or there is none to launch.
    """

    replayable = False  # the other cars are not the same each time

    def __init__(self, config: Carla, *, pictures: bool = False) -> None:
        library()
        try:
            if config.launch:
                launch_command(config, 0)
            for each in config.server.split(",")[: config.count] if config.server else []:
                probe(*address(each))
        except ServerError as error:
            raise ValueError(str(error)) from error
        makers = [
            Maker(
                "rlagents_envs.carla.env:CarlaEnv",
                {"config": config, "index": index},
                (),
                pictures and not index,
                index,
            )
            for index in range(config.count)
        ]
        blueprint = CarlaEnv(config)  # nothing is started before a reset
        actions = cast("spaces.Discrete", blueprint.action_space)
        self.action_names = tables.names(config.actions)
        self._open(config, makers, actions, blueprint.observation_space, blueprint.metadata["drivers"])
        self._anew, self._restart = self._restart, False

    def summarise(self, reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Returns the metrics of driving."""
        return summary(reports)

    def reset(self, seed: int) -> tuple[Obs, Bools | None]:
        """Starts every environment anew; what fails at the very first time is not tried again."""
        seen = super().reset(seed)
        self._restart = self._anew
        # Whoever takes the place of these has patience: there was a server, and there may be one again.
        self._makers = [replace(maker, kwargs={**maker.kwargs, "again": True}) for maker in self._makers]
        return seen
