"""Coverage and size of sets of classes, as conformal prediction gives them."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from modeling_mote.processing.metrics import confidence


class SetCoverage(evaluate.Metric):
    """`evaluate` metric: how often a set of class indices holds the true class, and how large the sets are."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("int64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="Share of clips whose set of classes holds the true one, and the size of the sets.",
            citation="",
            inputs_description=confidence.set_coverage.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[int]) -> dict[str, Any]:
        return confidence.set_coverage(predictions, references)
