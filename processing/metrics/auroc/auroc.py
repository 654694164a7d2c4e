"""Area under the ROC curve of one score per clip."""

from modeling_mote.processing.metrics import confidence, function_metric


class AUROC(function_metric.FunctionMetric):
    """`evaluate` metric: area under the ROC curve, or how often a positive scores above a negative, ties half."""

    function = staticmethod(confidence.auroc)
    inputs = {"predictions": function_metric.NUMBER, "references": function_metric.INDEX}
