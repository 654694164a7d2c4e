"""Whether a score can be trusted, as plain functions; the folders beside wrap them for `evaluate`.

A clip that could not be scored has no confidence: leave it out. A NaN is refused, never counted.

Shapes: n clips, c classes, p positives, q negatives.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .accuracy import true_class_ranks

NUM_BINS = 15  # as most of the literature since Guo et al. (arXiv 1706.04599)


def reliability_bins(
    probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS, equal_mass: bool = False
) -> list[dict[str, Any]]:
    """Sort clips into bins by the probability of their best class, and count how often it is the true one.

    Args:
        probabilities: of the classes, from 0 to 1, [n, c]; rows need not sum to 1 (sigmoid).
        labels: true class indices, [n].
        num_bins: number of bins.
        equal_mass: bins of (nearly) as many clips each, in place of bins of one width.

    Returns:
        the bins that hold a clip, in rising order: `low` and `high`, between which the confidences lie (`low` < x ≤
        `high` for bins of one width; the smallest and largest confidence in it for equal mass), `count`, `confidence`,
        the mean, and `accuracy`. Equal probabilities rank by class index, the lower first.

    Raises:
        ValueError: for probabilities that are no numbers from 0 to 1, and if they do not fit the labels.
    """
    if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 1:
        raise ValueError(f"`num_bins` must be an integer from 1 on, got {num_bins!r}.")
    right = true_class_ranks(probabilities, labels) == 0
    values = np.asarray(probabilities, dtype=np.float64)
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():  # NaN is neither
        raise ValueError(
            "Probabilities must be numbers from 0 to 1: give scores after softmax or sigmoid, of the clips that could "
            "be scored."
        )
    confidences = values.max(axis=1).clip(max=1)
    if equal_mass:
        groups = np.array_split(np.argsort(confidences, kind="stable"), num_bins)
        limits = [(confidences[group].min(), confidences[group].max()) for group in groups if len(group)]
    else:
        edges = np.linspace(0, 1, num_bins + 1)
        place = (np.searchsorted(edges, confidences, side="left") - 1).clip(min=0)
        groups = [np.flatnonzero(place == number) for number in range(num_bins)]
        limits = [(edges[number], edges[number + 1]) for number in range(num_bins) if len(groups[number])]
    return [
        {
            "low": float(low),
            "high": float(high),
            "count": len(group),
            "confidence": float(confidences[group].mean()),
            "accuracy": float(right[group].mean()),
        }
        for group, (low, high) in zip([group for group in groups if len(group)], limits, strict=True)
    ]


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS, equal_mass: bool = False
) -> dict[str, Any]:
    """How far confidence is from accuracy: the sum over bins of count / n · |accuracy - confidence|.

    With few clips it is biased upwards: of n clips in b filled bins, a perfectly calibrated model has about
    0.4 · sqrt(b / n) at an accuracy of one half.

    Args:
        probabilities: as `reliability_bins` takes them, as for the rest.
        labels: true class indices, [n].
        num_bins: number of bins.
        equal_mass: bins of as many clips each; by default of one width.

    Returns:
        `ece`, a fraction; `confidence` and `accuracy`, the means over all clips; `num_scored`, n; `bins`.

    Raises:
        ValueError: as `reliability_bins`.
    """
    bins = reliability_bins(probabilities, labels, num_bins, equal_mass)
    total = sum(each["count"] for each in bins)

    def mean(values: Sequence[float]) -> float:
        return math.fsum(each["count"] * value for each, value in zip(bins, values, strict=True)) / total

    return {
        "ece": mean([abs(each["accuracy"] - each["confidence"]) for each in bins]),
        "confidence": mean([each["confidence"] for each in bins]),
        "accuracy": mean([each["accuracy"] for each in bins]),
        "num_scored": total,
        "bins": bins,
    }


def auroc(scores: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Args:
        scores: [n], larger for positives.
        labels: 1 or True for a positive, 0 or False for a negative, [n].

    Returns:
        `auroc`, from 0 to 1, 0.5 for scores that tell nothing; `num_positives`, p; `num_negatives`, q.

    Raises:
        ValueError: if a score is NaN, a label is neither, or either kind is missing.
    """
    positives, negatives = _split(scores, labels)
    order = np.sort(negatives)
    # Twice the wins: a positive above a negative is one of both counts, a tie is one of one.
    wins = np.searchsorted(order, positives, side="left").sum() + np.searchsorted(order, positives, side="right").sum()
    return {
        "auroc": float(wins / (2 * len(positives) * len(negatives))),
        "num_positives": len(positives),
        "num_negatives": len(negatives),
    }


