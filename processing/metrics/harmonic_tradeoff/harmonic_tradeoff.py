"""The paper's trade-off between what a model was trained for and what it never saw (arXiv 2410.10589, table 4)."""

from collections.abc import Sequence
from typing import Any

from modeling_mote.processing.metrics import accuracy, function_metric


class HarmonicTradeoff(function_metric.FunctionMetric):
    """`evaluate` metric: HM_ZS, the harmonic mean of zero-shot accuracies, and that of it and close-set accuracy."""

    function = staticmethod(accuracy.harmonic_tradeoff)
    inputs = {"close_set": function_metric.NUMBER, "zero_shot": function_metric.NUMBERS}

    def _compute(self, close_set: Sequence[float], zero_shot: Sequence[Sequence[float]]) -> dict[str, Any]:
        if len(close_set) != 1:
            raise ValueError(
                f"Give one close-set accuracy and one list of zero-shot accuracies, got {len(close_set)}."
            )
        return super()._compute(close_set=close_set[0], zero_shot=zero_shot[0])
