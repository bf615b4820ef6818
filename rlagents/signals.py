"""Ctrl-C as a wish: a training ends where it can be gone on with."""

import signal
import sys
import threading
from types import FrameType
from typing import Any, Self


class Signals:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop; a second one interrupts at once.

    Attributes:
        caught: whether one came.
        at_once: whether the first one shall interrupt too, because nothing would be lost.
    """

    def __init__(self) -> None:
        self.caught = self.at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only that one may handle signals
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.caught = self.caught, True
        if again or self.at_once:
            raise KeyboardInterrupt
        sys.stderr.write("\nstopping: finishing this step and saving; once more to stop at once\n")
