"""Mean average precision of clips of several classes."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from modeling_mote.processing.metrics import confidence


class MeanAveragePrecision(evaluate.Metric):
    """`evaluate` metric: mean over classes of the average precision; references are lists of class indices."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
        return evaluate.MetricInfo(
            description="Mean over classes of the area under the precision-recall curve, without interpolation.",
            citation="",
            inputs_description=confidence.mean_average_precision.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[int]]) -> dict[str, Any]:
        return confidence.mean_average_precision(predictions, references)
