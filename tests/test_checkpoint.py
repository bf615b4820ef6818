"""Checkpoints: whole or not there, checked before they are believed, and kept as long as said."""

import hashlib
import json
import random
import shutil
import tracemalloc
from time import perf_counter, process_time

import numpy as np
import pytest
import torch

from playing import Thing
from rlagents.checkpoint import SCHEMA, Checkpoints
from rlagents.errors import RunError
from rlagents.replay import Ring, Uniform
from rlagents.types import Step
from rlagents_envs.vector import Leaf

CPU = torch.device("cpu")


STATE = {
    "policy": {"body.0.weight": torch.arange(6.0).view(2, 3), "head": torch.ones(2, dtype=torch.bfloat16)},
    "optimizer": {"body.0.weight": {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, 3)}},
    "empty": {},
    "counters": {
        "env_steps": 12,
        "best": -21.5,
        "name": "pong",
        "none": None,
        "recent": [[1.0, 2], [3.0, 4]],
    },
}


def ring(rows=20):
    return Ring(
        Leaf("pixels", (2, 3, 3), "uint8", 2),
        2,
        environments=2,
        capacity=rows * 2,
        n_step=2,
        discount=0.9,
        sampler=Uniform(rows * 2, torch.Generator().manual_seed(0)),
        device=CPU,
    )


