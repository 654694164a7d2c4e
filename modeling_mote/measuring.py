"""From scores to what a result says: accuracies, what they are beside, and whether the scores can be trusted.

Shapes: n clips, c classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from .processing.answers import AnswerOptions, score_labels
from .processing.builders import list_sha256
from .processing.calibration import Calibration, without_true
from .processing.metrics.accuracy import per_class_accuracy, topk_accuracy
from .processing.metrics.confidence import auroc, expected_calibration_error
from .processing.prompts import get_prompt_set
from .processing.protocols import Protocol, half_classes_accuracy, mean_and_std
from .protocol_data import ClipList
from .scoring import Scored


def summarise(
    protocol: Protocol,
    lists: Sequence[ClipList],
    scored: Sequence[Scored],
    logit_scale: float,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """What was measured, as a result holds it: each list, and mean and standard deviation over them.

    Args:
        protocol: whose metrics they are.
        lists: what was scored.
        scored: scores of each list; the first variant is the protocol's own.
        logit_scale: see `measure_confidence`, as for the last.
        calibration: of the checkpoint, if it has one.
    """
    own = next(iter(scored[0].scores))
    parts = [
        {
            "config": each.config,
            "split": each.split,
            "label_set": each.label_set.name,
            "label_set_sha256": each.label_set.sha256,
            "names_sha256": each.wording.sha256,
            "list_sha256": list_sha256(each.rows),
            **measure(found.scores[own], found.labels, protocol),
            **measure_confidence(found.cosines, found.labels, logit_scale, calibration),
            "bad_videos": len(found.unread),
        }
        for each, found in zip(lists, scored, strict=True)
    ]
    prompts = "\n".join(get_prompt_set(protocol.prompts))
    return over_parts(protocol, parts) | {
        "ece": _over_known(parts, "ece"),
        "auroc_label_listed": _over_known(parts, "auroc_label_listed"),
        "calibrated": calibration is not None,
        "num_scored": sum(part["num_scored"] for part in parts),
        "num_listed": sum(part["num_listed"] for part in parts),
        "views": protocol.views,
        "sampling": protocol.sampling,
        "square_pixels": protocol.square_pixels,
        "prompts": protocol.prompts,
        "prompts_sha256": sha256(prompts.encode()).hexdigest(),
        "score_rule": protocol.score_rule,
        "decoders": dict(sum((found.decoders for found in scored), Counter())),
        "parts": parts,
    }


def measure_variant(protocol: Protocol, scored: Sequence[Scored], name: str) -> dict[str, Any]:
    """The protocol's metrics of one variant: {metric: {"mean", "std"}}.

    Args:
        protocol: whose metrics they are.
        scored: scores of each list.
        name: of the variant.
    """
    return over_parts(protocol, [measure(found.scores[name], found.labels, protocol) for found in scored])


def over_parts(protocol: Protocol, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{metric: {"mean", "std"}} over the lists of a protocol, or the halves of one."""
    summary: dict[str, Any] = {}
    for metric in protocol.metrics:
        if f"{metric}_std" in parts[0]:  # ten halves of one list
            summary[metric] = {"mean": parts[0][metric], "std": parts[0][f"{metric}_std"]}
        else:
            mean, std = mean_and_std([part[metric] for part in parts])
            summary[metric] = {"mean": mean, "std": std if protocol.aggregate == "mean_std" else None}
    return summary


def _over_known(parts: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    """Mean and standard deviation over the lists of which the number is known."""
    known = [part[name] for part in parts if part[name] is not None]
    mean, std = mean_and_std(known) if known else (None, None)
    return {"mean": mean, "std": std if len(known) > 1 else None}


def spread(protocol: Protocol, values: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """How a number moves with the wording: {metric: {"mean", "std", "min", "max"}} over several wordings.

    Args:
        protocol: whose metrics they are.
        values: {metric: {"mean"}} of each wording.
    """
    found = {}
    for metric in protocol.metrics:
        means = [each[metric]["mean"] for each in values]
        mean, std = mean_and_std(means)
        found[metric] = {"mean": mean, "std": std, "min": min(means), "max": max(means)}
    return found


def measure(scores: np.ndarray, labels: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """The accuracies of one list.

    Args:
        scores: [n, c]; rows with a NaN count as wrong.
        labels: true classes, [n].
        protocol: whose score rule it is.
    """
    if protocol.score_rule == "half_classes":
        return half_classes_accuracy(scores, labels)
    mean_per_class = per_class_accuracy(scores, labels)["mean_per_class_accuracy"]
    return topk_accuracy(scores, labels) | {"mean_per_class_accuracy": mean_per_class}


def measure_confidence(
    cosines: np.ndarray, labels: np.ndarray, logit_scale: float, calibration: Calibration | None = None
) -> dict[str, Any]:
    """Whether the scores of one list can be trusted, over the clips that could be read.

    The scores are those that the pipeline gives, whatever the protocol's rule: softmax over all classes of the list.
    "Is the true label in the list" is asked of every clip twice: with the list as it is, and with its true label left
    out.

    Args:
        cosines: averaged over the views, [n, c]; rows of NaN could not be read.
        labels: true classes, [n].
        logit_scale: what the model multiplies cosines by, exp(`model.logit_scale`).
        calibration: of the checkpoint, if it has one.

    Returns:
        `ece`, expected calibration error over 15 bins of one width; `reliability`, its bins; `auroc_label_listed`, of
        the calibration's probability that the label is listed, or without one of the largest cosine. None where
        nothing can be said: no clip, or no other label.
    """
    read = ~np.isnan(cosines).any(axis=1)
    values, labels = torch.from_numpy(cosines[read]), labels[read]
    if not len(values):
        return {"ece": None, "reliability": [], "auroc_label_listed": None}
    scores, _ = score_labels(values, logit_scale, calibration, AnswerOptions())
    error = expected_calibration_error(scores.numpy(), labels)
    listed = None
    if values.shape[1] > 1:
        left_out = without_true(values, torch.as_tensor(labels))
        found = [
            each.amax(-1) if calibration is None else calibration.known_probability(each)
            for each in (values, left_out)
        ]
        listed = auroc(torch.cat(found).numpy(), np.repeat([1, 0], len(values)))["auroc"]
    return {"ece": error["ece"], "reliability": error["bins"], "auroc_label_listed": listed}


__all__ = ["measure", "measure_confidence", "measure_variant", "over_parts", "spread", "summarise"]
