"""One seed, many named streams of random numbers, none of which disturbs another.

A stream depends on the seed and its own name only: adding one leaves the others as they were.
"""

import zlib

import numpy as np
import torch


class Streams:
    """Named random streams spawned from one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _sequence(self, name: str, index: int = 0) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(zlib.crc32(name.encode()), index))

    def integer(self, name: str, index: int = 0) -> int:
        """Returns the stream's seed as 31 bits, which is what every environment accepts."""
        return int(self._sequence(name, index).generate_state(1)[0] & 0x7FFF_FFFF)

    def torch(self, name: str, device: torch.device) -> torch.Generator:
        """Returns a fresh generator on `device`."""
        seed = int(self._sequence(name).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator(device).manual_seed(seed)
