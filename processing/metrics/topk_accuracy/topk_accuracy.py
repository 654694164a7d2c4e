"""Top-k accuracy over the clips listed, and over those of them that were scored."""

from modeling_mote.processing.metrics import accuracy, function_metric


class TopKAccuracy(function_metric.FunctionMetric):
    """`evaluate` metric: top-k accuracy, ties by class index, unscored clips wrong."""

    function = staticmethod(accuracy.topk_accuracy)
    inputs = {"predictions": function_metric.NUMBERS, "references": function_metric.INDEX}
