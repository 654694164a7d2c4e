"""Metrics as `evaluate` modules that need no network: `evaluate.load("<folder>/topk_accuracy")` or these classes."""

import evaluate

from .harmonic_tradeoff.harmonic_tradeoff import HarmonicTradeoff
from .mean_per_class_accuracy.mean_per_class_accuracy import MeanPerClassAccuracy
from .retrieval_recall.retrieval_recall import RetrievalRecall
from .topk_accuracy.topk_accuracy import TopKAccuracy

METRICS: dict[str, type[evaluate.Metric]] = {
    "topk_accuracy": TopKAccuracy,
    "mean_per_class_accuracy": MeanPerClassAccuracy,
    "harmonic_tradeoff": HarmonicTradeoff,
    "retrieval_recall": RetrievalRecall,
}

__all__ = ["METRICS", "HarmonicTradeoff", "MeanPerClassAccuracy", "RetrievalRecall", "TopKAccuracy", "load_metric"]


def load_metric(name: str, **kwargs) -> evaluate.Metric:
    """Return a metric of this package by its name; within one process it writes no cache files.

    Args:
        name: One of `METRICS`.
        **kwargs: Passed to `evaluate.Metric`, for example `num_process`, `process_id` and `experiment_id`.

    Raises:
        ValueError: if there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"Unknown metric {name!r}; choose one of {', '.join(METRICS)}.")
    kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
    return METRICS[name](**kwargs)
