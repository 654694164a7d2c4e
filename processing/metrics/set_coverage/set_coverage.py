"""Coverage and size of sets of classes, as conformal prediction gives them."""

from modeling_mote.processing.metrics import confidence, function_metric


class SetCoverage(function_metric.FunctionMetric):
    """`evaluate` metric: how often a set of class indices holds the true class, and how large the sets are."""

    function = staticmethod(confidence.set_coverage)
    inputs = {"predictions": function_metric.INDICES, "references": function_metric.INDEX}
