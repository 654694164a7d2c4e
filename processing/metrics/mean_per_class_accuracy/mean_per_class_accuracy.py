"""Top-1 accuracy per class, and its mean over the classes: every class weighs the same, however many clips it has."""

from modeling_mote.processing.metrics import accuracy, function_metric


class MeanPerClassAccuracy(function_metric.FunctionMetric):
    """`evaluate` metric: mean over classes of top-1 accuracy, ties by class index, unscored clips wrong."""

    function = staticmethod(accuracy.per_class_accuracy)
    inputs = {"predictions": function_metric.NUMBERS, "references": function_metric.INDEX}
