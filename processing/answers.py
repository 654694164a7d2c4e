"""From similarities to an answer: which labels, with which scores. The one place where it is decided.

A similarity is a cosine between a video and the text of a label. Its score says how likely the label is: by a softmax
that makes the scores of all labels sum to 1, or by a sigmoid of each label by itself. A calibration, see
`calibration.py`, makes scores into probabilities, and lets an answer say "none of these".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .calibration import Calibration

UNKNOWN = "none of these"
FUNCTIONS = ("softmax", "sigmoid", "none")
ANSWER_OPTIONS = ("top_k", "function_to_apply", "unknown", "threshold", "coverage", "multi_label")


@dataclass(frozen=True)
class AnswerOptions:
    """What an answer holds.

    Attributes:
        top_k: number of rows; all by default. It cuts a set of `coverage` short, which then promises nothing.
        function_to_apply: "softmax"; "sigmoid"; or "none" for exp(logit_scale) times the similarities.
        unknown: add a row "none of these", whose score is the probability that no label of the list is right. The
            other scores are multiplied by what is left.
        threshold: leave out rows with a score below.
        coverage: keep the smallest set of labels that holds the true one with this probability, on videos of the
            classes that the calibration was fitted on. Of other classes, such as unseen ones, it misses far more often
            than promised (docs/scores.md has figures). It may be empty, if the model is right more often than that:
            then nothing fits as well as the true label does on so many clips.
        multi_label: score each label by itself, by the calibration's sigmoid: several may be right, or none.

    Raises:
        ValueError: for values that make no sense, alone or together.
    """

    top_k: int | None = None
    function_to_apply: str | None = None
    unknown: bool = False
    threshold: float | None = None
    coverage: float | None = None
    multi_label: bool = False

    def __post_init__(self) -> None:
        if self.top_k is not None and (
            isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1
        ):
            raise ValueError(f"top_k is {self.top_k!r}: pass a number of labels from 1 on, or None for all")
        if self.function_to_apply not in (None, *FUNCTIONS):
            raise ValueError(f"function_to_apply is {self.function_to_apply!r}: pass one of {', '.join(FUNCTIONS)}")
        for name in ("unknown", "multi_label"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}: pass True or False")
        if self.multi_label and self.function_to_apply not in (None, "sigmoid"):
            raise ValueError(
                f"multi_label scores each label by a sigmoid: leave function_to_apply={self.function_to_apply!r} out"
            )
        if self.unknown and self.function_to_apply == "none":
            raise ValueError("unknown needs scores that are probabilities: leave function_to_apply='none' out")
        if self.threshold is not None and not _is_number(self.threshold):
            raise ValueError(f"threshold is {self.threshold!r}: pass the least score of a row")
        if self.coverage is not None and not (_is_number(self.coverage) and 0 < self.coverage < 1):
            raise ValueError(f"coverage is {self.coverage!r}: pass a probability between 0 and 1, such as 0.9")
        if self.coverage is not None and (self.multi_label or self.function_to_apply in ("sigmoid", "none")):
            raise ValueError("coverage is about one true label per video: it goes with function_to_apply='softmax'")

    def check(self, labels: Sequence[str], calibration: Calibration | None) -> None:
        """Refuse what needs a calibration without one, and a label that is called as the row for none of them.

        Raises:
            ValueError: in one sentence.
        """
        needing = [name for name in ("unknown", "coverage", "multi_label") if getattr(self, name)]
        if needing and calibration is None:
            raise ValueError(
                f"{needing[0]} needs a calibration, which this checkpoint lacks: fit one to labelled clips "
                "(mote calibrate --model M --data labelled.csv)"
            )
        if self.unknown and UNKNOWN in labels:
            raise ValueError(f"a label is called {UNKNOWN!r}, as the row of unknown is: leave the label out")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def softmax_scale(logit_scale: float, calibration: Calibration | None) -> float:
    """What cosines are multiplied by before a softmax makes them scores."""
    return logit_scale if calibration is None else 1 / calibration.temperature


def score_labels(
    similarities: torch.Tensor,
    logit_scale: float,
    calibration: Calibration | None,
    options: AnswerOptions,
    texts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores of all labels, and of none of them.

    Args:
        similarities: cosines of videos to labels, [b, c].
        logit_scale: what the model multiplies cosines by: exp(`model.logit_scale`).
        calibration: of the checkpoint, if it has one.
        options: which scores.
        texts: cosines to the texts of the labels alone, [b, c], if the similarities are to examples too: whether the
            true label is in the list is learned from such.

    Returns:
        float64 [b, c], and [b] if `options.unknown` is set.
    """
    similarities = similarities.double()
    function = "sigmoid" if options.multi_label else options.function_to_apply or "softmax"
    if function == "none":
        return similarities * logit_scale, None
    if function == "softmax":
        scores = (similarities * softmax_scale(logit_scale, calibration)).softmax(-1)
    elif calibration is None:
        scores = (similarities * logit_scale).sigmoid()
    else:
        scores = calibration.label_probabilities(similarities)
    if calibration is None or not options.unknown:
        return scores, None
    known = calibration.known_probability(similarities if texts is None else texts)
    return (scores if function == "sigmoid" else scores * known[:, None]), 1 - known


def answer(
    similarities: torch.Tensor,
    labels: Sequence[str],
    logit_scale: float,
    calibration: Calibration | None = None,
    options: AnswerOptions | None = None,
    texts: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """The labels of one video, best first.

    Args:
        similarities: its cosines to the labels, [c].
        labels: their names, c.
        logit_scale: see `score_labels`.
        calibration: of the checkpoint, if it has one.
        options: what the answer holds; every label, by softmax, by default.
        texts: see `score_labels`, [c].

    Returns:
        rows `{"score", "label", "similarity"}`; the similarity of "none of these" is None.

    Raises:
        ValueError: as `AnswerOptions.check`.
    """
    options = options or AnswerOptions()
    options.check(labels, calibration)
    scores, none = score_labels(
        similarities[None], logit_scale, calibration, options, None if texts is None else texts[None]
    )
    kept = torch.ones(len(labels), dtype=torch.bool)
    if options.coverage is not None and calibration is not None:
        kept = -calibration.log_probabilities(similarities[None])[0].cpu() <= calibration.largest_residual(
            options.coverage
        )
    found = zip(labels, scores[0].tolist(), similarities.tolist(), kept.tolist(), strict=True)
    rows = [{"score": score, "label": label, "similarity": cosine} for label, score, cosine, keep in found if keep]
    # Softmax and sigmoid keep the order of similarities, also where scores round to the same number.
    rows.sort(key=lambda row: -row["similarity"])
    if none is not None:
        rows.append({"score": float(none[0]), "label": UNKNOWN, "similarity": None})
        rows.sort(key=lambda row: -row["score"])
    least = -math.inf if options.threshold is None else options.threshold
    return [row for row in rows if not row["score"] < least][: options.top_k]


__all__ = ["ANSWER_OPTIONS", "FUNCTIONS", "UNKNOWN", "AnswerOptions", "answer", "score_labels", "softmax_scale"]
