"""Timelines of scores: moving averages, segments, pictures."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from modeling_mote.processing import merge_windows, plot_timeline, smooth_windows


def times(windows):
    return [(each["start"], each["end"]) for each in windows]


def hand_made(*scores: float, window: float = 4, stride: float = 1) -> list[dict]:
    return [
        {"start": stride * number, "end": stride * number + window, "scores": {"a": score, "b": 1 - score}}
        for number, score in enumerate(scores)
    ]


def test_smoothing_is_a_moving_average_in_seconds():
    windows = hand_made(1, 0, 0, 0.4, 0)
    assert [each["scores"] for each in smooth_windows(windows, 0)] == [each["scores"] for each in windows]
    smoothed = smooth_windows(windows, 2)  # a window and its neighbours
    assert [each["scores"]["a"] for each in smoothed] == pytest.approx([0.5, 1 / 3, 0.4 / 3, 0.4 / 3, 0.2])
    assert all(sum(each["scores"].values()) == pytest.approx(1) for each in smoothed)
    assert [next(iter(each["scores"])) for each in smoothed][1] == "b"  # best first
    assert [each["scores"]["a"] for each in smooth_windows(windows, 100)] == pytest.approx([0.28] * 5)
    assert windows == hand_made(1, 0, 0, 0.4, 0)
    assert times(smoothed) == times(windows) and smooth_windows([], 3) == []
    with pytest.raises(ValueError, match="seconds is -1"):
        smooth_windows(windows, -1)


def test_segments_do_not_overlap():
    windows = hand_made(0.9, 0.7, 0.2, 0.4, 0.6)
    windows[-1]["end"] = 7.0  # the last one ends where the video does
    segments = merge_windows(windows)
    assert [(each["start"], each["end"], each["label"]) for each in segments] == [
        (0, 3.5, "a"),
        (3.5, 5.5, "b"),
        (5.5, 7, "a"),
    ]
    assert [each["score"] for each in segments] == pytest.approx([0.8, 0.7, 0.6])
    assert merge_windows([]) == []


def test_segments_leave_out_what_no_window_saw():
    segments = merge_windows(hand_made(0.9, 0.7, 0.2, window=2, stride=3))
    assert [(each["start"], each["end"], each["label"]) for each in segments] == [
        (0, 2, "a"),
        (3, 5, "a"),
        (6, 8, "b"),
    ]
    segments = merge_windows(hand_made(0.9, 0.7, 0.2, window=2, stride=2))
    assert [(each["start"], each["end"], each["label"]) for each in segments] == [(0, 4, "a"), (4, 6, "b")]


# --- timeline -----------------------------------------------------------------------------------------------------


def many_labels(windows: int, labels: int, name: str = "a rather long name of label {}") -> list[dict]:
    draw = np.random.default_rng(0)
    return [
        {
            "start": float(number),
            "end": number + 4.0,
            "scores": {name.format(label): score for label, score in enumerate(draw.dirichlet(np.ones(labels)))},
            "thumbnail": np.full((72, 128, 3), number % 256, np.uint8),
        }
        for number in range(windows)
    ]


@pytest.mark.parametrize("windows, labels, top_k", [(1, 1, 5), (20, 1, 5), (30, 50, 5), (700, 50, 50)])
def test_the_timeline_is_readable(windows, labels, top_k):
    figure = plot_timeline(many_labels(windows, labels), top_k=top_k)
    *strips, axes = figure.axes
    assert len(strips) == min(8, windows) and all(strip.images for strip in strips)
    assert len(axes.lines) == min(top_k, labels)
    assert axes.get_xlim() == (0, windows + 3)
    (legend,) = figure.legends
    names = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert len(set(names)) == len(names) == min(top_k, labels)
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert box.x0 >= axes.get_window_extent().x1 and box.y0 >= 0  # beside the curves, and within the picture
    for strip, other in zip(strips, strips[1:], strict=False):
        assert strip.get_window_extent().x1 <= other.get_window_extent().x0
    labels_of_time = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(one.x1 < next_one.x0 for one, next_one in zip(labels_of_time, labels_of_time[1:], strict=False))


def test_the_timeline_draws_the_labels_that_are_ever_best():
    windows = [
        {"start": n, "end": n + 1, "scores": {"always second": 0.4, "once": 0.6 * (n == 3), "rest": 0.6 * (n != 3)}}
        for n in range(20)
    ]
    figure = plot_timeline(windows, top_k=2)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"once", "rest"}
    (axes,) = figure.axes  # no thumbnails
    curve = axes.lines[0].get_xydata()
    assert curve[:4].tolist() == [[0, 0], [1, 0], [1, 0], [2, 0]] and [3, 0.6] in curve.tolist()


def test_every_label_that_is_ever_best_is_drawn_and_named():
    labels = [f"act {number}" for number in range(7)]
    windows = [
        {"start": 2.0 * n, "end": 2.0 * n + 2, "scores": {label: 0.4 + 0.3 * (label == labels[n]) for label in labels}}
        for n in range(6)
    ]
    axes = plot_timeline(windows).figure.axes[0]
    assert [text.get_text() for text in axes.texts] == labels[:6]  # above the curves, in the order of time
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert len(looks) == len(set(looks)) == 6
    assert all(one[0] != other[0] and one[1] != other[1] for one, other in itertools.pairwise(looks))
    band = [patch.get_facecolor() for patch in axes.patches]
    assert len(set(band)) == 6


def test_the_timeline_breaks_where_nothing_was_seen():
    figure = plot_timeline(hand_made(0.9, 0.7, 0.2, window=2, stride=3))
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).sum() == 2


def test_the_timeline_shows_itself_in_a_notebook():
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(plot_timeline(many_labels(3, 2)))
    picture = Image.open(io.BytesIO(data["image/png"]))
    assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_names_that_matplotlib_reads_otherwise():
    figure = plot_timeline(many_labels(3, 2, name="_costs $5, not $6^{}"))
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.legends[0].get_texts()][0].startswith("_costs $5, not $6^")


def test_bad_timelines():
    with pytest.raises(ValueError, match="no window to draw"):
        plot_timeline([])
    with pytest.raises(ValueError, match="top_k is 0"):
        plot_timeline(hand_made(0.5), top_k=0)
