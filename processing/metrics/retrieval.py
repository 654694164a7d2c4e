"""Retrieval of videos by texts, and of texts by videos, as plain functions of their similarities."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .accuracy import check_ks


def retrieval_recall(
    similarities: ArrayLike, described: Sequence[Sequence[int]], k: int | Sequence[int] = (1, 5, 10)
) -> dict[str, float | int]:
    """Recall at k and median rank of text → video and video → text retrieval.

    Args:
        similarities: [n, m]; NaN for a video that could not be read, which is never found.
        described: for each text, the indices of the videos that it describes, one or more.
        k: the k of recall at k, one or several. More than there are candidates means all.

    Returns:
        `text_to_video_r{k}`, the fraction of texts one of whose videos is among the k best; `video_to_text_r{k}`, the
        fraction of videos with a text one of whose texts is among the k best; `text_to_video_median_rank` and
        `video_to_text_median_rank` (1 is the best; one more than the candidates if never found); `num_texts`,
        `num_videos`, and `num_videos_described`, how many of the m have a text. A query with several right answers
        counts once, by the best of them. Equal similarities rank by index, the lower first.

    Raises:
        ValueError: if the two do not fit, a text describes no video, or a k is below 1.

    Shapes: n texts, m videos.
    """
    ks = check_ks(k)
    try:
        values = np.asarray(similarities, dtype=np.float64)
    except ValueError:  # rows of different lengths
        values = np.empty(0)
    if values.ndim != 2 or 0 in values.shape or len(values) != len(described):
        raise ValueError("Similarities must be [n, m] and the answers n lists, n and m > 0: one row per text.")
    right = _answers(described, values.shape[1])
    has_text = right.any(axis=0)
    result: dict[str, float | int] = {}
    for name, ranks, candidates in (
        ("text_to_video", best_ranks(values, right), values.shape[1]),
        ("video_to_text", best_ranks(values.T, right.T)[has_text], values.shape[0]),
    ):
        result |= {f"{name}_r{each}": float((ranks < min(each, candidates)).mean()) for each in ks}
        result[f"{name}_median_rank"] = float(np.median(ranks + 1))
    return result | {
        "num_texts": values.shape[0],
        "num_videos": values.shape[1],
        "num_videos_described": int(has_text.sum()),
    }


def best_ranks(similarities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the best right candidate of each query: 0 is the highest similarity, m none that is a number.

    Args:
        similarities: [n, m], NaN for what is never found.
        right: which candidates are right, bool [n, m].

    Returns:
        int64 array [n].

    Shapes: n queries, m candidates.
    """
    found = ~np.isnan(similarities)
    order = np.argsort(np.where(found, -similarities, np.inf), axis=1, kind="stable")
    hits = np.take_along_axis(right & found, order, axis=1)
    return np.where(hits.any(axis=1), hits.argmax(axis=1), similarities.shape[1])


def _answers(described: Sequence[Sequence[int]], num_videos: int) -> np.ndarray:
    """Which videos each text describes, bool [n, m]."""
    right = np.zeros((len(described), num_videos), dtype=bool)
    for text, videos in enumerate(described):
        if not len(videos):
            raise ValueError(f"Text {text} describes no video: every text must describe one; leave it out.")
        if min(videos) < 0 or max(videos) >= num_videos:
            raise ValueError(f"Text {text} describes {list(videos)}, but there are videos 0 to {num_videos - 1}.")
        right[text, list(videos)] = True
    return right


__all__ = ["best_ranks", "retrieval_recall"]
