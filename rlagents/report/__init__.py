"""Where the numbers of a run go: a line on the screen, a file, TensorBoard, W&B, each behind one protocol.

Names are `group/quantity`, with the groups train, evaluate and speed; values are plain floats.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rlagents.report.console import Console
from rlagents.report.jsonl import JsonLines
from rlagents.report.tensorboard import TensorBoard
from rlagents.report.wandb import Wandb

__all__ = ["Console", "JsonLines", "Report", "Several", "TensorBoard", "Wandb"]


class Report(Protocol):
    """Takes the numbers of a run as they come."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes values after `step` env steps; steps never go back."""
        ...

    def video(self, step: int, path: Path) -> None:
        """Takes a finished video, mp4, of the agent after `step` env steps."""
        ...

    def close(self) -> None:
        """Brings everything to where it goes; may be called twice."""
        ...


class Several:
    """Reports to each of several, in order."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self._reports = tuple(reports)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Passes values on."""
        for report in self._reports:
            report.write(step, values)

    def video(self, step: int, path: Path) -> None:
        """Passes a video on."""
        for report in self._reports:
            report.video(step, path)

    def close(self) -> None:
        """Closes all of them, the last first, even where one fails: that error is raised at the end."""
        failed: Exception | None = None
        for report in reversed(self._reports):
            try:
                report.close()
            except Exception as error:
                failed = failed or error
        if failed:
            raise failed
