"""Area under the ROC curve of one score per clip."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from modeling_mote.processing.metrics import confidence


class AUROC(evaluate.Metric):
    """`evaluate` metric: area under the ROC curve, ties counting half."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Value("float64"),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="How often a positive scores above a negative.",
            citation="",
            inputs_description=confidence.auroc.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, Any]:
        return confidence.auroc(predictions, references)
