"""The shared replay: a ring of timesteps (`Ring`) and what draws rows from it (`Sampler`)."""

from rlagents.replay.ring import Ring, row_bytes
from rlagents.replay.sampling import Sampler, Uniform

__all__ = ["Ring", "Sampler", "Uniform", "row_bytes"]
