"""What a person sees while a run goes on: one live line on a terminal, a plain line now and then elsewhere.

Evaluations and notes are lines that stay; on a terminal they scroll up above the live one. Output that cannot
be written, to a file on a full disk or a pipe that nobody reads any more, is lost, and the run goes on.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import rich.console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

# What the line shows after the steps, each once it is known: name, text before, format, text after.
_FIELDS = (
    ("speed/env_steps_per_second", "", ",.0f", " steps/s"),
    ("speed/learner_steps_per_second", "", ",.0f", " updates/s"),
    ("train/return", "return ", ".4g", ""),
    ("train/epsilon", "epsilon ", ".3f", ""),
    ("train/loss", "loss ", ".3g", ""),
)


class _Output(rich.console.Console):
    def on_broken_pipe(self) -> None:
        """Prints nothing from now on; rich would end the process."""
        with suppress(SystemExit):
            super().on_broken_pipe()


class Console:
    """Prints progress.

    On a terminal there is one live line. Elsewhere (a log file, a pipe) a plain line comes at the first write
    and then when `every` seconds have passed. Evaluations, videos and notes are printed as they come. `quiet`
    prints one line only, at the end: the last evaluation, or where there was none the last progress.

    Args:
        total: the budget in env steps, for the ETA.
        quiet: print the final line only.
        every: seconds between plain lines.
        console: where to print; standard output if None.
    """

    def __init__(
        self,
        total: int,
        *,
        quiet: bool = False,
        every: float = 10.0,
        console: rich.console.Console | None = None,
    ) -> None:
        self._console = console or _Output()
        self._total = total
        self._quiet = quiet
        # Drawn at each write and by no thread of its own: two cores have better things to do.
        live = self._console.is_terminal and not quiet
        self._live = Live(console=self._console, auto_refresh=False) if live else None
        self._every = 0.1 if live else every
        self._due = 0.0  # the monotonic clock at which the next line may come
        self._step = 0
        self._latest: dict[str, float] = {}
        self._last = ""  # the newest text, until it is printed

    def note(self, text: str, *, always: bool = False) -> None:
        """Prints a line that stays; a warning `always`, also where it shall be quiet."""
        if always or not self._quiet:
            self._print(text)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Renews the progress; prints an evaluation where `values` holds one."""
        self._step = step
        self._latest.update(values)
        if "evaluate/return_mean" in values:
            text = evaluation_line(step, values)
            if self._quiet:
                self._last = text
            else:
                self._print(text)
        elif not (self._quiet and "evaluate/return_mean" in self._latest):
            self._last = self._line()
        now = time.monotonic()
        if not self._quiet and self._last and now >= self._due:
            self._due = now + self._every
            self._draw()

    def video(self, step: int, path: Path) -> None:
        """Says where a video lies."""
        self.note(f"video at {step:,} steps: {path}")

    def close(self) -> None:
        """Draws or prints the last state."""
        if self._last:
            self._draw()
        if self._live:
            with suppress(OSError):
                self._live.stop()

    def _draw(self) -> None:
        if self._live:
            line = Table.grid(padding=(0, 1))
            line.add_column(width=16)
            line.add_column()  # goes on below itself where the terminal is narrow
            done = min(self._step, self._total)
            line.add_row(ProgressBar(total=self._total, completed=done), Text(self._last))
            with suppress(OSError):
                self._live.start()
                self._live.update(line, refresh=True)
        else:
            self._print(self._last)
        self._last = ""

    def _print(self, text: str) -> None:
        with suppress(OSError):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            self._console.file.flush()

    def _line(self) -> str:
        parts = [f"{self._step:,}/{self._total:,} steps"]
        for name, before, form, after in _FIELDS:
            if name in self._latest:
                parts.append(f"{before}{self._latest[name]:{form}}{after}")
        speed = self._latest.get("speed/env_steps_per_second", 0.0)
        if speed > 0 and self._step < self._total:
            parts.append(f"ETA {timedelta(seconds=round((self._total - self._step) / speed))}")
        return "  ".join(parts)


def evaluation_line(step: int, values: Mapping[str, float]) -> str:
    """Returns one evaluation in one line, from the `evaluate/` values."""
    text = f"evaluated at {step:,} steps: return {values['evaluate/return_mean']:.4g}"
    if "evaluate/return_low" in values and "evaluate/return_high" in values:
        text += f" [{values['evaluate/return_low']:.4g}, {values['evaluate/return_high']:.4g}]"
    if "evaluate/length_mean" in values:
        text += f", length {values['evaluate/length_mean']:,.1f}"
    if "evaluate/distinct" in values:
        text += f", {values['evaluate/distinct']:.0f} distinct"
    return text
