"""Top-1 accuracy a class, and its mean over the classes: every class weighs the same, however many clips it has."""

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike

_DESCRIPTION = "Top-1 accuracy of each class, averaged over the classes that have a clip."
_INPUTS = """
Args:
    predictions: class scores, [n, c]; a row with a NaN is a clip that could not be scored and counts as wrong.
    references: true class indices, [n].
Returns:
    mean_per_class_accuracy: mean over the classes with a clip, as a fraction.
    per_class_accuracy: c fractions, None for a class without a clip.
    per_class_count: number of clips listed of each class, c integers.
Equal scores rank by class index, the lower first.
"""


class MeanPerClassAccuracy(evaluate.Metric):
    """`evaluate` metric: mean over classes of top-1 accuracy, ties by class index, unscored clips wrong."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float | list]:
        true_classes = np.asarray(references, dtype=np.int64)
        try:
            scores = np.asarray(predictions, dtype=np.float64)
        except ValueError:  # rows of different lengths
            scores = np.empty(0)
        if not len(true_classes) or scores.ndim != 2 or len(scores) != len(true_classes):
            raise ValueError(
                "`predictions` must be [n, c] and `references` [n], n > 0: a score a class for every clip."
            )
        num_classes = scores.shape[1]
        low, high = true_classes.min(), true_classes.max()
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"`references` run from {low} to {high}, but `predictions` have {num_classes} classes: both must "
                "follow one class list."
            )
        # argmax takes the first of equal scores, and the first NaN where there is one: those rows are wrong.
        right = (scores.argmax(axis=1) == true_classes) & ~np.isnan(scores).any(axis=1)
        counts = np.bincount(true_classes, minlength=num_classes)
        rights = np.bincount(true_classes, weights=right, minlength=num_classes)
        present = counts > 0
        accuracies = np.divide(rights, counts, out=np.full(num_classes, np.nan), where=present)
        return {
            "mean_per_class_accuracy": float(accuracies[present].mean()),
            "per_class_accuracy": [
                float(accuracy) if has_clip else None for accuracy, has_clip in zip(accuracies, present, strict=True)
            ],
            "per_class_count": counts.tolist(),
        }
