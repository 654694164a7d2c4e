"""Negatives that pass where 95 % of the positives are kept."""

from modeling_mote.processing.metrics import confidence, function_metric


class FalseAcceptRate(function_metric.FunctionMetric):
    """`evaluate` metric: share of negatives above the highest threshold which keeps a share of the positives, 95 %."""

    function = staticmethod(confidence.false_accept_rate)
    inputs = {"predictions": function_metric.NUMBER, "references": function_metric.INDEX}
