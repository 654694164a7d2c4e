"""How far a score is from how often it is right: expected calibration error (arXiv 1706.04599)."""

from modeling_mote.processing.metrics import confidence, function_metric


class ExpectedCalibrationError(function_metric.FunctionMetric):
    """`evaluate` metric: sum over bins of confidence of the share of clips times |accuracy - confidence|."""

    function = staticmethod(confidence.expected_calibration_error)
    inputs = {"predictions": function_metric.NUMBERS, "references": function_metric.INDEX}
