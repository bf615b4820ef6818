"""The conditions in which drivers are compared: traffic as in NoCrash, in a known and in an unseen town.

NoCrash (Codevilla et al. 2019) has 20 and 100 vehicles on the lanes of CARLA's first town, some 8 km of them.
Our towns have 2 to 5 km: with the numbers below they are at least as full.
"""

from rlagents_envs.carla.towns import FAMILIES
from rlagents_envs.config import Carla

TRAFFIC = {  # vehicles, and walkers who cross each route
    "empty": (0, 0),
    "regular": (20, 3),
    "dense": (50, 10),
}
METRICS = (  # what a table of them shows
    "success",
    "route_completion",
    "driving_score_2.0",
    "driving_score_2.1",
    "collision_walker_per_km",
    "collision_vehicle_per_km",
    "red_light_per_km",
    "mean_speed",
)


def suites(config: Carla) -> dict[str, Carla]:
    """Returns a task in each traffic, in the towns of its training and in unseen ones.

    Unseen are those `evaluation_towns` that are of another family than any of the training; without such, the
    first town of the first family of ours that is.

    Raises:
        ValueError: there is no such family.
    """
    seen = config.towns or ("grid-1",)
    families = {_family(town) for town in seen}
    new = [town for town in config.evaluation_towns if _family(town) not in families]
    unseen = new or [f"{family}-1" for family in FAMILIES if family not in families][:1]
    if not unseen:
        raise ValueError("env.evaluation_towns must name a town of another family than env.towns, got none")
    return {
        f"{name}-{where}": config.model_copy(
            update={
                "vehicles": vehicles,
                "walkers": walkers,
                "lights": True,
                "towns": towns,
                "evaluation_towns": (),
            }
        )
        for where, towns in (("seen", config.towns), ("unseen", tuple(unseen)))
        for name, (vehicles, walkers) in TRAFFIC.items()
    }


def _family(town: str) -> str:
    return town.rpartition("-")[0] or town
