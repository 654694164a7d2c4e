"""Checkpoints of a run: whole or absent, damage noticed, an older whole one taken, the user's files left alone."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from modeling_mote.checkpoints import Checkpoints


@pytest.fixture
def start(tmp_path):
    """`start(**settings)`: a tiny model and the checkpoints of its run, as a new process has them."""

    def make(keep=2, width=4, **settings):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model = torch.nn.Linear(width, 2)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        return Run(model, optimizer, Checkpoints(tmp_path / "checkpoints", accelerator, settings, keep))

    return make


class Run:
    def __init__(self, model, optimizer, checkpoints):
        self.model, self.optimizer, self.checkpoints = model, optimizer, checkpoints

    def step(self, number):
        self.model(torch.randn(3, self.model.in_features)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.checkpoints.save(number, {"best": number / 10})
        return self.weights()

    def weights(self):
        return self.model.weight.detach().clone()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_goes_on_to_the_last_digit(start, tmp_path):
    whole = start()
    weights = [whole.step(number) for number in (1, 2, 3)]
    assert names(tmp_path / "checkpoints") == ["step-00000002", "step-00000003"]
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000003")
    again = start()
    progress = again.checkpoints.load_newest()
    assert (progress["step"], progress["best"]) == (2, 0.2) and torch.equal(again.weights(), weights[1])
    assert torch.equal(again.step(3), weights[2])  # moments and random state too


def test_there_is_none_at_first(start):
    assert start().checkpoints.load_newest() is None


def test_other_settings_are_refused(start):
    start(lr=0.1, epochs=2, seed=0).step(1)
    with pytest.raises(ValueError, match="step-00000001 was written with another epochs, lr: go on with the same"):
        start(lr=0.2, epochs=3, seed=0).checkpoints.load_newest()
    with pytest.raises(ValueError, match="does not fit the model"):
        start(lr=0.1, epochs=2, seed=0, width=5).checkpoints.load_newest()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit of a weight": lambda folder: flip(folder / "model.safetensors"),
    "a flipped bit of a moment": lambda folder: flip(folder / "optimizer.bin"),
    "a flipped bit of the progress": lambda folder: flip(folder / "progress.json"),
    "a flipped bit of the checksums": lambda folder: flip(folder / "checksums.json"),
    "an empty optimizer": lambda folder: (folder / "optimizer.bin").write_bytes(b""),
    "a cut model": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
    "a missing file": lambda folder: (folder / "random_states_0.pkl").unlink(),
    "no checksums": lambda folder: (folder / "checksums.json").unlink(),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_an_older_whole_checkpoint_is_taken_and_said(start, tmp_path, damage):
    run = start()
    first = run.step(1)
    second = run.step(2)
    damage(tmp_path / "checkpoints" / "step-00000002")
    again = start()
    with pytest.warns(UserWarning, match=r"step-00000002 is damaged \(.*\): it is passed over"):
        assert again.checkpoints.load_newest()["step"] == 1
    assert torch.equal(again.weights(), first)
    assert torch.equal(again.step(2), second)
    assert start().checkpoints.load_newest()["step"] == 2  # the damaged one was replaced
    for each in (tmp_path / "checkpoints").iterdir():
        damage(each)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="No checkpoint in .* is whole: remove the folder"):
        start().checkpoints.load_newest()


def test_the_good_ones_are_kept_while_a_damaged_one_is_newer(start, tmp_path):
    run = start(keep=1)
    run.step(1)
    shutil.copytree(tmp_path / "checkpoints" / "step-00000001", tmp_path / "checkpoints" / "step-00000009")
    flip(tmp_path / "checkpoints" / "step-00000009" / "model.safetensors")
    run.step(2)
    assert names(tmp_path / "checkpoints") == ["step-00000002", "step-00000009"]


def test_what_is_the_users_stays_and_what_a_kill_left_goes(start, tmp_path):
    run, folder = start(keep=1), tmp_path / "checkpoints"
    run.step(1)
    shutil.copytree(folder / "step-00000001", folder / "step-00000001.bak")
    (folder / "step-notes.txt").write_text("mine")
    (folder / "step-00000001").rename(folder / ".step-00000001.old")  # a kill between the two renames
    (folder / ".step-00000002.host.1-0.partial").mkdir()
    again = start(keep=1)
    assert again.checkpoints.load_newest()["step"] == 1
    again.step(2)
    again.step(3)
    assert names(folder) == ["step-00000001.bak", "step-00000003", "step-notes.txt"]


def test_nothing_in_it_is_run(start, tmp_path):
    """A file that would run code when it is unpickled, with checksums that fit it."""

    class Program:
        def __reduce__(self):
            return (Path(tmp_path / "it ran").touch, ())

    start().step(1)
    folder = tmp_path / "checkpoints" / "step-00000001"
    for file in ("optimizer.bin", "random_states_0.pkl"):
        torch.save(Program(), folder / file)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "checksums.json").write_text(json.dumps({name: sums[name] for name in sums if name != "checksums.json"}))
    with pytest.raises(ValueError, match="step-00000001 does not fit the model, or is damaged"):
        start().checkpoints.load_newest()
    assert not (tmp_path / "it ran").exists()
