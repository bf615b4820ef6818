"""Prioritised replay: rows are drawn in proportion to a priority (Schaul et al. 2016).

The tree of sums is wide and flat: three levels whatever the capacity, and a whole batch goes down or up one
level in a few operations on arrays. Their shapes depend on the size of the batch alone, so a CUDA graph can
hold them. The same lines run on numpy arrays, which cost little to start, and on tensors of a GPU.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlagents.replay.sampling import Sampler
from rlagents.schedules import Linear
from rlagents.types import State

Array: TypeAlias = Any  # a numpy array, or a tensor: what is written with both means the same
_BELOW_ONE = 1 - 2**-50


class SumTree:
    """Priorities, not negative, of numbered rows, and their sums over blocks of rows, float64.

    A sum is always made anew from its parts, never corrected by a difference: nothing drifts.

    Args:
        rows: how many.
        device: where the sums lie.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        width = 2  # parts of a sum
        while width**3 < rows:
            width += 1
        shapes = ((1, width), (width, width), (width**2, width))  # one sum, its parts, theirs
        tensors = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
        self._levels: list[Array] = [self._array(tensor) for tensor in tensors]
        self._flat: list[Array] = [level.reshape(-1) for level in self._levels]  # views
        self.width = width

    def _array(self, tensor: Tensor) -> Array:
        return tensor.numpy() if tensor.device.type == "cpu" else tensor

    def write(self, row: Tensor, priority: Tensor) -> None:
        """Sets priorities [M], or one for all, of rows [M] int64."""
        place = self._array(row)
        self._flat[2][place] = self._array(priority.double())
        for parts, sums in ((self._levels[2], self._flat[1]), (self._levels[1], self._flat[0])):
            place = place // self.width
            sums[place] = parts[place].sum(1)

    def fill(self, start: int, stop: int, priority: Tensor) -> None:
        """Sets one priority for the rows from start to before stop: what lies together needs no look-up."""
        self._flat[2][start:stop] = self._array(priority)
        for parts, sums in ((self._levels[2], self._flat[1]), (self._levels[1], self._flat[0])):
            start, stop = start // self.width, (stop - 1) // self.width + 1
            sums[start:stop] = parts[start:stop].sum(1)

    def read(self, row: Tensor) -> Tensor:
        """Returns the priorities [M] float32 of rows [M]."""
        return torch.as_tensor(self._flat[2][self._array(row)]).float()

    def leaves(self, rows: int) -> Tensor:
        """Returns the priorities of the first rows, float32."""
        return torch.as_tensor(self._flat[2][:rows]).float()

    def rewrite(self, row: Tensor, priority: Tensor) -> None:
        """Sets priorities [M], or one for all, of rows [M] int64, and zero for every other row.

        For many rows: `write` gathers the whole block of each.
        """
        self._flat[2][:] = 0
        self._flat[2][self._array(row)] = self._array(priority.double())
        self._flat[1][:] = self._levels[2].sum(1)
        self._flat[0][:] = self._levels[1].sum(1)

    def find(self, share: Tensor) -> Tensor:
        """Returns the rows [M] at which the running sum of priorities exceeds `share` of the total.

        Args:
            share: [M] float64 in [0, 1).
        """
        mass = self._array(share)
        lane = self._array(torch.arange(len(share), device=share.device))
        block = lane * 0
        for index, level in enumerate(self._levels):
            running = level[block].cumsum(1)  # [M, width]
            total = running[:, -1]
            if not index:
                mass = mass * total
            mass = mass.clip(max=total * _BELOW_ONE)  # roundings never lead past the last part that is not 0
            part = (running <= mass[:, None]).sum(1)
            mass = mass - running[lane, part - 1] * (part > 0)
            block = block * self.width + part
        return torch.as_tensor(block)


class Proportional(Sampler):
    """A row's probability is its priority's share of the sum: (error + floor)**exponent of its last error.

    A new row has the highest priority so far, so that it comes soon. Importance weights are
    (count * probability)**-importance, divided by the largest of the batch (section 3.4). Departure from the
    paper: the draws of a batch are independent, not one from each of B equal shares of the sum.

    Args:
        rows: of the ring.
        generator: where draws come from; all lies on its device.
        exponent: alpha of the paper.
        importance: beta of the paper, by env steps.
        floor: epsilon of the paper.
    """

    def __init__(
        self, rows: int, generator: torch.Generator, *, exponent: float, importance: Linear, floor: float
    ) -> None:
        self.generator, self._rows = generator, rows
        self._exponent, self._schedule, self._floor = exponent, importance, floor
        device = generator.device
        self._tree = SumTree(rows, device)
        self._highest = torch.ones((), device=device)
        self._importance = torch.full((), importance.start, device=device)
        self._nothing = torch.zeros((), device=device)
        self._saved: Tensor | None = None
        self._length = 0

    def allow(self, row: NDArray[np.int64]) -> None:
        """Makes rows sampleable, with the highest priority so far."""
        self._write(row, self._highest)
        self._length += len(row)

    def forbid(self, row: NDArray[np.int64]) -> None:
        """Makes rows unsampleable."""
        self._write(row, self._nothing)
        self._length -= len(row)

    def _write(self, row: NDArray[np.int64], priority: Tensor) -> None:
        if not len(row):
            return
        start, stop = int(row[0]), int(row[-1]) + 1
        if stop - start == len(row):  # always, but where an episode has just ended
            self._tree.fill(start, stop, priority)
        else:
            self._tree.write(torch.from_numpy(row).to(self.generator.device, non_blocking=True), priority)

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Draws rows in proportion to their priorities, with their importance weights."""
        device = self.generator.device
        share = torch.rand(size, dtype=torch.float64, generator=self.generator, device=device)
        row = self._tree.find(share)
        priority = self._tree.read(row)
        # Count and sum are the same for the whole batch, so the division takes them out.
        return row, (priority.amin() / priority).pow(self._importance)

    def update(self, row: Tensor, error: Tensor) -> None:
        """Sets the priorities of rows [B] by their errors [B].

        What is not finite is made so: a learning that diverged is told elsewhere, the sums go on being sums.
        """
        priority = (error.float().nan_to_num() + self._floor).pow(self._exponent)
        self._tree.write(row, priority)
        torch.maximum(self._highest, priority.amax(), out=self._highest)

    def anneal(self, env_steps: int) -> None:
        """Sets the exponent of the importance weights."""
        self._importance.fill_(self._schedule(env_steps))

    def reopen(self, row: NDArray[np.int64]) -> None:
        """Makes rows the only sampleable ones, with their saved priorities, or else the highest."""
        saved, device = self._saved, self._highest.device
        priority = self._highest if saved is None else saved[row].to(device)
        self._tree.rewrite(torch.from_numpy(row).to(device), priority)
        self._saved, self._length = None, len(row)

    def state_dict(self) -> State:
        """Returns the priorities of all rows, whole."""
        return {"priority": self._tree.leaves(self._rows), "highest": self._highest}

    def load_state_dict(self, state: State) -> None:
        """Keeps the priorities for the next `reopen`."""
        self._saved = state["priority"].cpu()
        self._highest.copy_(state["highest"])

    def __len__(self) -> int:
        """Returns the number of sampleable rows."""
        return self._length
