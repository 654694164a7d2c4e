"""Pictures of a result, as PNG: what was taken for what, and whether the scores can be trusted."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .processing.label_sets import LabelSet

LABELS_DRAWN = 110  # more class names than that can't be read in the confusion picture


def confusion_picture(title: str, label_set: LabelSet, scores: np.ndarray, labels: np.ndarray) -> bytes:
    """What was taken for what, as a PNG: a row per true class, a column per class of highest score.

    Args:
        title: what was scored.
        label_set: the c classes.
        scores: [n, c]; rows with a NaN are left out.
        labels: true classes, [n].
    """
    read = ~np.isnan(scores).any(axis=1)
    confusion = np.zeros((len(label_set), len(label_set)))
    np.add.at(confusion, (labels[read], scores[read].argmax(axis=1)), 1)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = min(20.0, 4 + 0.15 * len(label_set))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    # Names are text, whatever is in them: `$` would begin a formula.
    axes.set_title(f"{title}, {label_set.name}, {int(read.sum())} videos", parse_math=False)
    axes.set(xlabel="class of highest score", ylabel="true class")
    if len(label_set) <= LABELS_DRAWN:
        ticks = range(len(label_set))
        axes.set_xticks(ticks, label_set.classes, rotation=90, fontsize=5, parse_math=False)
        axes.set_yticks(ticks, label_set.classes, fontsize=5, parse_math=False)
    figure.colorbar(shown, shrink=0.5, label="share of the true class")
    return _png(figure)


def reliability_picture(title: str, bins: Sequence[Mapping[str, Any]], ece: float) -> bytes:
    """How often a score is right, against the score, as a PNG; calibrated scores follow the diagonal.

    Args:
        title: what was scored.
        bins: as `reliability_bins` gives them.
        ece: expected calibration error, a fraction.
    """
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    accuracy, share = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    low, width = [each["low"] for each in bins], [each["high"] - each["low"] for each in bins]
    total = sum(each["count"] for each in bins)
    accuracy.bar(low, [each["accuracy"] for each in bins], width, align="edge", color="#4c78a8", edgecolor="white")
    accuracy.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="calibrated")
    confidence = [each["confidence"] for each in bins]
    accuracy.plot(
        confidence,
        [each["accuracy"] for each in bins],
        "o",
        color="#d1590b",
        label="mean score of a bin",
        clip_on=False,
    )
    accuracy.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of clips that are right")
    accuracy.legend(loc="upper left")
    accuracy.set_title(f"{title}, {total} clips, calibration error {100 * ece:.1f} %", fontsize=10, parse_math=False)
    share.bar(low, [each["count"] / total for each in bins], width, align="edge", color="#9ecae9", edgecolor="white")
    share.set(xlabel="score of the best label", ylabel="share of clips")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


__all__ = ["confusion_picture", "reliability_picture"]
