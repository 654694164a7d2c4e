"""Recall at k and median rank of text → video and video → text retrieval."""

from collections.abc import Sequence

import datasets
import evaluate

from modeling_mote.processing.metrics import retrieval


class RetrievalRecall(evaluate.Metric):
    """`evaluate` metric: recall at k and median rank, text → video and video → text, ties by index."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
        return evaluate.MetricInfo(
            description="Share of texts whose video, and of videos whose text, is among the k of highest similarity.",
            citation="",
            inputs_description=retrieval.retrieval_recall.__doc__ or "",
            features=datasets.Features(features),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[int]],
        k: int | Sequence[int] = (1, 5, 10),
    ) -> dict[str, float | int]:
        return retrieval.retrieval_recall(predictions, references, k)
