"""The numbers, configuration and videos of a run in Weights & Biases, online or as a folder to sync later."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rlagents.errors import UsageError


def require() -> None:
    """Checks that W&B is there.

    Raises:
        UsageError: it is not.
    """
    if find_spec("wandb") is None:
        raise UsageError('wandb is not installed; install it with: pip install "rlagents[wandb]"')


class Wandb:
    """Logs to one W&B run of the project `rlagents`.

    Args:
        folder: W&B puts a folder `wandb/` with its files into this one.
        mode: `offline` writes to disk only; `wandb sync` uploads it later.
        config: the resolved experiment, as nested dictionaries.
        name: what the run is called.
        run_id: under which the run goes on when resumed, across processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["offline", "online"],
        config: Mapping[str, Any],
        name: str,
        run_id: str,
    ) -> None:
        require()
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(
            project="rlagents",
            dir=str(folder),
            mode=mode,
            config=dict(config),
            name=name,
            id=run_id,
            # An offline run cannot know what the server has.
            resume="allow" if mode == "online" else None,
            # The terminal belongs to the live line, and nobody asked for his working tree to be uploaded.
            settings=wandb.Settings(
                console="off", silent=mode == "offline", disable_git=True, save_code=False
            ),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        self._run.log(dict(values), step=step)

    def video(self, step: int, path: Path) -> None:
        """Adds a video."""
        self._run.log({"evaluate/video": self._wandb.Video(str(path), format="mp4")}, step=step)

    def close(self) -> None:
        """Ends the run and waits until everything is written."""
        self._run.finish()
