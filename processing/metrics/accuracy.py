"""Accuracies as plain functions of scores and true classes; the folders beside wrap them for `evaluate`."""

from collections.abc import Sequence
from statistics import harmonic_mean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def true_class_ranks(scores: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Rank of the true class in each row: 0 is the highest score, c (never right) a row with a NaN.

    Args:
        scores: class scores, [n, c].
        labels: true class indices, [n].

    Returns:
        int64 array [n]. Equal scores rank by class index, the lower first.

    Raises:
        ValueError: if there is no clip, the rows differ in length, or a label is no class index.

    Shapes: n clips, c classes.
    """
    scores, labels = _checked(scores, labels)
    true_scores = np.take_along_axis(scores, labels[:, None], axis=1)  # [n, 1]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    ranks = ((scores > true_scores) | ((scores == true_scores) & earlier)).sum(axis=1)
    ranks[np.isnan(scores).any(axis=1)] = scores.shape[1]
    return ranks


def topk_accuracy(scores: ArrayLike, labels: ArrayLike, k: int | Sequence[int] = (1, 5)) -> dict[str, Any]:
    """Share of clips whose true class is among the k classes of highest score.

    Args:
        scores: class scores, [n, c]; a row with a NaN is a clip that could not be scored and counts as wrong.
        labels: true class indices, [n].
        k: the k of top-k, one or several. More than c means c.

    Returns:
        for each k, `top{k}`, the fraction of the n clips listed that are right, and `top{k}_scored`, that of the clips
        scored (None if none was); `num_listed` and `num_scored`, the two denominators.

    Raises:
        ValueError: if scores and labels do not fit, or a k is below 1.

    Shapes: n clips, c classes.
    """
    ks = check_ks(k)
    ranks, num_classes = true_class_ranks(scores, labels), np.shape(scores)[1]
    num_listed, num_scored = len(ranks), int((ranks < num_classes).sum())
    result: dict[str, Any] = {}
    for each in ks:
        num_right = int((ranks < min(each, num_classes)).sum())
        result[f"top{each}"] = num_right / num_listed
        result[f"top{each}_scored"] = num_right / num_scored if num_scored else None
    return result | {"num_listed": num_listed, "num_scored": num_scored}


def per_class_accuracy(scores: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Top-1 accuracy of each class, and its mean over the classes that have a clip.

    Args:
        scores: class scores, [n, c]; a row with a NaN is a clip that could not be scored and counts as wrong.
        labels: true class indices, [n].

    Returns:
        `mean_per_class_accuracy`, a fraction; `per_class_accuracy`, c fractions, None for a class without a clip;
        `per_class_count`, the clips listed of each class.

    Raises:
        ValueError: if scores and labels do not fit.

    Shapes: n clips, c classes.
    """
    right = true_class_ranks(scores, labels) == 0
    labels, num_classes = np.asarray(labels, dtype=np.int64), np.shape(scores)[1]
    counts = np.bincount(labels, minlength=num_classes)
    rights = np.bincount(labels, weights=right, minlength=num_classes)
    present = counts > 0
    accuracies = np.divide(rights, counts, out=np.full(num_classes, np.nan), where=present)
    return {
        "mean_per_class_accuracy": float(accuracies[present].mean()),
        "per_class_accuracy": [
            float(accuracy) if has_clip else None for accuracy, has_clip in zip(accuracies, present, strict=True)
        ],
        "per_class_count": counts.tolist(),
    }


def harmonic_tradeoff(close_set: float, zero_shot: Sequence[float]) -> dict[str, float]:
    """Weigh close-set against zero-shot accuracy: HM_ZS = HM(zero-shot sets), trade-off = HM(close set, HM_ZS).

    The paper's table 4: what a model was trained for against what it never saw.

    Args:
        close_set: close-set top-1 accuracy (the paper: Kinetics-400).
        zero_shot: zero-shot top-1 accuracies (the paper: UCF101, HMDB51, Kinetics-600), on the scale of `close_set`.

    Returns:
        `hm_zs` and `trade_off`, on the scale of the inputs.

    Raises:
        ValueError: if `zero_shot` is empty or an accuracy is negative or not a number.
    """
    if not len(zero_shot):
        raise ValueError("`zero_shot` is empty; give the accuracy of at least one zero-shot data set.")
    if not all(accuracy >= 0 for accuracy in (close_set, *zero_shot)):
        raise ValueError(f"Accuracies must be numbers from 0 on, got close_set={close_set}, zero_shot={zero_shot}.")
    hm_zs = harmonic_mean(zero_shot)
    return {"hm_zs": float(hm_zs), "trade_off": float(harmonic_mean((close_set, hm_zs)))}


def check_ks(k: int | Sequence[int]) -> tuple[int, ...]:
    """The k of top-k or recall at k, as a tuple.

    Raises:
        ValueError: if there is none, or one below 1.
    """
    ks = (k,) if isinstance(k, int) else tuple(k)
    if not ks or min(ks) < 1:
        raise ValueError(f"`k` must be one or more integers from 1 on, got {k}.")
    return ks


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n, c] as float64 and true classes [n] as int64, or one sentence that says what is wrong."""
    classes = np.asarray(labels, dtype=np.int64)
    try:
        # float64: after the double softmax of `score_views`, scores of many classes differ by less than float32 holds.
        values = np.asarray(scores, dtype=np.float64)
    except ValueError:  # rows of different lengths
        values = np.empty(0)
    if not len(classes) or values.ndim != 2 or len(values) != len(classes):
        raise ValueError("Scores must be [n, c] and labels [n], n > 0: one score per class for every clip.")
    low, high = classes.min(), classes.max()
    if low < 0 or high >= values.shape[1]:
        raise ValueError(
            f"The labels run from {low} to {high}, but there are scores for {values.shape[1]} classes: both must "
            "follow one class list."
        )
    return values, classes


__all__ = ["check_ks", "harmonic_tradeoff", "per_class_accuracy", "topk_accuracy", "true_class_ranks"]
