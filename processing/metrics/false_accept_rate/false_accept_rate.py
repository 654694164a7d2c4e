"""Negatives that pass where 95 % of the positives are kept."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from modeling_mote.processing.metrics import confidence


class FalseAcceptRate(evaluate.Metric):
    """`evaluate` metric: share of negatives accepted where a share of the positives, 95 %, is kept."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Value("float64"),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="Share of negatives that pass the highest threshold which keeps a share of the positives.",
            citation="",
            inputs_description=confidence.false_accept_rate.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[int], kept: float = 0.95) -> dict[str, Any]:
        return confidence.false_accept_rate(predictions, references, kept)
