"""What scores mean, and what an answer holds."""

import json
import math

import pytest
import torch

from modeling_mote.processing.answers import AnswerOptions, answer, score_labels
from modeling_mote.processing.calibration import Calibration, fit_calibration, without_true
from modeling_mote.processing.metrics.confidence import auroc, expected_calibration_error, set_coverage


def draw(count, width, strength, seed):
    """Cosines [b, c] in which true labels stand out, so that softmax(strength · cosine) is right by construction."""
    generator = torch.Generator().manual_seed(seed)
    cosines = 0.1 * torch.randn(count, width, generator=generator, dtype=torch.float64) + 0.3
    return cosines, torch.multinomial((strength * cosines).softmax(-1), 1, generator=generator)[:, 0]


@pytest.fixture(scope="module")
def fitted():
    return fit_calibration(*draw(4000, 20, 40, 0))


def test_temperature_is_found(fitted):
    assert fitted.temperature == pytest.approx(1 / 40, rel=0.05)
    cosines, labels = draw(4000, 20, 40, 1)
    assert expected_calibration_error(fitted.log_probabilities(cosines).exp().numpy(), labels)["ece"] < 0.03


def test_sets_cover_what_they_promise(fitted):
    cosines, labels = draw(4000, 20, 40, 2)
    for coverage in (0.5, 0.9, 0.99):
        least = fitted.largest_residual(coverage)
        sets = [(-row <= least).nonzero()[:, 0].tolist() for row in fitted.log_probabilities(cosines)]
        assert set_coverage(sets, labels)["coverage"] == pytest.approx(coverage, abs=0.02)


def test_none_of_these_is_told(fitted):
    cosines, labels = draw(2000, 20, 400, 3)
    wide = fit_calibration(cosines, labels)
    scores = torch.cat([wide.known_probability(cosines), wide.known_probability(without_true(cosines, labels))])
    truth = torch.cat([torch.ones(2000), torch.zeros(2000)])
    assert auroc(scores, truth)["auroc"] > 0.7
    assert expected_calibration_error(torch.stack([1 - scores, scores], 1), truth.long())["ece"] < 0.05


@pytest.mark.parametrize("length", [1, 2, 5, 12, 20])
def test_none_of_these_is_told_of_lists_of_any_length(length):
    cosines, labels = draw(2000, 20, 400, 3)
    known = fit_calibration(cosines, labels)
    cosines, labels = draw(2000, 20, 400, 4)
    others = without_true(cosines, labels)
    listed = torch.cat([cosines.gather(1, labels[:, None]), others[:, : length - 1]], dim=1)
    scores = torch.cat([known.known_probability(listed), known.known_probability(others[:, :length])])
    truth = torch.cat([torch.ones(2000), torch.zeros(2000)])
    assert expected_calibration_error(torch.stack([1 - scores, scores], 1), truth.long())["ece"] < 0.06
    assert (known.known_probability(listed) > 0.5).double().mean() > 0.6


def test_none_of_these_is_the_formula_of_the_page_on_exports(fitted):
    cosines = [0.31, 0.28, 0.11]
    *w, b = fitted.known
    m, a, c = max(cosines), sum(cosines) / 3, math.log(3)
    unknown = 1 / (1 + math.exp(sum(x * y for x, y in zip(w, (m, a, c, m * c, a * c), strict=True)) + b))
    rows = answer(torch.tensor(cosines), ["a", "b", "c"], 100, fitted, AnswerOptions(unknown=True))
    assert {row["label"]: row["score"] for row in rows}["none of these"] == pytest.approx(unknown)


def test_perfect_clips_give_finite_numbers():
    labels = torch.arange(40) % 4
    found = fit_calibration(torch.nn.functional.one_hot(labels).double(), labels)
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert (found.known_probability(torch.eye(4)) > 0.9).all()
    assert (found.known_probability(torch.zeros(4, 3)) < 0.1).all()


def test_few_clips_hold_every_label():
    assert fit_calibration(*draw(10, 5, 40, 0)).largest_residual(0.95) == float("inf")


@pytest.mark.parametrize(
    ("cosines", "labels", "message"),
    [
        (torch.rand(9, 4), torch.zeros(9).long(), "at least 10 labelled clips and 3 labels, got 9 and 4"),
        (torch.rand(20, 2), torch.zeros(20).long(), "got 20 and 2"),
        (torch.rand(20, 4), torch.zeros(19).long(), "labels \\[b\\]"),
        (torch.rand(20, 4), torch.full((20,), 4), "from 0 to 3"),
        (torch.full((20, 4), float("nan")), torch.zeros(20).long(), "no finite number"),
    ],
)
def test_what_cannot_be_fitted(cosines, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(cosines, labels)


@pytest.mark.parametrize("change", [{"temperature": 0}, {"sigmoid": [1.0]}, {"ranks": []}, {"known": None}])
def test_damaged_calibration(fitted, change):
    with pytest.raises(ValueError, match="calibration in the configuration is damaged"):
        Calibration.from_dict(fitted.to_dict() | change)


def test_scores_without_a_calibration():
    cosines = torch.tensor([[0.30, 0.32]])
    for function, expected in (
        (None, (100 * cosines).softmax(-1)),
        ("sigmoid", (10 * cosines).sigmoid()),
        ("none", 100 * cosines),
    ):
        scale = 10 if function == "sigmoid" else 100
        scores, none = score_labels(cosines, scale, None, AnswerOptions(function_to_apply=function))
        assert none is None and scores[0].tolist() == pytest.approx(expected[0].tolist(), rel=1e-4)


def test_rows_are_ranked_by_similarity_where_scores_round():
    rows = answer(torch.tensor([0.1, 0.9, 0.8]), ["a", "b", "c"], 1e6)
    assert [row["label"] for row in rows] == ["b", "c", "a"]
    assert [
        row["label"] for row in answer(torch.tensor([0.1, 0.9, 0.8]), ["a", "b", "c"], 1, None, AnswerOptions(2))
    ] == [
        "b",
        "c",
    ]


def test_several_labels_can_be_right(fitted):
    rows = answer(torch.tensor([0.9, 0.9, 0.0]), ["a", "b", "c"], 100, fitted, AnswerOptions(multi_label=True))
    assert rows[0]["score"] == rows[1]["score"] > 0.9 and rows[2]["score"] < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"function_to_apply": "max"}, "function_to_apply is 'max'"),
        ({"unknown": 1}, "unknown is 1"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"coverage": 90}, "coverage is 90"),
        ({"multi_label": True, "function_to_apply": "softmax"}, "multi_label scores each label by a sigmoid"),
        ({"multi_label": True, "coverage": 0.9}, "coverage is about one true label"),
        ({"unknown": True, "function_to_apply": "none"}, "unknown needs scores that are probabilities"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        AnswerOptions(**options)


def test_a_label_called_as_the_row_of_none(fitted):
    with pytest.raises(ValueError, match="a label is called 'none of these'"):
        answer(torch.tensor([0.9, 0.1]), ["a", "none of these"], 100, fitted, AnswerOptions(unknown=True))
