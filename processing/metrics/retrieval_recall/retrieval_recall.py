"""Recall at k and median rank of text → video and video → text retrieval."""

from modeling_mote.processing.metrics import function_metric, retrieval


class RetrievalRecall(function_metric.FunctionMetric):
    """`evaluate` metric: recall at k and median rank, text → video and video → text, ties by index."""

    function = staticmethod(retrieval.retrieval_recall)
    inputs = {"predictions": function_metric.NUMBERS, "references": function_metric.INDICES}
