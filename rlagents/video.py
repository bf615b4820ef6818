"""The agent at work as pictures: the game in its own colours, and what the agent thinks of each action.

One picture serves both ways out: an mp4 file and a window.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from rlagents.errors import RunError

_PANEL = 380  # pixels across
_HEADER = 148  # pixels above the bars
_MARGIN = 20
_BACKGROUND, _TEXT, _MUTED = (20, 22, 28), (234, 236, 240), (140, 147, 160)
_BAR, _CHOSEN, _AXIS = (76, 99, 140), (255, 178, 62), (96, 102, 116)


class Frame(NamedTuple):
    """One moment of environment 0, before it takes `action`."""

    picture: NDArray[np.uint8]  # [H, W, 3] RGB
    q_values: NDArray[np.float32]  # [A]
    action: int | None  # None after the last action of an episode
    total: float  # return so far
    step: int  # actions so far
    episode: int  # from 0


class Stop(Exception):  # noqa: N818 - not an error: the person has seen enough
    """Raised by a watcher to end an evaluation with what has been finished."""


class Painter:
    """Draws frames: the game, scaled by a whole number, and the panel.

    Args:
        title: what stands above the panel, such as the experiment's name.
        actions: names of the actions; numbers where there are none.
    """

    def __init__(self, title: str, actions: Sequence[str] | None = None) -> None:
        self._title = title
        self._actions = actions
        self._low = self._high = 0.0  # widest values seen: the bars' scale, which always holds 0

    def paint(self, frame: Frame) -> NDArray[np.uint8]:
        """Returns the picture [H, W, 3], both even, at least 400 pixels high."""
        from PIL import Image, ImageDraw

        game = Image.fromarray(frame.picture)
        scale = max(1, -(-400 // game.height))
        game = game.resize((game.width * scale, game.height * scale), Image.Resampling.NEAREST)
        actions = len(frame.q_values)
        height = max(game.height, _HEADER + 16 * actions + _MARGIN)
        image = Image.new("RGB", (game.width + _PANEL, height), _BACKGROUND)
        image.paste(game, (0, (height - game.height) // 2))
        self._panel(ImageDraw.Draw(image), game.width + _MARGIN, height, frame)
        even = image.crop((0, 0, image.width + image.width % 2, image.height + image.height % 2))
        return np.asarray(even)

    def _panel(self, draw: Any, left: int, height: int, frame: Frame) -> None:
        """Draws title, counters and one bar per action from `left` on."""
        from PIL import ImageFont

        right = left + _PANEL - 2 * _MARGIN
        small, large = ImageFont.load_default(14), ImageFont.load_default(30)
        title = self._title
        while len(title) > 1 and draw.textlength(title, font=small) > right - left:
            title = title[:-2] + "…"
        draw.text((left, 22), title, _MUTED, small, anchor="ls")
        middle = (left + right) // 2
        for x, label, value in ((left, "return", f"{frame.total:,.6g}"), (middle, "step", f"{frame.step:,}")):
            draw.text((x, 54), label, _MUTED, small, anchor="ls")
            draw.text((x, 86), value, _TEXT, large, anchor="ls")
        draw.text((left, _HEADER - 16), "value of each action", _MUTED, small, anchor="ls")

        values = np.nan_to_num(frame.q_values)
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))
        span = (self._high - self._low) or 1.0
        row = min(36, (height - _HEADER - _MARGIN) // len(values))
        font = ImageFont.load_default(min(15, row - 3))
        names = [str(a) for a in range(len(values))] if self._actions is None else self._actions
        numbers = [f"{value:.{1 if abs(value) >= 1000 else 3}f}" for value in values]
        start = left + min(130, int(max(draw.textlength(name, font=font) for name in names))) + 12
        end = right - 70  # the numbers' column
        zero = start + (end - start) * -self._low / span
        for i, value in enumerate(values):
            top = _HEADER + row * i
            centre = top + row // 2
            colour = _CHOSEN if i == frame.action else _TEXT
            reach = start + (end - start) * (float(value) - self._low) / span
            bar = (min(zero, reach), top + row // 6, max(zero, reach), top + row - row // 6 - 1)
            draw.rectangle(bar, fill=_CHOSEN if i == frame.action else _BAR)
            draw.text((left, centre), names[i], colour, font, anchor="lm")
            draw.text((right, centre), numbers[i], colour, font, anchor="rm")
        draw.line((zero, _HEADER - 4, zero, _HEADER + row * len(values) + 3), _AXIS)


class Video:
    """Writes what it is called with to an mp4 file (H.264), frame by frame.

    A context manager: the file gets its name when the block ends well, so a crash leaves no half a video.
    The last frame of an episode stays for a second.
    """

    def __init__(self, path: Path, painter: Painter, frames_per_second: float) -> None:
        self.path = path
        self._painter = painter
        self._speed = frames_per_second
        self._part = path.with_name(f"{path.stem}.part{path.suffix}")
        self._encoder: subprocess.Popen[bytes] | None = None

    def __call__(self, frame: Frame) -> None:
        """Appends one frame."""
        image = self._painter.paint(frame)
        encoder = self._encoder or self._start(image.shape[1], image.shape[0])
        assert encoder.stdin is not None
        try:
            for _ in range(round(self._speed) if frame.action is None else 1):
                encoder.stdin.write(image.tobytes())
        except OSError as error:
            raise RunError(f"cannot write the video {self.path}: {self._end() or error}") from error

    def _start(self, width: int, height: int) -> "subprocess.Popen[bytes]":
        from imageio_ffmpeg import get_ffmpeg_exe

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write the video {self.path}: {error.strerror}") from error
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{self._speed:g}"]
        coded = ["-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
        self._encoder = subprocess.Popen(
            [get_ffmpeg_exe(), "-y", "-loglevel", "error", *raw, "-i", "-", *coded, f"file:{self._part}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is ours to act on, not the encoder's
        )
        return self._encoder

    def _end(self) -> str:
        """Waits for the encoder; returns what went wrong, in one line, or nothing."""
        assert self._encoder is not None
        _, said = self._encoder.communicate()
        return " ".join(said.decode(errors="replace").split()) if self._encoder.returncode else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._encoder is None:
            return
        problem = "" if self._encoder.returncode is not None else self._end()
        if kind is None and not problem:
            self._part.replace(self.path)
            return
        self._part.unlink(missing_ok=True)
        if kind is None:
            raise RunError(f"cannot write the video {self.path}: {problem}")


class Window:
    """Shows what it is called with in a window, at the game's own speed.

    Raises:
        RunError: there is no display.
    """

    def __init__(self, painter: Painter, frames_per_second: float) -> None:
        displays = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
        if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in displays):
            raise RunError(
                "--render human needs a display, and none of DISPLAY, WAYLAND_DISPLAY is set; "
                "use --render video to get a file"
            )
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        import pygame

        self._pygame = pygame
        self._painter = painter
        self._speed = frames_per_second
        self._clock = pygame.time.Clock()
        self._screen: pygame.Surface | None = None
        try:
            pygame.display.init()
        except pygame.error as error:
            raise RunError(f"cannot open a window ({error}); use --render video to get a file") from error

    def __call__(self, frame: Frame) -> None:
        """Shows one frame as long as it lasts; raises Stop once the window is closed or Escape pressed."""
        pygame = self._pygame
        image = self._painter.paint(frame)
        if self._screen is None:
            self._screen = pygame.display.set_mode((image.shape[1], image.shape[0]))
            pygame.display.set_caption("rlagents")
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                raise Stop
        self._screen.blit(pygame.surfarray.make_surface(image.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        self._clock.tick(self._speed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pygame.display.quit()  # not all of pygame: environments may be drawing with it
