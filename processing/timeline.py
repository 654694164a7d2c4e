"""Scores of windows over time: averaged, merged into segments, and drawn under thumbnails of the video."""

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

THUMBNAILS = 8  # in a timeline
FEWEST_DRAWN, MOST_DRAWN = 5, 12  # labels
# Of Okabe and Ito, told apart by the colour-blind; neighbours differ in their lines too.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")
BAND, BAND_LETTERS = 1.1, 120  # where the names of the best labels stand above scores up to 1; letters that fit


def smooth_windows(windows: Iterable[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Replace the scores of every window by their mean over the windows around it.

    Args:
        windows: As `classify_windows` gives them.
        seconds: Length of the moving average: windows whose middles lie at most half of it apart from a window's own
            count; 0 changes nothing.

    Returns:
        The windows with other scores, best first, that still sum to 1.

    Raises:
        ValueError: For a negative length.
    """
    windows = list(windows)
    if not seconds >= 0:
        raise ValueError(f"seconds is {seconds!r}: pass the length of the moving average, 0 for none")
    if not windows:
        return []
    labels = list(windows[0]["scores"])
    scores, middles = _scores(windows, labels), np.array([(each["start"] + each["end"]) / 2 for each in windows])
    first = np.searchsorted(middles, middles - seconds / 2 - 1e-6)
    behind = np.searchsorted(middles, middles + seconds / 2 + 1e-6, side="right")
    means = [scores[begin:end].mean(axis=0).tolist() for begin, end in zip(first, behind, strict=True)]
    return [
        {**each, "scores": dict(sorted(zip(labels, mean, strict=True), key=lambda item: -item[1]))}
        for each, mean in zip(windows, means, strict=True)
    ]


def merge_windows(windows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge neighbouring windows of the same best label into segments, which do not overlap.

    Where two windows overlap, each has its half of the overlap. A stretch of time that no window saw is no part of a
    segment.

    Args:
        windows: As `classify_windows` gives them.

    Returns:
        `{"start", "end", "label", "score", "similarity"}`, in order, times in seconds, score and similarity the mean
        of the label's over the merged windows; similarity None for "none of these", and absent if the windows have
        none.
    """
    windows = list(windows)
    segments: list[dict[str, Any]] = []
    counts: list[int] = []
    cosines: list[list[float | None]] = []
    for (start, end), each in zip(_spans(windows), windows, strict=True):
        label = max(each["scores"], key=each["scores"].__getitem__)
        if segments and segments[-1]["label"] == label and segments[-1]["end"] == start:
            segments[-1]["end"] = end
            segments[-1]["score"] += each["scores"][label]
            counts[-1] += 1
            cosines[-1].append(each.get("similarities", {}).get(label))
        else:
            segments.append({"start": start, "end": end, "label": label, "score": each["scores"][label]})
            counts.append(1)
            cosines.append([each.get("similarities", {}).get(label)])
    for segment, count, values in zip(segments, counts, cosines, strict=True):
        segment["score"] /= count
        if "similarities" in windows[0]:
            known = [value for value in values if value is not None]
            segment["similarity"] = sum(known) / len(known) if known else None
    return segments


def plot_timeline(windows: Sequence[Mapping[str, Any]], *, top_k: int | None = None) -> Any:
    """Draw the best label and the scores over time, under thumbnails of the video.

    Args:
        windows: As `classify_windows` gives them, at least one; those without `thumbnail` are drawn without.
        top_k: Labels drawn, those that are best somewhere first; by default every one that is best somewhere, up to
            12, and at least 5. More would hide each other.

    Returns:
        A `matplotlib.figure.Figure`, which shows itself in a notebook; `savefig` writes it.

    Raises:
        ValueError: If there is no window, or `top_k` is less than 1.
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure  # only who plots needs matplotlib

    class Timeline(Figure):
        """A figure that notebooks show without pyplot, which would keep it."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png")
            return picture.getvalue()

    windows = list(windows)
    if not windows:
        raise ValueError("there is no window to draw: pass those that classify_windows gives")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k is {top_k!r}: pass a number of labels from 1 on")
    drawn = _drawn(windows, top_k)
    names = [textwrap.fill(label, 32) for label in drawn]
    height = max(4.5, 1 + 0.22 * sum(name.count("\n") + 1 for name in names))
    figure = Timeline(figsize=(12, height), dpi=120, layout="constrained")
    pictured = [each for each in windows if each.get("thumbnail") is not None]
    columns = min(THUMBNAILS, len(pictured))
    grid = figure.add_gridspec(2, max(columns, 1), height_ratios=(1.2, height - 1.2))
    begin, end = windows[0]["start"], windows[-1]["end"]
    for column in range(columns):
        shown = _nearest(pictured, begin + (column + 0.5) * (end - begin) / columns)
        strip = figure.add_subplot(grid[0, column])
        strip.imshow(shown["thumbnail"])
        strip.axis("off")
    axes = figure.add_subplot(grid[1, :] if columns else grid[:, :])
    curves = _draw_curves(axes, windows, drawn)
    _draw_segments(axes, merge_windows(windows), drawn, end - begin)
    count = len(windows[0]["scores"])
    title = f"{len(drawn)} of {count} labels" if count > len(drawn) else None
    legend = figure.legend(curves, names, loc="outside right upper", frameon=False, title=title)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label may cost $5
    return figure


def _drawn(windows: Sequence[Mapping[str, Any]], top_k: int | None) -> list[str]:
    """The labels that are best somewhere, then the others; of each, those with the highest scores first."""
    labels = list(windows[0]["scores"])
    scores = _scores(windows, labels)
    wins = np.bincount(scores.argmax(axis=1), minlength=len(labels))
    order = sorted(range(len(labels)), key=lambda label: (not wins[label], -scores[:, label].max()))
    shown = top_k or min(MOST_DRAWN, max(FEWEST_DRAWN, int(np.count_nonzero(wins))))
    return [labels[label] for label in order[:shown]]


def _draw_curves(axes: Any, windows: Sequence[Mapping[str, Any]], drawn: Sequence[str]) -> list[Any]:
    """The scores of each label over time; returns the curves."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    begin, end = windows[0]["start"], windows[-1]["end"]
    scores, spans = _scores(windows, drawn), _spans(windows)
    unseen = [2 * number for number in range(1, len(spans)) if spans[number - 1][1] < spans[number][0]]
    times = np.insert(np.array(spans, float).ravel(), unseen, np.nan)  # a curve breaks where no window saw the video
    curves = []
    for rank in range(len(drawn)):
        heights = np.insert(np.repeat(scores[:, rank], 2), unseen, np.nan)
        style = LINE_STYLES[rank % len(LINE_STYLES)]
        curves += axes.plot(times, heights, color=COLORS[rank % len(COLORS)], linestyle=style, linewidth=1.8)
    axes.set(
        xlim=(begin, end),
        ylim=(0, BAND + 0.07),
        yticks=np.linspace(0, 1, 6),
        xlabel="seconds" if end < 60 else "time",
        ylabel="score",
    )
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10] if end < 60 else [1, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _clock_time(seconds, end)))
    axes.grid(alpha=0.3)
    return curves


def _draw_segments(axes: Any, segments: Sequence[Mapping[str, Any]], drawn: Sequence[str], seconds: float) -> None:
    """A band above the curves: the best label of every stretch of time, named if there is room for its name."""
    for each in segments:
        length, rank = each["end"] - each["start"], drawn.index(each["label"]) if each["label"] in drawn else None
        color = "lightgrey" if rank is None else COLORS[rank % len(COLORS)]
        axes.barh(BAND, length, left=each["start"], height=0.1, color=color, edgecolor="white")
        letters = int(length / seconds * BAND_LETTERS)
        if letters >= 6:
            name = textwrap.shorten(each["label"], letters, placeholder="…")
            text = axes.text(
                each["start"] + length / 2, BAND, name, ha="center", va="center", fontsize=8, color="white"
            )
            text.set_parse_math(False)


def _scores(windows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> np.ndarray:
    """Scores [w, c] of w windows, in the order of c labels."""
    return np.array([[each["scores"][label] for label in labels] for each in windows])


def _spans(windows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Start and end of the time that each window stands for: of an overlap, neighbours have half each."""
    spans = [(each["start"], each["end"]) for each in windows]
    for index, (left, right) in enumerate(pairwise(windows)):
        if right["start"] < left["end"]:
            middle = round((right["start"] + left["end"]) / 2, 6)
            spans[index], spans[index + 1] = (spans[index][0], middle), (middle, spans[index + 1][1])
    return spans


def _nearest(windows: Sequence[Mapping[str, Any]], seconds: float) -> Mapping[str, Any]:
    return min(windows, key=lambda each: abs((each["start"] + each["end"]) / 2 - seconds))


def _clock_time(seconds: float, end: float) -> str:
    """Seconds of a video that ends at `end`, as its player would show them."""
    if end < 60:
        return f"{seconds:g}"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if end >= 3600 else f"{minutes}:{seconds:02}"


__all__ = ["merge_windows", "plot_timeline", "smooth_windows"]
