"""What a result says about its scores, worked out by hand, and how a number moves with the wording."""

import numpy as np
import pytest
import torch

from modeling_mote.measuring import measure_confidence, spread
from modeling_mote.processing.calibration import fit_calibration
from modeling_mote.processing.metrics.confidence import expected_calibration_error
from modeling_mote.processing.protocols import get_protocol


def test_confidence_by_hand():
    cosines = np.array([[0.3, 0.1], [0.2, 0.25], [np.nan, np.nan], [0.4, 0.1]])
    labels = np.array([0, 0, 1, 1])
    found = measure_confidence(cosines, labels, 10.0)
    sure = 1 / (1 + np.exp([-2.0, -0.5, -3.0]))  # 0.881, 0.622, 0.953: right, wrong, wrong
    assert found["ece"] == pytest.approx((abs(1 - sure[0]) + sure[1] + sure[2]) / 3)
    assert [each["count"] for each in found["reliability"]] == [1, 1, 1]
    # With the label 0.3, 0.25, 0.4; without it 0.1, 0.25, 0.4: of nine pairs five are won and two are ties.
    assert found["auroc_label_listed"] == pytest.approx((5 + 2 / 2) / 9)


def test_confidence_of_calibrated_scores():
    """The probabilities of the calibration, and its own answer to whether the label is listed."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 6, 400)
    cosines = 0.2 + 0.02 * draw.normal(size=(400, 6)) + 0.05 * np.eye(6)[labels] * draw.random((400, 1))
    calibration = fit_calibration(cosines[:200], labels[:200])
    held_out = cosines[200:], labels[200:]
    found, raw = measure_confidence(*held_out, 100.0, calibration), measure_confidence(*held_out, 500.0)
    odds = np.exp(held_out[0] / calibration.temperature)
    odds /= odds.sum(axis=1, keepdims=True)
    assert found["ece"] == pytest.approx(expected_calibration_error(odds, held_out[1])["ece"])
    assert found["ece"] < 0.1 < raw["ece"]  # 500 is sure of everything
    rest = np.stack([np.delete(row, label) for row, label in zip(*held_out, strict=True)])
    listed = [calibration.known_probability(torch.from_numpy(each)) for each in (held_out[0], rest)]
    wins = (listed[0][:, None] > listed[1]).double() + (listed[0][:, None] == listed[1]).double() / 2
    assert found["auroc_label_listed"] == pytest.approx(float(wins.mean()))
    assert found["auroc_label_listed"] != raw["auroc_label_listed"]


def test_a_large_scale_does_not_overflow():
    found = measure_confidence(np.array([[0.3, -0.9], [0.1, 0.2]]), np.array([0, 1]), 1e4)
    assert found["ece"] == 0.0


def test_nothing_is_said_where_nothing_can_be():
    unread = measure_confidence(np.full((2, 3), np.nan), np.array([0, 1]), 100.0)
    assert unread == {"ece": None, "reliability": [], "auroc_label_listed": None}
    single = measure_confidence(np.array([[0.2], [0.3]]), np.array([0, 0]), 100.0)
    assert (single["ece"], single["auroc_label_listed"]) == (0.0, None)  # without its label, no list is left


def test_the_spread_over_wordings():
    values = [{"top1": {"mean": each}, "top5": {"mean": 1.0}} for each in (0.5, 0.6, 0.7)]
    found = spread(get_protocol("own-data"), values)
    assert found["top1"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(np.std([0.5, 0.6, 0.7])),
        "min": 0.5,
        "max": 0.7,
    }
    assert found["top5"] == {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}
