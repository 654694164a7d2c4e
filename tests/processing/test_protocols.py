"""The protocols: their scores against the authors' code, and their rows against the other registries."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from modeling_mote.processing.builders import BUILDERS
from modeling_mote.processing.frame_sampling import sample_indices
from modeling_mote.processing.label_sets import load_label_set
from modeling_mote.processing.metrics.accuracy import harmonic_tradeoff
from modeling_mote.processing.prompts import PROMPT_SETS
from modeling_mote.processing.protocols import (
    PROTOCOLS,
    get_protocol,
    half_classes,
    half_classes_accuracy,
    half_classes_score,
    mean_and_std,
    score_views,
)
from modeling_mote.processing.video_options import CHOICES


@pytest.fixture(scope="module")
def halves(shared):
    return load_file(shared / "reference" / "half_classes.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_views_equals_the_authors(shared, dtype):
    cases = load_file(shared / "reference" / "cases.safetensors")
    cosines = F.normalize(cases["views.features"], dim=-1) @ cases["class_embeds"].T  # [2, 6, 12]
    expected = cases["views.probs"]
    error = (score_views(cosines.to(dtype)) - expected).abs().amax(dim=1)
    assert (error <= 1e-4 * (expected.amax(dim=1) - expected.amin(dim=1))).all()


def test_score_views_averages_probabilities_and_not_cosines():
    cosines = torch.tensor([[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.4]]])
    by_hand = torch.stack([view.softmax(-1) for view in cosines[0].double()]).mean(0).softmax(-1)
    torch.testing.assert_close(score_views(cosines), by_hand[None])
    assert not torch.allclose(score_views(cosines), cosines.double().mean(1).softmax(-1).softmax(-1))


def test_score_views_keeps_near_ties_of_many_classes_apart():
    cosines = torch.zeros(1, 1, 2000, dtype=torch.float64)
    cosines[0, 0, 7] = 1e-6
    assert score_views(cosines).argmax() == 7
    assert len(set(score_views(cosines).float()[0].tolist())) == 1  # what float32 would have kept of it


def test_score_views_takes_half_precision_and_refuses_other_shapes():
    scores = score_views(torch.randn(2, 3, 5).bfloat16())
    assert scores.dtype == torch.float64 and scores.shape == (2, 5)
    for shape in ((2, 5), (2, 0, 5), (2, 3, 0)):
        with pytest.raises(ValueError, match=r"must be \[b, v, c\]"):
            score_views(torch.zeros(shape))


def test_half_classes_equal_the_authors(halves):
    scores = half_classes_score(halves["video_embeds"], halves["text_embeds"])
    result = half_classes_accuracy(scores, halves["labels"])
    for name in ("top1", "top5"):
        # The authors' numbers are float32 percentages held in float64.
        ours = torch.tensor(result[f"{name}_splits"], dtype=torch.float64) * 100
        torch.testing.assert_close(ours.float(), halves[f"split_{name}"].float(), rtol=2e-7, atol=0)
        num_videos = [np.isin(halves["labels"], half).sum() for half in half_classes(21)]
        assert [round(a * n / 100) for a, n in zip(halves[f"split_{name}"].tolist(), num_videos, strict=True)] == [
            round(a * n) for a, n in zip(result[f"{name}_splits"], num_videos, strict=True)
        ]
        assert result[f"{name}_all_classes"] * 100 == pytest.approx(halves[f"full_{name}"].item(), rel=1e-7)
        assert result[name] == pytest.approx(halves[f"split_{name}"].mean().item() / 100, rel=1e-7)
        assert result[f"{name}_std"] == pytest.approx(np.std(halves[f"split_{name}"].numpy()) / 100, rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 51, 101])
def test_half_classes_are_numpys_permutations_and_leave_its_generator_alone(num_classes):
    before = np.random.get_state()[1].copy()
    drawn = half_classes(num_classes)
    assert (np.random.get_state()[1] == before).all()
    expected = []
    for seed in range(10):
        np.random.seed(seed)
        expected.append(sorted(np.random.permutation(num_classes)[: num_classes // 2]))
    assert drawn.shape == (10, num_classes // 2) and (drawn == np.array(expected)).all()


def test_half_classes_count_unread_videos_as_wrong(halves):
    videos = halves["video_embeds"].clone()
    clean = half_classes_accuracy(half_classes_score(videos, halves["text_embeds"]), halves["labels"])
    videos[:40] = torch.nan
    result = half_classes_accuracy(half_classes_score(videos, halves["text_embeds"]), halves["labels"])
    assert (result["num_listed"], result["num_scored"]) == (220, 180)
    assert result["top1"] < clean["top1"] and result["top5"] < 1.0
    assert result["top5_scored"] == 1.0 and result["top1_scored"] > result["top1"]


def test_half_classes_bad_input():
    with pytest.raises(ValueError, match="Half of 1 classes"):
        half_classes(1)
    with pytest.raises(ValueError, match="is of a class in half"):
        half_classes_accuracy(np.zeros((1, 8)), [0])
    with pytest.raises(ValueError, match=r"must be \[b, v, d\]"):
        half_classes_score(torch.zeros(2, 3, 4), torch.zeros(5, 6))


def test_trade_off():
    assert harmonic_tradeoff(81.8, (83.4, 55.8, 70.2))["trade_off"] == pytest.approx(74.2, abs=0.05)
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, pytest.approx(np.sqrt(2 / 3)))


def test_every_row_of_the_design_is_there():
    views = {name: protocol.views for name, protocol in PROTOCOLS.items()}
    assert views == {
        "kinetics400-1x1": "1x1",
        "kinetics400-4x3": "4x3",
        "ucf101-zero-shot": "3x1",
        "hmdb51-zero-shot": "3x1",
        "kinetics600-zero-shot": "3x1",
        "own-data": "1x1",
        "half-classes": "3x1",
        "ucf101-half-classes": "3x1",
        "hmdb51-half-classes": "3x1",
        "ucf101-few-shot": "1x1",
        "hmdb51-few-shot": "1x1",
    }
    assert get_protocol("ucf101-few-shot").shots == (2, 4, 8, 16)
    papers = [protocol for name, protocol in PROTOCOLS.items() if name != "own-data"]
    assert all(protocol.num_frames == 8 and protocol.alpha == 0.99 for protocol in papers)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_rows_name_what_exists(protocol):
    assert get_protocol(protocol.name) is protocol
    assert protocol.prompts in PROMPT_SETS
    assert protocol.sampling in CHOICES["sampling"]
    assert protocol.square_pixels == (protocol.name == "own-data")  # the others do as the authors' scripts
    frames = protocol.num_frames or 5
    assert len(sample_indices(100, frames, protocol.sampling, protocol.num_clips)) == frames * protocol.num_clips
    assert (protocol.builder is None) == (not protocol.parts)
    for part in protocol.parts:
        config = next(each for each in BUILDERS[protocol.builder].BUILDER_CONFIGS if each.name == part.config)
        assert config.read_label_set() == load_label_set(part.label_set)
    assert (protocol.aggregate == "mean_std") == (len(protocol.parts) > 1 or protocol.score_rule == "half_classes")
    assert all(
        number.metric in protocol.metrics and "as reported by" in number.source for number in protocol.published
    )


def test_a_protocol_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_protocol("kinetics400-1x1").num_clips = 10
    with pytest.raises(TypeError):
        PROTOCOLS["mine"] = get_protocol("kinetics400-1x1")


def test_unknown_protocol_lists_the_names():
    with pytest.raises(
        ValueError, match="Unknown protocol 'ucf101'; choose one of kinetics400-1x1, .*hmdb51-few-shot"
    ) as raised:
        get_protocol("ucf101")
    assert "\n" not in str(raised.value)
