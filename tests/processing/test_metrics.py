"""The metrics: as `evaluate` modules loaded from their folders, as classes, and their numbers."""

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest

from modeling_mote.processing import metrics
from modeling_mote.processing.metrics import (
    METRICS,
    HarmonicTradeoff,
    MeanPerClassAccuracy,
    RetrievalRecall,
    TopKAccuracy,
    load_metric,
)
from modeling_mote.processing.metrics.accuracy import harmonic_tradeoff, true_class_ranks

FOLDER = Path(metrics.__file__).parent


@pytest.fixture(params=["class", "folder"])
def metric(request):
    """A function that gives a metric by name, as the class or through `evaluate.load` on its folder, offline."""
    return load_metric if request.param == "class" else lambda name: evaluate.load(str(FOLDER / name))


def test_topk(metric):
    scores = [[0.1, 0.5, 0.3, 0.1], [0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.0, 0.1, 0.2, 0.7]]
    result = metric("topk_accuracy").compute(predictions=scores, references=[1, 0, 2, 0], k=[1, 3])
    assert result == {
        "top1": 0.5,
        "top1_scored": 0.5,
        "top3": 0.75,
        "top3_scored": 0.75,
        "num_listed": 4,
        "num_scored": 4,
    }


def test_mean_per_class(metric):
    scores = np.eye(4)[[0, 0, 1, 2, 2]]  # the true classes are 0, 0, 0, 2, 2
    result = metric("mean_per_class_accuracy").compute(predictions=scores, references=[0, 0, 0, 2, 2])
    assert result["mean_per_class_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["per_class_accuracy"] == [pytest.approx(2 / 3), None, 1.0, None]
    assert result["per_class_count"] == [3, 0, 2, 0]


@pytest.mark.parametrize(
    ("close_set", "zero_shot", "hm_zs", "trade_off"),
    [  # the rows of MoTE in tables 3 and 4 of the paper
        (81.8, (83.4, 55.8, 70.2), 67.9, 74.2),
        (83.0, (83.4, 55.8, 70.2), 67.9, 74.7),
        (86.8, (88.7, 61.4, 78.4), 74.4, 80.1),
    ],
)
def test_harmonic_tradeoff_gives_the_papers_numbers(metric, close_set, zero_shot, hm_zs, trade_off):
    result = metric("harmonic_tradeoff").compute(close_set=[close_set], zero_shot=[zero_shot])
    assert (round(result["hm_zs"], 1), round(result["trade_off"], 1)) == (hm_zs, trade_off)
    assert result == harmonic_tradeoff(close_set, zero_shot)


def test_topk_equals_a_stable_sort_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (500, 12)).astype(float)  # a handful of values: most rows have ties
    references = rng.integers(0, 12, 500)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = (order == references[:, None]).argmax(axis=1)
    assert (true_class_ranks(scores, references) == expected).all()
    result = TopKAccuracy().compute(predictions=scores, references=references)
    assert result["top1"] == np.mean(expected < 1) and result["top5"] == np.mean(expected < 5)
    assert MeanPerClassAccuracy().compute(predictions=scores, references=references)[
        "mean_per_class_accuracy"
    ] == pytest.approx(np.mean([np.mean(expected[references == c] < 1) for c in range(12)]))


def test_unscored_clips_are_listed_and_wrong():
    scores = np.eye(3)[[0, 1, 2, 0]]
    scores[3] = np.nan  # a clip that could not be read; its class would have been 0
    result = TopKAccuracy().compute(predictions=scores, references=[0, 1, 2, 0], k=(1, 5))
    assert (result["top1"], result["top5"], result["num_scored"], result["num_listed"]) == (0.75, 0.75, 3, 4)
    assert result["top1_scored"] == result["top5_scored"] == 1.0
    per_class = MeanPerClassAccuracy().compute(predictions=scores, references=[0, 1, 2, 0])
    assert per_class["per_class_accuracy"] == [0.5, 1.0, 1.0]


def test_no_clip_scored_gives_none_and_not_a_number():
    result = TopKAccuracy().compute(predictions=[[math.nan, math.nan]], references=[1], k=1)
    assert result == {"top1": 0.0, "top1_scored": None, "num_listed": 1, "num_scored": 0}


def test_fewer_classes_than_k():
    assert TopKAccuracy().compute(predictions=[[0.2, 0.8]], references=[0])["top5"] == 1.0


def test_scores_closer_than_float32_are_told_apart():
    scores = np.array([[0.0025, 0.0025 + 1e-12]])
    assert np.float32(scores[0, 0]) == np.float32(scores[0, 1])
    assert TopKAccuracy().compute(predictions=scores, references=[1], k=1)["top1"] == 1.0


def test_batches_add_up():
    rng = np.random.default_rng(1)
    scores, references = rng.random((37, 6)), rng.integers(0, 6, 37)
    metric = TopKAccuracy()
    for start in range(0, 37, 8):
        metric.add_batch(predictions=scores[start : start + 8], references=references[start : start + 8])
    assert metric.compute() == TopKAccuracy().compute(predictions=scores, references=references)


