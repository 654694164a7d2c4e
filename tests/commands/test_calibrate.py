"""What scores mean: fitted by a training and by a command of its own, used by the others."""

import json
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from modeling_mote import MoTEForVideoClassification
from modeling_mote.processing.calibration import Calibration, fit_calibration

from .conftest import CLASSES


@pytest.fixture(scope="module")
def more_clips(write_list):
    """12 clips that nothing was trained on."""
    return write_list("more", 12, seed=2)


@pytest.fixture
def trained(run_here, clip_folder, train_list, more_clips, tmp_path):
    options = {"model": clip_folder, "data": train_list, "validation_data": more_clips, "num_frames": 4}
    options |= {"epochs": 2, "warmup_epochs": 0, "batch_size": 4, "num_workers": 0, "output": tmp_path / "run"}
    assert run_here("train", options) == 0
    return tmp_path / "run" / "model"


def scorer_of(model: Path, clips: Path):
    """`score(rows, columns)`: cosines of some clips of a list to some classes alone, by the pipeline, [r, k]."""
    classify = pipeline("zero-shot-video-classification", model=str(model))
    files = sorted(str(file) for file in clips.parent.glob("*.mp4"))

    def score(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        names = [CLASSES[index] for index in columns.tolist()]
        answers = classify([files[index] for index in rows.tolist()], candidate_labels=names)
        found = [{row["label"]: row["similarity"] for row in each} for each in answers]
        return torch.tensor([[each[name] for name in names] for each in found])

    return score


def test_training_and_command_fit_the_same(run_here, refusal, trained, more_clips, write_list, tmp_path, capsys):
    fitted = json.loads((trained / "config.json").read_text())["calibration"]
    score = scorer_of(trained, more_clips)
    cosines, labels = score(torch.arange(12), torch.arange(3)), torch.arange(12) % 3
    expected = fit_calibration(cosines, labels, score).to_dict()
    assert fitted["num_clips"] == 12 and fitted["num_labels"] == 3
    assert fitted["temperature"] == pytest.approx(expected["temperature"], rel=0.05)
    assert fitted["known"] == pytest.approx(expected["known"], rel=0.05, abs=0.01)
    assert fitted["residuals"] == pytest.approx(expected["residuals"], rel=0.05, abs=0.01)
    assert "Calibrated on 12 labelled clips of 3 classes" in (trained / "README.md").read_text()

    options = {"model": trained, "data": write_list("others", 15, bad=[4], seed=3), "num_workers": 0}
    before = (trained / "config.json").read_bytes()
    assert run_here("calibrate", options | {"output": tmp_path / "copy"}) == 0
    said = capsys.readouterr()
    assert "calibrated on 14 clips of 3 classes" in said.out and "clip04.mp4" in said.err
    assert (trained / "config.json").read_bytes() == before
    copy = json.loads((tmp_path / "copy" / "config.json").read_text())["calibration"]
    assert Calibration.from_dict(copy).num_clips == 14 and copy != fitted
    assert run_here("calibrate", options) == 0
    assert json.loads((trained / "config.json").read_text())["calibration"] == copy

    few = write_list("few", 6, seed=4)
    assert "at least 10 labelled clips and 3 labels, got 6" in refusal("calibrate", options | {"data": few})
    assert "there is no such file" in refusal("calibrate", options | {"data": tmp_path / "none.csv"})
    assert json.loads((trained / "config.json").read_text())["calibration"] == copy


def test_short_lists_are_scored_with_their_own_modulation(run_here, trained, more_clips):
    model = MoTEForVideoClassification.from_pretrained(trained, modulation_temperature=1e-5)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in model.temporal_model.parameters():  # a few steps of training move no feature far
            weight += 0.2 * torch.randn_like(weight)
    model.save_pretrained(trained)
    assert run_here("calibrate", {"model": trained, "data": more_clips, "num_workers": 0}) == 0
    found = json.loads((trained / "config.json").read_text())["calibration"]
    score = scorer_of(trained, more_clips)
    cosines, labels = score(torch.arange(12), torch.arange(3)), torch.arange(12) % 3
    for name in ("known", "sigmoid"):
        assert found[name] == pytest.approx(getattr(fit_calibration(cosines, labels, score), name), rel=0.05, abs=0.01)
        of_one_list = getattr(fit_calibration(cosines, labels), name)
        assert found[name] != pytest.approx(of_one_list, rel=0.05, abs=0.01)
