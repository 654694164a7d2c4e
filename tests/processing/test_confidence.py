"""Metrics of confidence: values worked out by hand, the definitions counted out, and what is refused."""

from pathlib import Path

import evaluate
import numpy as np
import pytest

from modeling_mote.processing import metrics
from modeling_mote.processing.metrics import METRICS, load_metric
from modeling_mote.processing.metrics.confidence import (
    auroc,
    expected_calibration_error,
    false_accept_rate,
    mean_average_precision,
    reliability_bins,
    set_coverage,
)

FOLDER = Path(metrics.__file__).parent


@pytest.fixture(params=["class", "folder"])
def metric(request):
    """A function that gives a metric by name, as the class or through `evaluate.load` on its folder, offline."""
    return load_metric if request.param == "class" else lambda name: evaluate.load(str(FOLDER / name))


# ----------------------------------------------------------------------------------------- expected calibration error


def test_calibration_error_by_hand(metric):
    probabilities = [[0.95, 0.05], [0.9, 0.1], [0.4, 0.6], [0.45, 0.55], [0.35, 0.65]]
    references = [0, 1, 1, 1, 0]
    result = metric("expected_calibration_error").compute(
        predictions=probabilities, references=references, num_bins=10
    )
    # 0.55 and 0.6 are in (0.5, 0.6], both right; 0.65, wrong; 0.9 in (0.8, 0.9], wrong; 0.95, right.
    assert [(each["count"], each["accuracy"]) for each in result["bins"]] == [(2, 1.0), (1, 0.0), (1, 0.0), (1, 1.0)]
    assert [each["confidence"] for each in result["bins"]] == pytest.approx([0.575, 0.65, 0.9, 0.95])
    assert result["ece"] == pytest.approx((2 * 0.425 + 0.65 + 0.9 + 0.05) / 5)
    assert (result["accuracy"], result["num_scored"]) == (pytest.approx(0.6), 5)
    assert result["confidence"] == pytest.approx((0.95 + 0.9 + 0.6 + 0.55 + 0.65) / 5)

    result = metric("expected_calibration_error").compute(
        predictions=probabilities, references=references, num_bins=2, equal_mass=True
    )
    assert [(each["low"], each["high"], each["count"]) for each in result["bins"]] == [
        (0.55, 0.65, 3),
        (0.9, 0.95, 2),
    ]
    assert result["ece"] == pytest.approx((3 * abs(2 / 3 - 0.6) + 2 * abs(0.5 - 0.925)) / 5)


def test_calibration_error_equals_counting():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 7)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(7, p=row) for row in probabilities])
    confidences, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
    result = expected_calibration_error(probabilities, labels)
    assert result["ece"] == pytest.approx(expected) and result["ece"] < 0.05  # labels drawn from the probabilities
    assert expected_calibration_error(probabilities, labels, equal_mass=True)["ece"] < 0.05
    sizes = [each["count"] for each in reliability_bins(probabilities, labels, 15, equal_mass=True)]
    assert sum(sizes) == 2000 and max(sizes) - min(sizes) <= 1


def test_one_class_is_sure_and_right():
    result = expected_calibration_error([[1.0], [1.0]], [0, 0])
    assert (result["ece"], result["accuracy"], len(result["bins"])) == (0.0, 1.0, 1)
    assert expected_calibration_error([[0.0, 0.0]], [1])["ece"] == 0.0  # sigmoids: nothing promised, nothing found


@pytest.mark.parametrize(
    ("probabilities", "labels", "options", "message"),
    [
        ([[0.5, 1.5]], [0], {}, "numbers from 0 to 1"),
        ([[2.0, -1.0]], [0], {}, "numbers from 0 to 1"),
        ([[np.nan, 0.5]], [0], {}, "of the clips that could be scored"),
        ([[0.5, 0.5]], [2], {}, "both must follow one class list"),
        ([], [], {}, "n > 0"),
        ([[0.5, 0.5]], [0], {"num_bins": 0}, "`num_bins` must be an integer from 1 on, got 0"),
    ],
)
def test_bad_probabilities_are_one_sentence(probabilities, labels, options, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(probabilities, labels, **options)


# ----------------------------------------------------------------------------------------------- AUROC, false accepts


def test_auroc_by_hand(metric):
    # Positives 3, 2, 1; negatives 2, 0: of six pairs, four are won, one is tied, one is lost.
    result = metric("auroc").compute(predictions=[3.0, 2.0, 2.0, 1.0, 0.0], references=[1, 1, 0, 1, 0])
    assert result == {"auroc": pytest.approx(4.5 / 6), "num_positives": 3, "num_negatives": 2}


def test_auroc_equals_counting_pairs():
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 12, 300).astype(float), rng.random(300) < 0.3  # many ties
    pairs = [np.sign(a - b) / 2 + 0.5 for a in scores[labels] for b in scores[~labels]]
    assert auroc(scores, labels)["auroc"] == pytest.approx(np.mean(pairs))
    assert auroc(np.zeros(300), labels)["auroc"] == 0.5
    assert auroc([-np.inf, np.inf], [0, 1])["auroc"] == 1.0


