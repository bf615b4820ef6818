"""How observations come to the device that an agent computes on: of a stack of frames, only the newest."""

import numpy as np
import torch
from torch import Tensor

from rlagents.types import Obs, each, joined, named
from rlagents_envs.vector import Array, Bools, Layout
from rlagents_envs.vector import Obs as HostObs


def share(obs: HostObs, first: Bools) -> Obs:
    """Returns what `Upload` does for the CPU, where arrays become tensors without a copy."""
    return each(torch.as_tensor, obs)


class Upload:
    """Sends observations from pinned memory while the host goes on, and keeps the stacks on the device.

    A stack is the one before it without its oldest frame, and the newest: nothing but the newest is sent.

    Args:
        layout: what an observation is made of.
        device: where to.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._leaves = named(layout)
        self._device = device
        self._stacks: dict[str, Tensor] = {}
        self._staged: dict[str, Tensor] = {}  # what is on its way
        self._sent = torch.cuda.Event() if device.type == "cuda" else None

    def __call__(self, obs: HostObs, first: Bools) -> Obs:
        """Returns observations [N, *O] on the device, in memory of their own.

        Args:
            obs: of every step in turn: none may be left out.
            first: [N] whether an observation opens an episode, before which there are no frames.
        """
        if self._sent:
            self._sent.synchronize()  # what was on its way has arrived
        opens = self._send("first", first) if first.any() else None
        arrived = {name: self._leaf(name, array, opens) for name, array in named(obs).items()}
        if self._sent:
            self._sent.record()
        return joined(arrived)

    def _leaf(self, name: str, array: Array, opens: Tensor | None) -> Tensor:
        leaf = self._leaves[name]
        newest = self._send(f"obs.{name}", array[leaf.newest])
        if leaf.stack == 1:
            return newest
        frame = leaf.frame[0]
        if name in self._stacks:
            past = self._stacks[name][:, frame:]
            if opens is not None:
                past = past.masked_fill(opens.view(-1, *[1] * len(leaf.shape)), 0)
        else:
            past = newest.new_zeros(len(newest), leaf.shape[0] - frame, *leaf.shape[1:])
        self._stacks[name] = torch.cat((past, newest), 1)
        return self._stacks[name]

    def _send(self, name: str, array: Array) -> Tensor:
        if name not in self._staged:
            self._staged[name] = torch.empty_like(torch.as_tensor(array), pin_memory=self._sent is not None)
        np.copyto(self._staged[name].numpy(), array)
        return self._staged[name].to(self._device, non_blocking=True, copy=True)
