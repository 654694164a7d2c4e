"""What a result says about its scores, worked out by hand, and how a number moves with the wording."""

import numpy as np
import pytest

from modeling_mote.measuring import measure_confidence, spread
from modeling_mote.processing.protocols import get_protocol


def test_confidence_by_hand():
    cosines = np.array([[0.3, 0.1], [0.2, 0.25], [np.nan, np.nan], [0.4, 0.1]])
    labels = np.array([0, 0, 1, 1])
    found = measure_confidence(cosines, labels, scale=10.0)
    sure = 1 / (1 + np.exp([-2.0, -0.5, -3.0]))  # 0.881, 0.622, 0.953: right, wrong, wrong
    assert found["ece"] == pytest.approx((abs(1 - sure[0]) + sure[1] + sure[2]) / 3)
    assert [each["count"] for each in found["reliability"]] == [1, 1, 1]
    # With the label 0.3, 0.25, 0.4; without it 0.1, 0.25, 0.4: of nine pairs five are won and two are ties.
    assert found["auroc_label_listed"] == pytest.approx((5 + 2 / 2) / 9)


def test_a_large_scale_does_not_overflow():
    found = measure_confidence(np.array([[0.3, -0.9], [0.1, 0.2]]), np.array([0, 1]), scale=1e4)
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
