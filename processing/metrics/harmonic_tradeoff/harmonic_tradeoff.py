"""The paper's trade-off between what a model was trained for and what it never saw (arXiv 2410.10589, table 4)."""

from collections.abc import Sequence
from statistics import harmonic_mean

import datasets
import evaluate

_DESCRIPTION = "Harmonic mean of close-set accuracy and HM_ZS, the harmonic mean of zero-shot accuracies."
_INPUTS = """
Args:
    close_set: one close-set top-1 accuracy (the paper: Kinetics-400), as a list of one number or a number.
    zero_shot: the zero-shot top-1 accuracies (the paper: UCF101, HMDB51, Kinetics-600), as a list of one list.
    All on one scale, fractions or percent; the results are on it too.
Returns:
    hm_zs: harmonic mean of `zero_shot`.
    trade_off: harmonic mean of `close_set` and `hm_zs`.
"""


def harmonic_tradeoff(close_set: float, zero_shot: Sequence[float]) -> dict[str, float]:
    """Weigh close-set against zero-shot accuracy: HM_ZS = HM(zero-shot sets), trade-off = HM(close set, HM_ZS).

    Args:
        close_set: Close-set top-1 accuracy.
        zero_shot: Zero-shot top-1 accuracies, on the scale of `close_set`.

    Returns:
        `hm_zs` and `trade_off`, on the scale of the inputs.

    Raises:
        ValueError: if `zero_shot` is empty or an accuracy is negative or not a number.
    """
    if not len(zero_shot):
        raise ValueError("`zero_shot` is empty; give the accuracy of at least one zero-shot data set.")
    if not all(accuracy >= 0 for accuracy in (close_set, *zero_shot)):
        raise ValueError(f"Accuracies must be numbers from 0 on, got close_set={close_set}, zero_shot={zero_shot}.")
    hm_zs = harmonic_mean(zero_shot)
    return {"hm_zs": float(hm_zs), "trade_off": float(harmonic_mean((close_set, hm_zs)))}


class HarmonicTradeoff(evaluate.Metric):
    """`evaluate` metric: HM_ZS and the trade-off of close-set and zero-shot accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "close_set": datasets.Value("float64"),
            "zero_shot": datasets.Sequence(datasets.Value("float64")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(self, close_set: Sequence[float], zero_shot: Sequence[Sequence[float]]) -> dict[str, float]:
        if len(close_set) != 1:
            raise ValueError(
                f"Give one close-set accuracy and one list of zero-shot accuracies, got {len(close_set)}."
            )
        return harmonic_tradeoff(close_set[0], zero_shot[0])