def false_accept_rate(scores: ArrayLike, labels: ArrayLike, kept: float = 0.95) -> dict[str, Any]:
    """Share of negatives that pass the highest threshold at which at least `kept` of the positives pass.

    Args:
        scores: [n], larger for positives; a score equal to the threshold passes.
        labels: 1 or True for a positive, 0 or False for a negative, [n].
        kept: share of positives that must pass, above 0, up to 1.

    Returns:
        `false_accept_rate`; `threshold`; `kept`, the share of positives that does pass; `num_positives`, p;
        `num_negatives`, q.

    Raises:
        ValueError: as `auroc`, and for another `kept`.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"`kept` must be a share above 0 and up to 1, got {kept}.")
    positives, negatives = _split(scores, labels)
    needed = math.ceil(kept * len(positives) - 1e-9)  # 0.95 · 20 is 19, whatever floats say
    threshold = np.sort(positives)[len(positives) - max(needed, 1)]
    return {
        "false_accept_rate": float((negatives >= threshold).mean()),
        "threshold": float(threshold),
        "kept": float((positives >= threshold).mean()),
        "num_positives": len(positives),
        "num_negatives": len(negatives),
    }


def set_coverage(sets: Sequence[Sequence[int]], labels: ArrayLike) -> dict[str, Any]:
    """How often a set of classes holds the true one, and how large the sets are.

    Args:
        sets: class indices of each clip's set, each class once; an empty set holds nothing.
        labels: true class indices, [n].

    Returns:
        `coverage`, a fraction; `mean_set_size`, `median_set_size`; `empty_sets` and `single_sets`, fractions;
        `num_scored`, n.

    Raises:
        ValueError: if there is no clip, the two differ in number, or a set holds a class twice.
    """
    classes = np.asarray(labels)
    if classes.ndim != 1 or not len(classes) or len(sets) != len(classes):
        raise ValueError(f"Give one set per label, at least one: got {len(sets)} sets and {classes.size} labels.")
    for number, each in enumerate(sets):
        if len(set(each)) != len(each):
            raise ValueError(f"Set {number} holds a class twice: {list(each)}.")
    sizes = np.array([len(each) for each in sets])
    return {
        "coverage": float(np.mean([label in each for label, each in zip(classes.tolist(), sets, strict=True)])),
        "mean_set_size": float(sizes.mean()),
        "median_set_size": float(np.median(sizes)),
        "empty_sets": float((sizes == 0).mean()),
        "single_sets": float((sizes == 1).mean()),
        "num_scored": len(sizes),
    }


def mean_average_precision(scores: ArrayLike, labels: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Mean over classes of the average precision, for clips of several classes or none.

    Average precision is the sum over thresholds of (recall gained) · precision, without interpolation; clips of equal
    score pass a threshold together. As scikit-learn's `average_precision_score`.

    Args:
        scores: of the classes, [n, c]; clips are ranked for one class, so scores must compare across clips.
        labels: the class indices of each clip, n lists.

    Returns:
        `map`, the mean over the classes that have a clip; `average_precision`, c fractions, None for a class without a
        clip; `num_scored`, n; `num_classes`, those that have a clip.

    Raises:
        ValueError: if a score is NaN, no clip has a class, or the two do not fit.
    """
    try:
        values = np.asarray(scores, dtype=np.float64)
    except ValueError:  # rows of different lengths
        values = np.empty(0)
    if values.ndim != 2 or 0 in values.shape or len(values) != len(labels):
        raise ValueError("Scores must be [n, c] and labels n lists of classes, n > 0: one score per class and clip.")
    _refuse_nan(values)
    of_class = np.zeros(values.shape, dtype=bool)
    for clip, classes in enumerate(labels):
        if len(classes) and not 0 <= min(classes) <= max(classes) < values.shape[1]:
            raise ValueError(f"Clip {clip} is of {list(classes)}, but there are classes 0 to {values.shape[1] - 1}.")
        of_class[clip, list(classes)] = True
    if not of_class.any():
        raise ValueError("No clip has a class: there is nothing to find.")
    found = [
        _average_precision(values[:, each], of_class[:, each]) if of_class[:, each].any() else None
        for each in range(values.shape[1])
    ]
    known = [each for each in found if each is not None]
    return {
        "map": float(np.mean(known)),
        "average_precision": found,
        "num_scored": len(values),
        "num_classes": len(known),
    }


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    hits, ranked = positive[order].cumsum(), scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last of each run of equal scores
    recall, precision = hits[ends] / hits[-1], hits[ends] / (ends + 1)
    return float((np.diff(recall, prepend=0) * precision).sum())


def _split(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The scores of positives [p] and negatives [q], in float64, or one sentence that says what is wrong."""
    values, kinds = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != kinds.shape:
        raise ValueError(f"Scores and labels must be [n] both, got {list(values.shape)} and {list(kinds.shape)}.")
    _refuse_nan(values)
    if not np.isin(kinds, (0, 1)).all():
        raise ValueError("Labels must be 1 for a positive and 0 for a negative.")
    positives, negatives = values[kinds == 1], values[kinds == 0]
    if not len(positives) or not len(negatives):
        raise ValueError(
            f"There are {len(positives)} positives and {len(negatives)} negatives: at least one of each is needed."
        )
    return positives, negatives


def _refuse_nan(values: np.ndarray) -> None:
    if np.isnan(values).any():
        first = int(np.argwhere(np.isnan(values))[0, 0])
        raise ValueError(f"Score {first} is not a number: leave out the clips that could not be scored.")


__all__ = [
    "NUM_BINS",
    "auroc",
    "expected_calibration_error",
    "false_accept_rate",
    "mean_average_precision",
    "reliability_bins",
    "set_coverage",
]
