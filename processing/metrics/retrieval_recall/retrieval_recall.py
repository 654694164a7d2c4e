"""Recall at k and median rank of text → video and video → text retrieval."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike

_DESCRIPTION = "Share of texts whose video, and of videos whose text, is among the k of highest similarity."
_INPUTS = """
Args:
    predictions: similarities, [n texts, m videos]; NaN for a video that could not be read, which is never found.
    references: for each text, the indices of the videos it describes, one or more.
    k: the k of recall at k, one integer or several (default 1, 5 and 10). More than there are candidates means all.
Returns:
    text_to_video_r{k}: fraction of the texts one of whose videos is among the k best.
    video_to_text_r{k}: fraction of the videos with a text one of whose texts is among the k best.
    text_to_video_median_rank, video_to_text_median_rank: 1 is the best; one more than the candidates if never found.
    num_texts, num_videos, num_videos_described: n, m, and how many of the m have a text.
A query with several right answers counts once, by the best of them. Equal similarities rank by index, the lower first.
"""


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


class RetrievalRecall(evaluate.Metric):
    """`evaluate` metric: recall at k and median rank, text → video and video → text, ties by index."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(
        self, predictions: ArrayLike, references: Sequence[Sequence[int]], k: int | Sequence[int] = (1, 5, 10)
    ) -> dict[str, float | int]:
        ks = (k,) if isinstance(k, int) else tuple(k)
        if not ks or min(ks) < 1:
            raise ValueError(f"`k` must be one or more integers from 1 on, got {k}.")
        try:
            similarities = np.asarray(predictions, dtype=np.float64)
        except ValueError:  # rows of different lengths
            similarities = np.empty(0)
        if similarities.ndim != 2 or 0 in similarities.shape or len(similarities) != len(references):
            raise ValueError("`predictions` must be [n, m] and `references` n lists, n and m > 0: a row a text.")
        num_texts, num_videos = similarities.shape
        right = np.zeros(similarities.shape, dtype=bool)
        for text, videos in enumerate(references):
            if not len(videos):
                raise ValueError(f"`references[{text}]` is empty: every text must describe a video; leave it out.")
            if min(videos) < 0 or max(videos) >= num_videos:
                raise ValueError(
                    f"`references[{text}]` is {list(videos)}, but `predictions` have videos 0 to {num_videos - 1}."
                )
            right[text, list(videos)] = True
        described = right.any(axis=0)
        result: dict[str, float | int] = {}
        for name, ranks, candidates in (
            ("text_to_video", best_ranks(similarities, right), num_videos),
            ("video_to_text", best_ranks(similarities.T, right.T)[described], num_texts),
        ):
            result |= {f"{name}_r{each}": float((ranks < min(each, candidates)).mean()) for each in ks}
            result[f"{name}_median_rank"] = float(np.median(ranks + 1))
        return result | {
            "num_texts": num_texts,
            "num_videos": num_videos,
            "num_videos_described": int(described.sum()),
        }
