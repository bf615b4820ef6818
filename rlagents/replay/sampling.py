"""Which rows of the ring a batch is drawn from.

The ring says which rows may be drawn; a sampler knows nothing else of them. Rows are allowed in the order in
which they were written and forbidden in the same order, which is all that uniform sampling needs.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlagents.types import State
from rlagents_envs.vector import Array


def writer(to: Tensor, part: tuple[slice, ...] = ()) -> Callable[[slice | int, Tensor | Array], None]:
    """Returns what writes rows of a tensor: on the CPU numpy, which starts a small copy in less time.

    Args:
        to: whose rows are written.
        part: of the values given later, what is written.
    """
    host = to.numpy() if to.device.type == "cpu" else None

    def write(row: slice | int, value: Tensor | Array) -> None:
        if host is None:
            # Without waiting: what comes from ordinary memory the driver has put aside when this returns.
            to[row].copy_(torch.as_tensor(value)[part], non_blocking=True)
        else:
            host[row] = (value.numpy() if isinstance(value, Tensor) else value)[part]

    return write


class Sampler:
    """Draws rows of the ring; that of a subclass may know more of them than that they are sampleable."""

    generator: torch.Generator  # where draws come from

    def allow(self, row: NDArray[np.int64]) -> None:
        """Makes rows [M], ascending and newer than all allowed so far, sampleable."""
        raise NotImplementedError

    def forbid(self, row: NDArray[np.int64]) -> None:
        """Makes rows [M], ascending and the oldest of those allowed, unsampleable."""
        raise NotImplementedError

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns `size` rows [B] int64 and their importance weights [B] float32, with replacement."""
        raise NotImplementedError

    def reopen(self, row: NDArray[np.int64]) -> None:
        """Makes rows [M], oldest first, the only sampleable ones, after a checkpoint was read."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Returns the number of sampleable rows."""
        raise NotImplementedError

    def update(self, row: Tensor, error: Tensor) -> None:
        """Takes note of how wrong the predictions for rows [B] were: [B], not negative."""

    def anneal(self, env_steps: int) -> None:
        """Sets what changes with the env steps; called before learner steps, never within."""

    def state_dict(self) -> State:
        """Returns what is known of rows beside their being sampleable."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Keeps what `state_dict` returned for the next `reopen`."""


class Uniform(Sampler):
    """Every sampleable row is equally likely.

    A queue of the sampleable rows: exact, of constant cost and of static shape, where rejection is none of
    these.
    """

    def __init__(self, rows: int, generator: torch.Generator) -> None:
        self._rows = rows
        self._queue = torch.zeros(rows, dtype=torch.int64, device=generator.device)
        self._write = writer(self._queue)
        on_cpu = generator.device.type == "cpu"
        # Start and length, for a recorded graph.
        self._bounds = None if on_cpu else torch.zeros(2, dtype=torch.int64, device=generator.device)
        self.generator = generator
        self._ones = torch.ones(1, device=generator.device)
        self._start = self._end = 0

    def allow(self, row: NDArray[np.int64]) -> None:
        """Makes rows sampleable."""
        at = self._end % self._rows
        over = at + len(row) - self._rows
        if over <= 0:
            self._write(slice(at, at + len(row)), row)
        else:
            self._write(slice(at, self._rows), row[:-over])
            self._write(slice(0, over), row[-over:])
        self._end += len(row)
        if self._bounds is not None:
            self._bounds.copy_(torch.tensor([self._start, len(self)]), non_blocking=True)

    def forbid(self, row: NDArray[np.int64]) -> None:
        """Makes the oldest rows unsampleable; a recorded graph sees it when rows are next allowed."""
        self._start += len(row)

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Draws rows, all of weight 1."""
        if self._bounds is None:
            place = torch.randint(self._start, self._end, (size,), generator=self.generator)
        else:  # 2**62 is so large that the remainder is even
            any_ = torch.randint(2**62, (size,), generator=self.generator, device=self._bounds.device)
            place = any_ % self._bounds[1] + self._bounds[0]
        return self._queue[place.remainder_(self._rows)], self._ones.expand(size)

    def reopen(self, row: NDArray[np.int64]) -> None:
        """Makes rows the only sampleable ones."""
        self._start = self._end = 0
        self.allow(row)

    def __len__(self) -> int:
        """Returns the number of sampleable rows."""
        return self._end - self._start
