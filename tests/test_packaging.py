"""The wheel: what is in it, and that it works where nothing but the wheel is ours."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, at: Path) -> str:
    """Runs a command without this checkout on its path; returns what it printed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=at,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a user would build it."""
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, CHECKOUT, at=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executables of a fresh environment with the wheel, and with this environment's other libraries."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, at=folder)
    # A path read from a .pth file comes last and its own .pth files are not read: our libraries are seen,
    # the editable install of this checkout is not.
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", at=folder).strip()
    )
    libraries = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return scripts


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder with an `envs` package of its own."""
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("raise ImportError('this is the envs of the user')\n")
    return tmp_path


def code_blocks(page: str, language: str) -> Sequence[str]:
    """Returns the fenced blocks of a page of the documentation."""
    text = (CHECKOUT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_wheel_holds_both_packages_and_the_experiments_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    experiments = {f"rlagents/_experiments/{path.name}" for path in (CHECKOUT / "experiments").glob("*.toml")}
    assert "rlagents/_experiments/pong-dqn.toml" in experiments
    assert experiments <= names
    assert {
        "rlagents/py.typed",
        "rlagents_envs/py.typed",
        "rlagents/cli.py",
        "rlagents_envs/atari.py",
    } <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlagents", "rlagents_envs"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    # Curves and videos of measured runs belong to the repository alone.
    assert not [name for name in names if "/results/" in name]


def test_wheel_works_beside_another_package_named_envs(installed: Path, elsewhere: Path) -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert version in run(installed / "rlagents", "--version", at=elsewhere)
    code = "import rlagents, rlagents_envs; print(rlagents.__file__, rlagents_envs.__file__)"
    where = run(installed / "python", "-c", code, at=elsewhere)
    assert all(str(installed.parent) in path for path in where.split()), where
    listing = run(installed / "rlagents", "list", at=elsewhere)
    assert "pong-dqn" in listing
    shown = run(installed / "rlagents", "show", "gridworld-q-learning", at=elsewhere)
    assert "[agent]" in shown
    assert 'kind = "q_learning"' in shown
    trained = run(
        installed / "rlagents",
        "train",
        "gridworld-q-learning",
        "run.env_steps=200",
        "--out",
        "r",
        at=elsewhere,
    )
    assert "_experiments" in trained
    assert (elsewhere / "r" / "config.toml").is_file()


def test_installed_version_is_the_declared_one() -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    assert metadata.version("rlagents") == version


def test_constraints_pin_every_base_dependency_without_a_build_or_an_address() -> None:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    needed = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    canonical = {name.lower().replace("_", "-") for name in pins}
    assert {re.split(r"[<>=\[; ]", line)[0] for line in needed} <= canonical
    assert pins["torch"] == "2.13.0"
    assert not [name for name in pins if name.startswith("nvidia")]
    assert not [line for line in lines if "+" in line or "@" in line or "://" in line]


@pytest.mark.slow
def test_the_environment_of_the_documentation_trains_and_evaluates(installed: Path, elsewhere: Path) -> None:
    (code,) = code_blocks("environments.md", "python")[:1]
    (experiment,) = code_blocks("environments.md", "toml")[:1]
    (elsewhere / "my_env.py").write_text(code)
    (elsewhere / "meet-dqn.toml").write_text(experiment)
    run(installed / "rlagents", "train", "meet-dqn.toml", "--out", "run", "--quiet", at=elsewhere)
    run(installed / "rlagents", "evaluate", "run", "--json", "result.json", at=elsewhere)
    # Walking straight to the mark returns -6 on average, a policy that does not look at it -25 or less.
    assert json.loads((elsewhere / "result.json").read_text())["mean"] > -12
