"""The experiment with few clips, in small: splits, draws, both ways, the table and the picture."""

import sys
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).resolve().parents[2] / "examples" / "experiments"


@pytest.fixture
def few_clips(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import few_clips

    yield few_clips
    for name in ("few_clips", "heads", "worlds"):
        sys.modules.pop(name, None)


def test_examples_and_training_learn_what_the_texts_do_not_say(few_clips, tmp_path):
    from transformers import AutoTokenizer

    from modeling_mote.processing import encode_classes
    from modeling_mote.processing.calibration import fit_calibration

    torch.manual_seed(0)
    model = few_clips.load_clip().eval()
    with torch.no_grad():
        for layer in model.temporal_model.layers:
            layer.layer_norm1.bias.normal_(std=0.02)
    names = [f"{color} bar growing" for color in ("red", "green", "blue", "yellow", "purple", "cyan")]
    embeds = encode_classes(model, AutoTokenizer.from_pretrained(few_clips.CLIP), names)
    model.set_training_classes(names, embeds)
    labels = torch.arange(len(names))
    means = torch.randn(len(names), 1, model.config.projection_dim)

    def clips(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        shown = labels.repeat_interleave(number)
        return means[shown] + 0.5 * torch.randn(len(shown), 8, means.shape[-1]), shown

    split = few_clips.Split(names, embeds, *clips(5), *clips(18))
    drawn = split.draw(16, seed=1)
    assert len(set(drawn.tolist())) == 16 * len(names)
    assert split.pool_labels[drawn].bincount().tolist() == [16] * len(names)
    some = split.some_labels(torch.tensor([4, 1]))
    assert some.names == [names[4], names[1]] and some.test_labels.bincount().tolist() == [5, 5]
    assert torch.equal(some.test[some.test_labels == 0], split.test[split.test_labels == 4])

    cosines, *_ = few_clips.similarities(model, split, drawn)
    model.config.calibration = fit_calibration(cosines, split.test_labels).to_dict()
    options = few_clips.Options(draws=2, trainings=1, steps=2, picture=str(tmp_path / "curve.png"))
    results = few_clips.measure(model, {"test_motions": split}, options)
    row = results["test_motions"]
    assert row["examples"][16]["mean"] > max(0.9, row["zero_shot"])
    assert row["answers"]["examples"]["coverage"]["mean"] >= 0.8
    half = row["half_the_labels"]
    assert half["without"]["examples"]["mean"] == pytest.approx(half["without"]["zero_shot"])
    assert few_clips.tables(results).count("\n| unseen motions") == 7
    few_clips.draw_picture(results, options.picture)
    assert (tmp_path / "curve.png").stat().st_size > 1000
