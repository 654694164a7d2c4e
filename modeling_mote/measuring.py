"""From scores to what a result says: accuracies, what they are beside, and whether the scores can be trusted.

Shapes: n clips, c classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from .processing.builders import list_sha256
from .processing.metrics.accuracy import per_class_accuracy, topk_accuracy
from .processing.metrics.confidence import auroc, expected_calibration_error
from .processing.prompts import get_prompt_set
from .processing.protocols import Protocol, half_classes_accuracy, mean_and_std
from .protocol_data import ClipList
from .scoring import Scored


def summarise(protocol: Protocol, lists: Sequence[ClipList], scored: Sequence[Scored], scale: float) -> dict[str, Any]:
    """What was measured, as a result holds it: each list, and mean and standard deviation over them.

    Args:
        protocol: whose metrics they are.
        lists: what was scored.
        scored: scores of each list; the first variant is the protocol's own.
        scale: exp(logit_scale), with which cosines become logits.
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
            **measure_confidence(found.cosines, found.labels, scale),
            "bad_videos": len(found.unread),
        }
        for each, found in zip(lists, scored, strict=True)
    ]
    prompts = "\n".join(get_prompt_set(protocol.prompts))
    return over_parts(protocol, parts) | {
        "ece": _over_known(parts, "ece"),
        "auroc_label_listed": _over_known(parts, "auroc_label_listed"),
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


def measure_confidence(cosines: np.ndarray, labels: np.ndarray, scale: float) -> dict[str, Any]:
    """Whether the scores of one list can be trusted, over the clips that could be read.

    The scores are those that the pipeline gives, whatever the protocol's rule: softmax over all classes of the list of
    exp(logit_scale) · cosine. "Is the true label in the list" is asked of every clip twice: with the list as it is,
    and with its true label left out.

    Args:
        cosines: averaged over the views, [n, c]; rows of NaN could not be read.
        labels: true classes, [n].
        scale: exp(logit_scale).

    Returns:
        `ece`, expected calibration error over 15 bins of one width; `reliability`, its bins; `auroc_label_listed`, of
        the largest cosine. None where nothing can be said: no clip, or no other label.
    """
    read = ~np.isnan(cosines).any(axis=1)
    cosines, labels = cosines[read], labels[read]
    if not len(cosines):
        return {"ece": None, "reliability": [], "auroc_label_listed": None}
    logits = scale * (cosines - cosines.max(axis=1, keepdims=True))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    calibration = expected_calibration_error(probabilities, labels)
    listed = None
    if cosines.shape[1] > 1:
        left_out = np.where(np.arange(cosines.shape[1]) == labels[:, None], -np.inf, cosines)
        best = np.concatenate([cosines.max(axis=1), left_out.max(axis=1)])
        listed = auroc(best, np.repeat([1, 0], len(cosines)))["auroc"]
    return {"ece": calibration["ece"], "reliability": calibration["bins"], "auroc_label_listed": listed}


__all__ = ["measure", "measure_confidence", "measure_variant", "over_parts", "spread", "summarise"]
