"""The training loop on one page trains, and what it leaves loads."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from modeling_mote.loading import load_pipeline

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def videos(tmp_path, write_video):
    """Four clips each of a bar that grows and of one that does not."""
    for label, name in enumerate(("bar_growing", "bar_standing")):
        for number in range(4):
            frames = np.full((10, 64, 64, 3), 20 + 10 * number, np.uint8)
            for index, frame in enumerate(frames):
                frame[20:30, 10 : 20 + (4 * index if label == 0 else 16), 0] = 230
            file = tmp_path / "videos" / name / f"{number}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_video(file, frames=frames)
    return tmp_path / "videos"


def test_it_trains_a_model_that_the_pipeline_loads(videos, tmp_path, monkeypatch, capsys):
    script, output = EXAMPLES / "train_minimal.py", tmp_path / "run" / "model"
    assert len(script.read_text().splitlines()) <= 95
    given = {"data": videos, "model": EXAMPLES / "moving_shapes_clip", "output": output, "batch_size": 3}
    monkeypatch.setattr(sys, "argv", [str(script), *(f"--{name}={value}" for name, value in given.items())])
    monkeypatch.setenv("MOTE_CACHE", str(tmp_path / "cache"))
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(said) == 20 and said[-1].startswith("epoch 20 of 20, loss ") and "on 2 clips held out" in said[-1]
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in said]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert json.loads((output / "config.json").read_text())["id2label"] == {"0": "bar growing", "1": "bar standing"}
    labels = ["bar growing", "bar spinning"]
    answers = load_pipeline(str(output), "cpu")(str(videos / "bar_growing" / "0.mp4"), candidate_labels=labels)
    assert {answer["label"] for answer in answers} == set(labels)
