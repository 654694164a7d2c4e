"""Mean average precision of clips of several classes."""

from modeling_mote.processing.metrics import confidence, function_metric


class MeanAveragePrecision(function_metric.FunctionMetric):
    """`evaluate` metric: mean over classes of the average precision; references are lists of class indices."""

    function = staticmethod(confidence.mean_average_precision)
    inputs = {"predictions": function_metric.NUMBERS, "references": function_metric.INDICES}
