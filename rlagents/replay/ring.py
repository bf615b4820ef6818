"""The ring of timesteps that every agent learns from.

Rows are timesteps, not transitions: row t of environment n holds the newest frame that the agent saw and,
written with it, the action it took there and what that action brought. n-step returns, stacks of frames and
successors are put together when a batch is drawn, so a frame is kept once and never copied.
"""

import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlagents.replay.sampling import Sampler, writer
from rlagents.types import Batch, Step, joined, named
from rlagents_envs.vector import Bools, Layout

# What is kept of a timestep beside its frames, in one piece, so that writing it is one copy.
_RECORD = np.dtype(
    {
        "names": ["reward", "action", "terminated", "ended", "age", "cut"],
        "formats": ["f4", "i4", "?", "?", "u1", "?"],
        "itemsize": 12,
    }
)
_OLDER = np.minimum(np.arange(1, 257), 255).astype(np.uint8)  # an age one frame later
_DTYPES = {"uint8": torch.uint8, "float32": torch.float32, "int64": torch.int64}


class Ring:
    """Replay of the newest `capacity` timesteps of N environments, on one device.

    Environments reset on the next step, so the final observation of an episode is a row like any other. It
    starts no transition, but it is the true successor that a truncated return bootstraps from.

    Args:
        layout: what an observation is made of; only the newest frame of a stack is stored.
        actions: A, for the masks of legal actions.
        environments: N.
        capacity: timesteps kept, in all environments together.
        n_step: rewards summed before the bootstrap, or fewer if `set_horizons` says so.
        discount: per env step, until `set_horizons` says otherwise.
        sampler: draws among the rows that can be sampled.
        device: where everything lies.
    """

    def __init__(
        self,
        layout: Layout,
        actions: int,
        *,
        environments: int,
        capacity: int,
        n_step: int,
        discount: float,
        sampler: Sampler,
        device: torch.device,
    ) -> None:
        self.actions, self.environments, self.n_step = actions, environments, n_step
        self.horizons: tuple[int, ...] = (n_step,)  # of the batches drawn now
        self.discount = discount
        self.rows = rows = capacity // environments  # T
        self.sampler, self.device = sampler, device
        self.time = 0  # timesteps written so far, of each environment
        self._leaves = named(layout)
        self.stack = max(leaf.stack for leaf in self._leaves.values())
        if rows < self.stack + n_step + 1:
            raise ValueError(
                f"capacity must hold {self.stack + n_step + 1} timesteps of each environment, got {capacity} "
                f"for {environments} environments"
            )
        flat = rows * environments
        # One row more than the ring has stays zero: it stands for every frame before an episode's first.
        self._frames = {
            name: self._zeros(flat + 1, *leaf.frame, dtype=_DTYPES[leaf.dtype])
            for name, leaf in self._leaves.items()
        }
        self._records = self._zeros(flat, _RECORD.itemsize, dtype=torch.uint8)
        self._columns = {  # views of the records
            "reward": self._records.view(torch.float32)[:, 0],
            "action": self._records.view(torch.int32)[:, 1],
            "terminated": self._records[:, 8].view(torch.bool),
            "ended": self._records[:, 9].view(torch.bool),  # no return reaches across
            "age": self._records[:, 10],  # frames of its episode before it, at most 255
            "cut": self._records[:, 11].view(torch.bool),  # returns from before end here, and bootstrap
        }
        self._write_frames = {
            name: writer(ring, self._leaves[name].newest) for name, ring in self._frames.items()
        }
        self._write_records = writer(self._records.view(rows, -1))
        newest = np.zeros(environments, _RECORD)  # the records of one time, put together here
        self._newest = {name: newest[name] for name in self._columns}
        self._newest_bytes = newest.view(np.uint8)
        self._mask: Tensor | None = None  # [T * N, A], from the first mask on
        self._final = np.ones((rows, environments), np.bool_)  # on the CPU, where rows are counted
        self._numbers = np.arange(flat).reshape(rows, environments)  # of rows
        self._ahead = torch.arange(n_step, device=device)
        self._back = torch.arange(self.stack, -1, -1, device=device)
        self._exponents = torch.arange(n_step + 1, dtype=torch.float32, device=device)
        self._powers = discount**self._exponents

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        return _pages(int(np.prod(shape)) * dtype.itemsize).view(dtype).view(shape)

    def __len__(self) -> int:
        """Returns how many rows can be sampled."""
        return len(self.sampler)

    def set_horizons(self, steps: tuple[int, ...], discount: float) -> None:
        """Sets how many rewards, at most n_step, returns sum from now on, and the discount per env step."""
        self.horizons = steps
        if discount != self.discount:
            self.discount = discount
            torch.pow(discount, self._exponents, out=self._powers)  # where a recorded graph reads them

    @property
    def nbytes(self) -> int:
        """Bytes of the rows when full."""
        return sum(t.nbytes for t in [*self._frames.values(), self._records])

    @property
    def masked(self) -> bool:
        """Whether batches have masks of legal actions: from the first one on."""
        return self._mask is not None

    def add(self, step: Step, reward: NDArray[np.float32], cut: Bools | None = None) -> None:
        """Writes one timestep of every environment.

        Args:
            step: what happened; of stacked observations only the newest frame is kept.
            reward: [N] what is to be learned in place of `step.reward`.
            cut: [N] whether returns from before end ahead of this action; None: nowhere.
        """
        self._forbid(self.time - self.rows + self.stack - 1)
        slot = self.time % self.rows
        row = slice(slot * self.environments, (slot + 1) * self.environments)
        for name, obs in named(step.obs).items():
            self._write_frames[name](row, obs)
        record, first, final = self._newest, step.first, step.final
        torn, age = False, record["age"]
        _OLDER.take(age, out=age, mode="clip")
        if _any(first) or _any(final):
            closed = self._final[slot - 1]  # at first none was open
            torn = np.any(~closed & (first | (final & ~record["ended"])))
            age[first] = 0
        record["reward"][:] = reward
        record["action"][:] = step.action
        record["terminated"][:] = step.terminated
        np.logical_or(step.terminated, step.truncated, out=record["ended"])
        if cut is not None:
            record["cut"][:] = cut
        self._write_records(slot, self._newest_bytes)
        if cut is not None:
            record["cut"][:] = False
        self._write_mask([row], None if step.mask is None else torch.as_tensor(step.mask))
        self._final[slot] = final
        self.time += 1
        if torn:
            self._mend(self.time - 3)
        self._allow(self.time - 1 - self.n_step)

    def _write_mask(self, rows: Sequence[slice], mask: Tensor | None) -> None:
        """Writes legal actions [rows, A]; None: all. There is a column from the first mask on."""
        if self._mask is None:
            if mask is None:
                return
            shape = (self.rows * self.environments, self.actions)
            self._mask = torch.ones(shape, dtype=torch.bool, device=self.device)
        if mask is not None:
            _write(self._mask, rows, mask)
            return
        for piece in rows:
            self._mask[piece] = True

    def _mend(self, start: int) -> None:
        """Closes what was left open from time `start` on: where a successor got lost, nothing is invented.

        The last row of an episode is final, known or not when it was written, and the row before it is
        truncated unless it ended by itself. No row that could be sampled before changes what it gives:
        such a row has its n successors, and the last of these is the first that may become final.
        """
        start = max(0, start, self.time - self.rows)
        slots, rows = np.arange(start, self.time) % self.rows, self._pieces(start, self.time)
        final = self._final[slots]  # [times, N]
        first = _read(self._columns["age"], rows).numpy().reshape(final.shape) == 0
        ended = _read(self._columns["ended"], rows).numpy().reshape(final.shape)
        final[:-1] |= first[1:]
        ended[:-1] |= final[1:] & ~first[1:] & ~final[:-1]
        self._final[slots] = final
        _write(self._columns["ended"], rows, torch.as_tensor(ended.reshape(-1)))

    def _sampleable(self, time: int) -> NDArray[np.int64]:
        slot = time % self.rows
        rows, final = self._numbers[slot], self._final[slot]
        return rows[~final] if _any(final) else rows

    def _allow(self, time: int) -> None:
        """A row can be sampled once the n rows after it are there."""
        if time >= 0:
            self.sampler.allow(self._sampleable(time))

    def _forbid(self, time: int) -> None:
        """A row can no longer be sampled when the oldest frame it may need is about to be overwritten."""
        if time >= 0:
            self.sampler.forbid(self._sampleable(time))

    def sample(self, size: int) -> Batch:
        """Returns `size` n-step transitions, drawn by the sampler with replacement.

        reward = sum over k < m of discount**k * reward[t + k] and discount = discount**m, where m is a
        horizon or the number of steps to the end of the episode or to a cut; the discount is 0 after a
        termination, and a truncation bootstraps from the final observation.
        """
        row, weight = self.sampler.draw(size)  # [B]
        return self.gather(row, weight)

    def gather(self, row: Tensor, weight: Tensor) -> Batch:
        """Puts together the transitions that start at rows [B], with weights [B]."""
        first, *others = (self._returns(row, n) for n in self.horizons)
        reward, discount, successor = map(torch.cat, zip(first, *others, strict=True)) if others else first
        seen = {name: self._pair(name, row, successor) for name in self._leaves}
        return Batch(
            obs=joined({name: pair[0] for name, pair in seen.items()}),
            action=self._columns["action"][row].long(),
            reward=reward,
            discount=discount,
            next_obs=joined({name: pair[1] for name, pair in seen.items()}),
            row=row,
            weight=weight,
            mask=None if self._mask is None else self._mask[successor],
            obs_mask=None if self._mask is None else self._mask[row],
        )

    def _returns(self, row: Tensor, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rewards, discounts and the rows of successors, [B] each, of n-step returns."""
        count, wrap, columns = self.environments, self.rows * self.environments, self._columns
        path = (row[:, None] + self._ahead[:horizon] * count).remainder_(wrap)  # [B, n]
        ended, terminated, rewards = (
            columns["ended"][path],
            columns["terminated"][path],
            columns["reward"][path],
        )
        if horizon == 1:
            reward, taken, over = rewards[:, 0], 1, terminated[:, 0]
            discount = self._powers[1] * ~over
        else:
            live = torch.ones_like(rewards)  # [B, n] whether step k belongs to the return
            live[:, 1:] = (~(ended[:, :-1] | columns["cut"][path[:, 1:]])).cumprod(1)
            reward = (live * rewards) @ self._powers[:horizon]
            taken = live.sum(1).long()  # [B]
            discount = self._powers[taken] * ~(terminated & (live > 0)).any(1)
        return reward, discount, (row + taken * count).remainder_(wrap)

    def _pair(self, name: str, row: Tensor, successor: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the observations [B, *O] at rows and [H * B, *O] at their successors."""
        leaf = self._leaves[name]
        if leaf.stack > 1 and max(self.horizons) == 1:  # stacks share all frames but one: views of one gather
            frames = self._stacked(name, successor, leaf.stack + 1)
            channels = leaf.frame[0]
            return frames[:, :-channels], frames[:, channels:]
        seen = self._stacked(name, torch.cat((row, successor)), leaf.stack)
        return seen[: len(row)], seen[len(row) :]

    def _stacked(self, name: str, row: Tensor, frames: int) -> Tensor:
        """Returns the newest frames up to rows [B], one behind the other, zeros before an episode's first."""
        ring, leaf = self._frames[name], self._leaves[name]
        if frames == 1:
            return ring.index_select(0, row).view(len(row), *leaf.shape)
        back = self._back[-frames:]
        wrap = self.rows * self.environments
        past = (row[:, None] - back * self.environments).remainder_(wrap)  # [B, K]
        past = torch.where(back <= self._columns["age"][row][:, None], past, wrap)
        return ring.index_select(0, past.view(-1)).view(len(row), -1, *leaf.shape[1:])

    def window(self, start: int, stop: int) -> dict[str, Tensor]:
        """Returns copies of the rows of times [start, stop), on the CPU, for a checkpoint."""
        rows = self._pieces(start, stop)
        parts = {name: _read(column, rows) for name, column in self._columns.items()}
        parts |= {f"obs.{name}": _read(ring, rows) for name, ring in self._frames.items()}
        if self._mask is not None:
            parts["mask"] = _read(self._mask, rows)
        return parts | {"final": torch.as_tensor(self._final[np.arange(start, stop) % self.rows])}

    def restore(self, start: int, parts: Mapping[str, Tensor]) -> None:
        """Writes back what `window` returned for times from `start` on; windows come in order of time."""
        stop = start + len(parts["final"])
        rows = self._pieces(start, stop)
        for name, column in self._columns.items():
            if name in parts:  # checkpoints from before there were cuts have none
                _write(column, rows, parts[name])
        for name, ring in self._frames.items():
            _write(ring, rows, parts[f"obs.{name}"])
        self._write_mask(rows, parts.get("mask"))
        self._final[np.arange(start, stop) % self.rows] = parts["final"].numpy()
        for name in ("age", "ended"):
            self._newest[name][:] = parts[name].numpy()[-self.environments :]
        self.time = stop

    def forget(self) -> None:
        """Forgets all rows, before the first `restore`."""
        self.time = 0
        self._final[:] = True

    def _pieces(self, start: int, stop: int) -> list[slice]:
        """Returns where the rows of times [start, stop) lie: in two pieces if they go round the end."""
        pieces: list[slice] = []
        while start < stop:
            slot = start % self.rows
            length = min(stop - start, self.rows - slot)
            pieces.append(slice(slot * self.environments, (slot + length) * self.environments))
            start += length
        return pieces

    def reopen(self) -> None:
        """Makes sampleable what may be sampled, after the last `restore`."""
        if self.time:
            self._mend(0)  # a row may have been saved before its successor got lost
        times = np.arange(max(0, self.time - self.rows + self.stack - 1), self.time - self.n_step)
        slots = times % self.rows
        self.sampler.reopen(self._numbers[slots][~self._final[slots]])


def _pages(size: int) -> Tensor:
    """Returns zero bytes that take up memory only as they are written, in huge pages where there are any.

    Most of what a first write costs is that the system makes the page: huge ones make it several times
    cheaper, and rows drawn at random miss the translation cache less often.

    Raises:
        MemoryError: there is no room for so many.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    try:
        memory = mmap.mmap(-1, max(1, size), **private)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{size} bytes cannot be had: {error}") from error
    with suppress(AttributeError, OSError):  # Linux alone knows this wish, and not each of its kernels
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def _read(column: Tensor, rows: Sequence[slice]) -> Tensor:
    """Returns a copy on the CPU."""
    return torch.cat([column[piece] for piece in rows]).cpu()


def _write(column: Tensor, rows: Sequence[slice], values: Tensor) -> None:
    """Writes values where they belong; ValueError if they are not exactly as many and of that shape."""
    shape = (sum(piece.stop - piece.start for piece in rows), *column.shape[1:])
    if values.shape != shape:
        raise ValueError(f"rows must have shape {list(shape)}, got {list(values.shape)}")
    start = 0
    for piece in rows:
        stop = start + piece.stop - piece.start
        column[piece].copy_(values[start:stop], non_blocking=True)
        start = stop


def row_bytes(layout: Layout) -> int:
    """Returns the bytes that a timestep takes: its newest frames, its record, its number, its place."""
    leaves = named(layout).values()
    frames = (int(np.prod(leaf.frame)) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
    return sum(frames) + _RECORD.itemsize + 2 * np.dtype(np.int64).itemsize


def _any(flags: Bools) -> bool:
    """Returns whether one of a few is true: to start, numpy takes several times as long."""
    return 1 in flags.tobytes()