def fill(replay, count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        no = np.zeros(2, bool)
        replay.add(
            Step(
                obs=torch.from_numpy(rng.integers(255, size=(2, 2, 3, 3), dtype=np.uint8)),
                action=rng.integers(2, size=2),
                reward=rng.normal(size=2).astype(np.float32),
                terminated=rng.random(2) < 0.1,
                truncated=no,
                next_obs=torch.zeros(()),
                first=rng.random(2) < 0.1,
                final=no,
            ),
            np.ones(2, np.float32),
        )


def reseal(folder, **changes):
    """Changes a manifest as somebody would who knows how to write one."""
    text = json.dumps({**json.loads((folder / "manifest.json").read_text()), **changes})
    (folder / "manifest.json").write_text(text)
    (folder / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def test_what_is_saved_comes_back(tmp_path):
    Checkpoints(tmp_path).save(12, None, agent=Thing(STATE), tracker=Thing({"episodes": 3}))
    agent, tracker = Thing(), Thing()
    saved = Checkpoints(tmp_path).find()
    saved.restore(agent=agent, tracker=tracker)
    assert saved.step == 12
    assert same(agent.state, STATE)
    assert tracker.state == {"episodes": 3}


def test_nothing_is_pickled(tmp_path):
    folder = Checkpoints(tmp_path).save(12, ring(), agent=Thing(STATE))
    replay = ring()
    fill(replay, 3)
    Checkpoints(tmp_path).save(13, replay, agent=Thing(STATE))
    kinds = {file.suffix for file in folder.iterdir()} | {f.suffix for f in (tmp_path / "replay").iterdir()}
    assert kinds == {".json", ".safetensors", ".sha256"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["files"]) == {f.name for f in folder.iterdir()} - {"manifest.json", "manifest.sha256"}


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(0, 60, 10):
        checkpoints.save(step, None, best=step == 20, agent=Thing({"step": step}))
    assert checkpoints.steps() == [20, 40, 50]
    for which, step in (("latest", 50), ("best", 20), (40, 40)):
        thing = Thing()
        checkpoints.find(which).restore(agent=thing)
        assert thing.state == {"step": step}


def test_only_new_rows_are_written_and_rows_that_no_checkpoint_needs_go(tmp_path):
    checkpoints, replay = Checkpoints(tmp_path, keep=1), ring()
    seen = []
    for step in range(1, 8):
        fill(replay, 7, step)
        checkpoints.save(step, replay, agent=Thing({"step": step}))
        seen.append(sorted(f.name[:25] for f in (tmp_path / "replay").glob("*.safetensors")))
    assert seen[1] == ["000000000000-000000000007", "000000000007-000000000014"]
    assert seen[-1] == [f"{start:012d}-{start + 7:012d}" for start in (28, 35, 42)]
    copy = ring()
    Checkpoints(tmp_path, keep=1).newest(copy)
    copy.reopen()
    assert copy.time == replay.time
    assert len(copy) == len(replay)
    for one, other in zip(replay.sample(30), copy.sample(30), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_rows_of_a_run_that_died_before_its_manifest_are_written_anew(tmp_path):
    checkpoints, replay = Checkpoints(tmp_path), ring()
    fill(replay, 5)
    checkpoints.save(5, replay, agent=Thing({}))
    fill(replay, 5, 1)
    folder = checkpoints.save(10, replay, agent=Thing({}))
    shutil.rmtree(folder)  # killed between the rows and the rename
    again, copy = Checkpoints(tmp_path), ring()
    again.newest(copy)
    assert copy.time == 5
    fill(copy, 3, 2)
    again.save(8, copy, agent=Thing({}))
    third = ring()
    Checkpoints(tmp_path).newest(third)
    assert third.time == 8
    assert torch.equal(third._frames[""], copy._frames[""])


def frames(timesteps):
    """A ring of the frames of 8 games of Pong."""
    return Ring(
        Leaf("pixels", (4, 84, 84), "uint8", 4),
        6,
        environments=8,
        capacity=timesteps,
        n_step=3,
        discount=0.99,
        sampler=Uniform(timesteps, torch.Generator().manual_seed(0)),
        device=CPU,
    )


@pytest.mark.parametrize(
    ("timesteps", "each"), [(4_000, 1_000), pytest.param(1_000_000, 10_000, marks=pytest.mark.slow)]
)
def test_a_replay_comes_back_in_little_more_memory_than_it_takes(timesteps, each, tmp_path):
    replay, checkpoints, no = frames(timesteps), Checkpoints(tmp_path), np.zeros(8, bool)
    pool = torch.randint(256, (64, 8, 4, 84, 84), dtype=torch.uint8)
    for time in range(timesteps // 8):
        reward = np.full(8, time, np.float32)
        replay.add(Step(pool[time % 64], no.astype(int), reward, no, no, pool[0], no, no), reward)
        if time % (each // 8) == each // 8 - 1:
            checkpoints.save(time, replay)
    segments = [file.stat().st_size for file in (tmp_path / "replay").iterdir()]
    assert len(segments) == timesteps // each
    copy = frames(timesteps)
    tracemalloc.start()
    wall, cpu = perf_counter(), process_time()
    Checkpoints(tmp_path).newest(copy)
    copy.reopen()
    wall, cpu = perf_counter() - wall, process_time() - cpu
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"{replay.nbytes / 1e9:.2f} GB back in {wall:.1f} s ({cpu:.1f} s of CPU), {peak / 1e6:.0f} MB beside"
    )
    assert peak < 2 * max(segments) + 30 * timesteps + 1e6  # one is copied, one is read; where rows are
    assert torch.equal(copy._frames[""][::997], replay._frames[""][::997])
    assert torch.equal(copy._records, replay._records)
    assert len(copy) == len(replay)


def test_rows_of_a_damaged_checkpoint_leave_no_trace(tmp_path, monkeypatch):
    """Its first segment is whole and its second is not, and the checkpoint before has no rows at all."""
    monkeypatch.setattr("rlagents.checkpoint._PIECE", 100)
    checkpoints, replay = Checkpoints(tmp_path), ring()
    checkpoints.save(0, replay, agent=Thing({}))
    fill(replay, 15)
    checkpoints.save(15, replay, agent=Thing({}))
    files = sorted((tmp_path / "replay").iterdir())
    assert len(files) > 2
    files[1].write_bytes(b"")
    copy, fresh = ring(), ring()
    saved = Checkpoints(tmp_path).newest(copy)
    assert (saved.step, copy.time) == (0, 0)
    assert f"lacks {files[1]}, which is damaged: {files[1].name} has 0 bytes, not" in saved.skipped[0]
    copy.reopen()
    for each in (copy, fresh):
        fill(each, 4, 1)
    assert len(copy) == len(fresh)
    assert torch.equal(copy.sample(30).obs, fresh.sample(30).obs)


@pytest.mark.parametrize(
    "name", ["agent.policy.safetensors", "state.json", "manifest.json", "manifest.sha256"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty"])
def test_damage_is_noticed_named_and_worked_around(tmp_path, name, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, None, agent=Thing(STATE))
    folder = checkpoints.save(2, None, agent=Thing(STATE))
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[random.Random(0).randrange(len(content))] ^= 1
    file.write_bytes({"flip": content, "cut": content[:-3], "gone": b"", "empty": b""}[damage])
    if damage == "gone":
        file.unlink()
    with pytest.raises(RunError, match=str(folder)):
        checkpoints.find(2)
    found = checkpoints.find()
    assert found.step == 1
    (told,) = found.skipped
    assert told.startswith(f"{folder} is damaged: ")
    assert told.endswith("; the one before it is used")
    assert folder.is_dir()  # only a resume puts it aside
    assert checkpoints.newest().step == 1
    checkpoints.save(3, ring(), agent=Thing(STATE))  # goes on as if the damaged one had never been
    assert checkpoints.steps() == [1, 3]
    assert folder.with_suffix(".damaged").is_dir()


def test_the_best_is_found_though_a_newer_one_is_damaged_and_is_whole_or_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        folder = checkpoints.save(step, None, best=step == 1, agent=Thing(STATE))
    (folder / "manifest.json").write_text("{}")
    found = checkpoints.find("best")
    assert (found.step, len(found.skipped)) == (1, 1)
    (found.folder / "state.json").unlink()
    for which in ("best", 1):
        with pytest.raises(RunError, match=r"000000000001 is damaged: state\.json is missing"):
            checkpoints.find(which)
    assert checkpoints.find().step == 2


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, None, agent=Thing(STATE))
    with pytest.raises(RunError, match="does not fit this experiment"):
        checkpoints.find().restore(tracker=Thing())


def test_a_newer_schema_is_refused(tmp_path):
    folder = Checkpoints(tmp_path).save(1, None, agent=Thing(STATE))
    reseal(folder, schema=SCHEMA + 1)
    with pytest.raises(RunError, match=f"has schema {SCHEMA + 1}; this rlagents reads up to {SCHEMA}"):
        Checkpoints(tmp_path).find()


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    folder = Checkpoints(tmp_path).save(1, None, agent=Thing(STATE))
    secret = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    for outside in ("../../secret", str(tmp_path / "secret"), "..", ""):
        for change in ({"files": {outside: secret}}, {"replay": [{"file": outside, **secret}]}):
            manifest = (folder / "manifest.json").read_text()
            reseal(folder, **change)
            with pytest.raises(RunError, match="is no name of a file in it"):
                Checkpoints(tmp_path).find()
            reseal(folder, **json.loads(manifest))
    Checkpoints(tmp_path).find()
    (folder / "state.json").unlink()
    (folder / "state.json").symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match=r"state\.json is missing"):
        Checkpoints(tmp_path).find()


def test_asking_for_what_is_not_there_says_what_is(tmp_path):
    with pytest.raises(RunError, match="has no checkpoint"):
        Checkpoints(tmp_path).find()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, None, agent=Thing({}))
    with pytest.raises(RunError, match="no checkpoint of env step 7; it has 1"):
        checkpoints.find(7)
    with pytest.raises(RunError, match="no best checkpoint"):
        checkpoints.find("best")


def test_an_interrupted_write_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, None, agent=Thing(STATE))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlagents.disk.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, None, agent=Thing(STATE))
    monkeypatch.undo()
    assert checkpoints.steps() == [1]
    assert checkpoints.find().step == 1
    checkpoints.save(2, None, agent=Thing(STATE))
    assert checkpoints.find().step == 2