def test_false_accepts_by_hand(metric):
    positives, negatives = np.arange(1.0, 21.0), [0.0, 1.0, 2.0, 3.0, 30.0]  # 19 of 20 pass 2
    scores, kinds = [*positives, *negatives], [1] * 20 + [0] * 5
    result = metric("false_accept_rate").compute(predictions=scores, references=kinds)
    assert result == {
        "false_accept_rate": pytest.approx(3 / 5),
        "threshold": 2.0,
        "kept": pytest.approx(0.95),
        "num_positives": 20,
        "num_negatives": 5,
    }
    assert metric("false_accept_rate").compute(predictions=scores, references=kinds, kept=1.0)["threshold"] == 1.0
    half = false_accept_rate(scores, kinds, kept=0.5)
    assert (half["threshold"], half["false_accept_rate"]) == (11.0, pytest.approx(1 / 5))


def test_ties_at_the_threshold_all_pass():
    result = false_accept_rate([1.0, 1.0, 1.0, 1.0], [1, 1, 0, 0], kept=0.5)
    assert (result["kept"], result["false_accept_rate"]) == (1.0, 1.0)


@pytest.mark.parametrize("function", [auroc, false_accept_rate])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1, 1], "There are 2 positives and 0 negatives"),
        ([], [], "There are 0 positives and 0 negatives"),
        ([0.1, np.nan], [1, 0], "Score 1 is not a number: leave out"),
        ([0.1, 0.2], [1, 2], "Labels must be 1 for a positive and 0"),
        ([0.1], [1, 0], r"must be \[n\] both"),
        ([[0.1], [0.2]], [1, 0], r"must be \[n\] both"),
    ],
)
def test_bad_scores_are_one_sentence(function, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        function(scores, labels)


def test_a_share_kept_is_a_share():
    with pytest.raises(ValueError, match="`kept` must be a share above 0 and up to 1, got 95"):
        false_accept_rate([1.0, 0.0], [1, 0], kept=95)


# ----------------------------------------------------------------------------------------------------------- coverage


def test_coverage_by_hand(metric):
    sets, references = [[0, 2], [1], [], [0, 1, 2]], [2, 0, 1, 1]
    assert metric("set_coverage").compute(predictions=sets, references=references) == {
        "coverage": 0.5,
        "mean_set_size": 1.5,
        "median_set_size": 1.5,
        "empty_sets": 0.25,
        "single_sets": 0.25,
        "num_scored": 4,
    }


@pytest.mark.parametrize(
    ("sets", "labels", "message"),
    [
        ([], [], "got 0 sets and 0 labels"),
        ([[0]], [0, 1], "got 1 sets and 2 labels"),
        ([[0, 0]], [0], "Set 0 holds a class twice"),
    ],
)
def test_bad_sets_are_one_sentence(sets, labels, message):
    with pytest.raises(ValueError, match=message):
        set_coverage(sets, labels)


# ----------------------------------------------------------------------------------------------------- several labels


def test_mean_average_precision_by_hand(metric):
    scores = [[0.9, 0.1, 0.3], [0.8, 0.7, 0.2], [0.7, 0.7, 0.1], [0.1, 0.2, 0.0]]
    references = [[0], [1], [0, 1], []]
    result = metric("mean_average_precision").compute(predictions=scores, references=references)
    # Class 0 is found first and third; class 1's two clips tie for the first place; class 2 has no clip.
    assert result["average_precision"] == [pytest.approx((1 + 2 / 3) / 2), pytest.approx(1.0), None]
    assert (result["map"], result["num_classes"]) == (pytest.approx((1 + 5 / 6) / 2), 2)


def test_ties_share_a_threshold():
    result = mean_average_precision([[0.5], [0.5], [0.5], [0.1]], [[], [0], [], [0]])
    assert result["map"] == pytest.approx(0.5 * 1 / 3 + 0.5 * 2 / 4)


def test_average_precision_equals_its_definition():
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 15, (120, 6)).astype(float)
    references = [sorted(set(rng.integers(0, 6, rng.integers(0, 3)).tolist())) for _ in range(120)]
    expected = []
    for each in range(6):
        positive = np.array([each in classes for classes in references])
        recall, total = 0.0, 0.0
        for threshold in sorted(set(scores[:, each]), reverse=True):
            passed = scores[:, each] >= threshold
            total += (positive[passed].sum() / positive.sum() - recall) * positive[passed].mean()
            recall = positive[passed].sum() / positive.sum()
        expected.append(total)
    result = mean_average_precision(scores, references)
    assert result["average_precision"] == pytest.approx(expected) and result["map"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[0.1, 0.2]], [[]], "No clip has a class"),
        ([[0.1, 0.2]], [[2]], "Clip 0 is of .2., but there are classes 0 to 1"),
        ([[0.1, 0.2]], [[-1]], "there are classes 0 to 1"),
        ([[0.1], [0.1, 0.2]], [[0], [0]], r"must be \[n, c\]"),
        ([], [], r"must be \[n, c\]"),
        ([[0.1, np.nan]], [[0]], "Score 0 is not a number"),
    ],
)
def test_bad_labels_of_several_are_one_sentence(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision(scores, labels)


def test_scikit_learn_agrees():
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed; the counts above hold")
    rng = np.random.default_rng(3)
    scores, labels = rng.integers(0, 9, (200, 4)).astype(float), rng.random((200, 4)) < 0.3
    assert auroc(scores[:, 0], labels[:, 0])["auroc"] == pytest.approx(
        reference.roc_auc_score(labels[:, 0], scores[:, 0])
    )
    assert mean_average_precision(scores, [np.flatnonzero(row) for row in labels])["map"] == pytest.approx(
        reference.average_precision_score(labels, scores)
    )


def test_all_of_them_are_listed():
    names = {"expected_calibration_error", "auroc", "false_accept_rate", "set_coverage", "mean_average_precision"}
    assert names <= set(METRICS)
