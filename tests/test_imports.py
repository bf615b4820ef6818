"""What an import costs: each check runs in a process of its own and looks at what was loaded."""

import json
import subprocess
import sys

import pytest

# Heavy or optional: each loads only where it is used.
ON_USE = {
    "ale_py",
    "cv2",
    "imageio_ffmpeg",
    "matplotlib",
    "pygame",
    "stable_baselines3",
    "tensorboard",
    "wandb",
}


def loaded(code: str) -> set[str]:
    """Returns the top-level modules loaded after `code` ran in a fresh process."""
    report = "\nimport json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def everything(package: str) -> str:
    """Returns code that imports every module of a package."""
    return f"""
import importlib, pkgutil, {package}
names = [m.name for m in pkgutil.walk_packages({package}.__path__, "{package}.")]
assert len(names) > 3, names
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)
"""


def command(*arguments: str) -> str:
    """Returns code that runs the command line in this process."""
    return f"""
import sys
from rlagents.cli import main
sys.argv = {["rlagents", *arguments]!r}
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("train", "--help"), ("bench", "peers", "--help")],
    ids=" ".join,
)
def test_help_loads_no_library_but_click(arguments: tuple[str, ...]) -> None:
    heavy = {"torch", "gymnasium", "numpy", "pydantic", "rlagents_envs"} | ON_USE
    assert not loaded(command(*arguments)) & heavy


@pytest.mark.parametrize("arguments", [("list",), ("show", "gridworld-q-learning")], ids=" ".join)
def test_listing_and_showing_load_no_torch(arguments: tuple[str, ...]) -> None:
    assert not loaded(command(*arguments)) & {"torch"}


def test_environments_load_neither_torch_nor_the_agents() -> None:
    assert not loaded(everything("rlagents_envs")) & ({"torch", "rlagents"} | ON_USE - {"ale_py"})


def test_agents_load_optional_libraries_only_on_use() -> None:
    modules = loaded(everything("rlagents"))
    assert "torch" in modules
    assert not modules & ON_USE