@pytest.mark.parametrize("name", ["topk_accuracy", "mean_per_class_accuracy"])
@pytest.mark.parametrize("references", [[0, 3], [-1, 0]])
def test_a_reference_outside_the_classes_is_one_sentence(name, references):
    with pytest.raises(ValueError, match="both must follow one class list"):
        load_metric(name).compute(predictions=np.eye(3)[:2], references=references)


@pytest.mark.parametrize("name", ["topk_accuracy", "mean_per_class_accuracy"])
def test_rows_of_different_lengths_are_one_sentence(name):
    with pytest.raises(ValueError, match=r"must be \[n, c\]"):
        load_metric(name).compute(predictions=[[0.1, 0.2], [0.3]], references=[0, 0])


@pytest.mark.parametrize("name", ["topk_accuracy", "mean_per_class_accuracy"])
def test_no_clip_at_all_is_one_sentence(name):
    with pytest.raises(ValueError, match="n > 0"):
        load_metric(name)._compute(predictions=[], references=[])


def test_bad_values_are_one_sentence():
    with pytest.raises(ValueError, match="`k` must be"):
        TopKAccuracy().compute(predictions=[[0.1, 0.2]], references=[0], k=0)
    with pytest.raises(ValueError, match="`zero_shot` is empty"):
        HarmonicTradeoff().compute(close_set=[0.8], zero_shot=[[]])
    with pytest.raises(ValueError, match="numbers from 0 on"):
        harmonic_tradeoff(0.8, [math.nan])
    with pytest.raises(ValueError, match="Unknown metric 'accuracy'; choose one of topk_accuracy"):
        load_metric("accuracy")


def test_retrieval(metric):
    cosines = [  # of three texts to four videos; the last video has no text
        [0.9, 0.1, 0.2, 0.3],  # about video 0, found first
        [0.8, 0.1, 0.2, 0.3],  # about video 1, found last
        [0.1, 0.3, 0.2, 0.4],  # about videos 1 and 2: 1 is found second
    ]
    result = metric("retrieval_recall").compute(predictions=cosines, references=[[0], [1], [1, 2]], k=[1, 2, 10])
    assert result == {
        "text_to_video_r1": pytest.approx(1 / 3),
        "text_to_video_r2": pytest.approx(2 / 3),
        "text_to_video_r10": 1.0,
        "text_to_video_median_rank": 2.0,
        # Video 0 finds its text first; so does video 1, of its two texts; video 2 has its one text third, by the tie.
        "video_to_text_r1": pytest.approx(2 / 3),
        "video_to_text_r2": pytest.approx(2 / 3),
        "video_to_text_r10": 1.0,
        "video_to_text_median_rank": 1.0,
        "num_texts": 3,
        "num_videos": 4,
        "num_videos_described": 3,
    }


def test_retrieval_equals_counting():
    rng = np.random.default_rng(2)
    cosines = rng.integers(0, 9, (40, 30)).astype(float)  # many ties
    references = [sorted(set(rng.integers(0, 30, rng.integers(1, 4)).tolist())) for _ in range(40)]
    result = RetrievalRecall().compute(predictions=cosines, references=references)

    def rank(row, answers):
        return 1 + min(
            sum((row > row[each]) | ((row == row[each]) & (np.arange(len(row)) < each))) for each in answers
        )

    texts_of = [[text for text, videos in enumerate(references) if video in videos] for video in range(30)]
    there = [rank(row, videos) for row, videos in zip(cosines, references, strict=True)]
    back = [rank(column, texts) for column, texts in zip(cosines.T, texts_of, strict=True) if texts]
    for name, ranks in (("text_to_video", there), ("video_to_text", back)):
        assert result[f"{name}_median_rank"] == np.median(ranks)
        for k in (1, 5, 10):
            assert result[f"{name}_r{k}"] == pytest.approx(np.mean(np.array(ranks) <= k))


def test_a_video_that_could_not_be_read_is_never_retrieved():
    cosines = np.array([[np.nan, 0.1], [np.nan, 0.2]])
    result = RetrievalRecall().compute(predictions=cosines, references=[[0], [1]])
    assert (result["text_to_video_r1"], result["text_to_video_r10"]) == (0.5, 0.5)
    assert (result["video_to_text_r1"], result["video_to_text_r10"]) == (0.5, 0.5)
    assert result["text_to_video_median_rank"] == 2.0  # of 1 and 3


@pytest.mark.parametrize(
    ("cosines", "references", "k", "message"),
    [
        (np.eye(2), [[0], []], 1, "Text 1 describes no video"),
        (np.eye(2), [[0], [2]], 1, "there are videos 0 to 1"),
        (np.eye(2), [[0], [-1]], 1, "there are videos 0 to 1"),
        (np.eye(2), [[0], [1]], 0, "`k` must be"),
        ([[0.1], [0.2, 0.3]], [[0], [1]], 1, r"must be \[n, m\]"),
    ],
)
def test_bad_retrieval_input_is_one_sentence(cosines, references, k, message):
    with pytest.raises(ValueError, match=message):
        RetrievalRecall().compute(predictions=cosines, references=references, k=k)


def test_every_metric_folder_is_a_package_named_like_its_module():
    assert {path.parent.name for path in FOLDER.glob("*/__init__.py")} == set(METRICS)
    assert all((FOLDER / name / f"{name}.py").is_file() for name in METRICS)
