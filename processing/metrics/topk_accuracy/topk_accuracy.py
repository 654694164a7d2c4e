"""Top-k accuracy over the clips listed, and over those of them that were scored."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from modeling_mote.processing.metrics import accuracy


class TopKAccuracy(evaluate.Metric):
    """`evaluate` metric: top-k accuracy, ties by class index, unscored clips wrong."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="Share of clips whose true class is among the k classes of highest score.",
            citation="",
            inputs_description=accuracy.topk_accuracy.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[int], k: int | Sequence[int] = (1, 5)
    ) -> dict[str, Any]:
        return accuracy.topk_accuracy(predictions, references, k)
