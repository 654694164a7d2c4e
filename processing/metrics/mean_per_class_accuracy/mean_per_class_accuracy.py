"""Top-1 accuracy per class, and its mean over the classes: every class weighs the same, however many clips it has."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from modeling_mote.processing.metrics import accuracy


class MeanPerClassAccuracy(evaluate.Metric):
    """`evaluate` metric: mean over classes of top-1 accuracy, ties by class index, unscored clips wrong."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="Top-1 accuracy of each class, averaged over the classes that have a clip.",
            citation="",
            inputs_description=accuracy.per_class_accuracy.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[int]) -> dict[str, Any]:
        return accuracy.per_class_accuracy(predictions, references)
