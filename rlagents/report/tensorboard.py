"""The numbers of a run as TensorBoard events."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class TensorBoard:
    """Writes scalars to event files in a folder; they end where the disk is full, and the run goes on.

    Args:
        folder: where the event files go.
        resume: env steps at which the run goes on: TensorBoard hides what an earlier part wrote after that.
    """

    def __init__(self, folder: Path, *, resume: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume is None else resume + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=30)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        for name, value in values.items():
            with suppress(OSError):
                self._writer.add_scalar(name, value, step)  # pyright: ignore[reportUnknownMemberType] untyped

    def video(self, step: int, path: Path) -> None:
        """Nothing: TensorBoard shows videos as GIFs only, and the file is there to be opened."""

    def close(self) -> None:
        """Writes what is pending."""
        with suppress(OSError):
            self._writer.close()
