"""Where learning broke: the first batch whose loss or gradient is no number."""

import math

import torch
from torch import Tensor


class Guard:
    """Remembers the first of all batches whose numbers are not finite.

    Where the device works on its own, nothing here waits for it until `failed` is asked: what is remembered
    is written by the device, by operations that a recorded graph can hold.

    Args:
        size: B.
        device: where the batches are learned.
        waits: whether a number costs no waiting; None: on a CPU.
    """

    def __init__(self, size: int, device: torch.device, *, waits: bool | None = None) -> None:
        self._waits = device.type == "cpu" if waits is None else waits
        self._well = torch.ones((), dtype=torch.bool, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)  # batches before the first bad one
        self._row = torch.zeros(size, dtype=torch.int64, device=device)
        self._seen, self._failed = 0, False

    def watch(self, row: Tensor, *numbers: Tensor) -> None:
        """Takes note of the batch of rows [B] that led to some 0-d numbers."""
        if self._waits:
            if not self._failed:
                self._failed = not all(math.isfinite(number.item()) for number in numbers)
                self._seen += not self._failed
                self._row = row
            return
        self._row.copy_(torch.where(self._well, row, self._row))
        for number in numbers:
            self._well &= number.isfinite()
        self._count += self._well

    def failed(self) -> tuple[int, Tensor] | None:
        """Returns how many batches were well before the first that was not, and that one's rows [B]."""
        if self._waits:
            return (self._seen, self._row) if self._failed else None
        return None if self._well.item() else (int(self._count.item()), self._row)
