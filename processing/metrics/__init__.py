"""Metrics: plain functions in `accuracy`, `confidence` and `retrieval`, and modules of `evaluate` that wrap them.

The modules need no network: `evaluate.load("<this folder>/topk_accuracy")`, or `load_metric("topk_accuracy")`. Only
they import that library: it takes seconds, and any file of its name beside a script hides it.
"""

from typing import TYPE_CHECKING, Any

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .auroc.auroc import AUROC
    from .expected_calibration_error.expected_calibration_error import ExpectedCalibrationError
    from .false_accept_rate.false_accept_rate import FalseAcceptRate
    from .harmonic_tradeoff.harmonic_tradeoff import HarmonicTradeoff
    from .mean_average_precision.mean_average_precision import MeanAveragePrecision
    from .mean_per_class_accuracy.mean_per_class_accuracy import MeanPerClassAccuracy
    from .retrieval_recall.retrieval_recall import RetrievalRecall
    from .set_coverage.set_coverage import SetCoverage
    from .topk_accuracy.topk_accuracy import TopKAccuracy

METRICS = {
    "topk_accuracy": "TopKAccuracy",
    "mean_per_class_accuracy": "MeanPerClassAccuracy",
    "harmonic_tradeoff": "HarmonicTradeoff",
    "retrieval_recall": "RetrievalRecall",
    "expected_calibration_error": "ExpectedCalibrationError",
    "auroc": "AUROC",
    "false_accept_rate": "FalseAcceptRate",
    "set_coverage": "SetCoverage",
    "mean_average_precision": "MeanAveragePrecision",
}  # name → class

__getattr__ = lazy_names(__name__, {class_name: f"{name}.{name}" for name, class_name in METRICS.items()})


def load_metric(name: str, **kwargs: Any) -> Any:
    """A metric of this package as an `evaluate.Metric`; within one process it writes no cache files.

    Args:
        name: one of `METRICS`.
        **kwargs: passed to `evaluate.Metric`, for example `num_process`, `process_id` and `experiment_id`.

    Raises:
        ValueError: if there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r}; choose one of {', '.join(METRICS)}.")
    kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
    return __getattr__(METRICS[name])(**kwargs)


__all__ = [
    "AUROC",
    "METRICS",
    "ExpectedCalibrationError",
    "FalseAcceptRate",
    "HarmonicTradeoff",
    "MeanAveragePrecision",
    "MeanPerClassAccuracy",
    "RetrievalRecall",
    "SetCoverage",
    "TopKAccuracy",
    "load_metric",
]
