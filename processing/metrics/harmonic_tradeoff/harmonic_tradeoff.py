"""The paper's trade-off between what a model was trained for and what it never saw (arXiv 2410.10589, table 4)."""

from collections.abc import Sequence

import datasets
import evaluate

from modeling_mote.processing.metrics import accuracy


class HarmonicTradeoff(evaluate.Metric):
    """`evaluate` metric: HM_ZS and the trade-off of close-set and zero-shot accuracy, of one row of them."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "close_set": datasets.Value("float64"),
            "zero_shot": datasets.Sequence(datasets.Value("float64")),
        }
        return evaluate.MetricInfo(
            description="Harmonic mean of close-set accuracy and HM_ZS, the harmonic mean of zero-shot accuracies.",
            citation="",
            inputs_description=accuracy.harmonic_tradeoff.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(self, close_set: Sequence[float], zero_shot: Sequence[Sequence[float]]) -> dict[str, float]:
        if len(close_set) != 1:
            raise ValueError(
                f"Give one close-set accuracy and one list of zero-shot accuracies, got {len(close_set)}."
            )
        return accuracy.harmonic_tradeoff(close_set[0], zero_shot[0])
