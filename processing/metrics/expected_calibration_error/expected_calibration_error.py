"""How far a score is from how often it is right: expected calibration error (arXiv 1706.04599)."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from modeling_mote.processing.metrics import confidence


class ExpectedCalibrationError(evaluate.Metric):
    """`evaluate` metric: expected calibration error over 15 bins of one width, or bins of as many clips each."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description="Sum over bins of confidence of the share of clips times |accuracy - confidence|.",
            citation="",
            inputs_description=confidence.expected_calibration_error.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[int],
        num_bins: int = confidence.NUM_BINS,
        equal_mass: bool = False,
    ) -> dict[str, Any]:
        return confidence.expected_calibration_error(predictions, references, num_bins, equal_mass)
