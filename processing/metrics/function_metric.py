"""A plain function as a metric of `evaluate`."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import datasets
import evaluate

NUMBER, INDEX = datasets.Value("float64"), datasets.Value("int64")
NUMBERS, INDICES = datasets.Sequence(NUMBER), datasets.Sequence(INDEX)


class FunctionMetric(evaluate.Metric):
    """A metric that is a function of its inputs, in their order, and of options by name.

    Attributes:
        function: what is computed.
        inputs: {name of an input: its type for one clip}.
    """

    function: ClassVar[Callable[..., dict[str, Any]]]
    inputs: ClassVar[Mapping[str, Any]]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=type(self).function.__doc__ or "",
            features=datasets.Features(self.inputs),
        )

    def _compute(self, **given: Any) -> dict[str, Any]:
        values = [given.pop(name) for name in self.inputs]
        return type(self).function(*values, **given)
