"""What every test process needs before torch is imported, and how hypothesis searches."""

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

import rlagents  # noqa: F401 - sets how OpenMP waits

# The same examples each time, and no verdict that depends on how busy the machine is.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="session")
def key(tmp_path_factory):
    """Runs are signed with a key of the tests' own."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(autouse=True)
def torch_as_new():
    """What an agent sets for the whole process: hypothesis needs denormals, and the same bits one thread."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to run commands in; what they make importable is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("RLAGENTS_DEBUG", raising=False)
