"""Top-k accuracy over the clips listed, and over those of them that were scored."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike

_DESCRIPTION = "Share of clips whose true class is among the k classes of highest score."
_INPUTS = """
Args:
    predictions: class scores, [n, c]; a row with a NaN is a clip that could not be scored and counts as wrong.
    references: true class indices, [n].
    k: the k of top-k, one integer or several (default 1 and 5). More than c means c.
Returns:
    top{k}: fraction of the n clips listed that are right.
    top{k}_scored: fraction of the clips scored that are right; None when none was scored.
    num_listed, num_scored: the two denominators.
Equal scores rank by class index, the lower first.
"""


def checked_scores(predictions: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores [n, c] as float64 and true classes [n] as int64, or raise one sentence saying what is wrong."""
    true_classes = np.asarray(references, dtype=np.int64)
    try:
        scores = np.asarray(predictions, dtype=np.float64)
    except ValueError:  # rows of different lengths
        scores = np.empty(0)
    if not len(true_classes) or scores.ndim != 2 or len(scores) != len(true_classes):
        raise ValueError("`predictions` must be [n, c] and `references` [n], n > 0: a score a class for every clip.")
    low, high = true_classes.min(), true_classes.max()
    if low < 0 or high >= scores.shape[1]:
        raise ValueError(
            f"`references` run from {low} to {high}, but `predictions` have {scores.shape[1]} classes: both must "
            "follow one class list."
        )
    return scores, true_classes


def true_class_ranks(predictions: ArrayLike, references: ArrayLike) -> np.ndarray:
    """Return the rank of the true class in each row: 0 is the highest score, c (never right) a row with a NaN.

    Args:
        predictions: Class scores, [n, c].
        references: True class indices, [n].

    Returns:
        int64 array [n].

    Raises:
        ValueError: if there is no clip, the rows differ in length, or a reference is no class index.

    Shapes: n clips, c classes.
    """
    scores, references = checked_scores(predictions, references)
    num_classes = scores.shape[1]
    true_scores = np.take_along_axis(scores, references[:, None], axis=1)  # [n, 1]
    earlier = np.arange(num_classes) < references[:, None]
    ranks = ((scores > true_scores) | ((scores == true_scores) & earlier)).sum(axis=1)
    ranks[np.isnan(scores).any(axis=1)] = num_classes
    return ranks


class TopKAccuracy(evaluate.Metric):
    """`evaluate` metric: top-k accuracy, ties by class index, unscored clips wrong."""

    def _info(self) -> evaluate.MetricInfo:
        # float64: after the double softmax of `score_views`, scores of many classes differ by less than float32 holds.
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[int], k: int | Sequence[int] = (1, 5)
    ) -> dict[str, float | int | None]:
        ks = (k,) if isinstance(k, int) else tuple(k)
        if not ks or min(ks) < 1:
            raise ValueError(f"`k` must be one or more integers from 1 on, got {k}.")
        ranks, num_classes = true_class_ranks(predictions, references), len(predictions[0])
        num_listed, num_scored = len(ranks), int((ranks < num_classes).sum())
        result: dict[str, float | int | None] = {}
        for each in ks:
            num_right = int((ranks < min(each, num_classes)).sum())
            result[f"top{each}"] = num_right / num_listed
            result[f"top{each}_scored"] = num_right / num_scored if num_scored else None
        return result | {"num_listed": num_listed, "num_scored": num_scored}
