"""The protocols of the paper by name: data, views, prompts, weights, score and metric come together or not at all.

>>> protocol = get_protocol("ucf101-zero-shot")
>>> [(part.config, part.split) for part in protocol.parts]
[('split1', 'test'), ('split2', 'test'), ('split3', 'test')]
>>> protocol.num_clips, protocol.num_crops, protocol.prompts
(3, 1, 'mote_28')
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from .metrics.accuracy import topk_accuracy


def score_views(cosines: torch.Tensor) -> torch.Tensor:
    """Score a video from its views as the authors' test scripts do: softmax per view, mean, softmax.

    The cosines are not scaled by the logit scale, so the scores of c classes lie close to 1 / c: they rank the
    classes and are no probabilities to show to anybody.

    Args:
        cosines: Cosines of each view's feature to the class features, [b, v, c].

    Returns:
        Scores, [b, c], in float64 (float32 on devices without it): among many classes, float32 would round
        different scores to one.

    Raises:
        ValueError: if `cosines` does not have three dimensions, or has no view or no class.

    Shapes: b videos, v views, c classes.
    """
    if cosines.ndim != 3 or 0 in cosines.shape[1:]:
        raise ValueError(f"`cosines` must be [b, v, c] with at least one view and class, got {list(cosines.shape)}.")
    dtype = torch.float32 if cosines.device.type == "mps" else torch.float64
    return cosines.to(dtype).softmax(dim=-1).mean(dim=1).softmax(dim=-1)


def half_classes(num_classes: int, num_splits: int = 10) -> np.ndarray:
    """Draw the random halves of the classes that the half-classes protocol scores, as the authors draw them.

    Half s is `permutation(c)[:c // 2]` of numpy's legacy generator with seed s. numpy's global generator stays as it
    is.

    Args:
        num_classes: Number of classes, c, at least 2.
        num_splits: Number of halves.

    Returns:
        int64 array [num_splits, c // 2], class indices, ascending in each row: position = index in the half.

    Raises:
        ValueError: if there are fewer than 2 classes or no split.
    """
    if num_classes < 2 or num_splits < 1:
        raise ValueError(f"Half of {num_classes} classes, {num_splits} times, is nothing; give at least 2 classes.")
    return np.stack(
        [
            np.unique(np.random.RandomState(seed).permutation(num_classes)[: num_classes // 2])
            for seed in range(num_splits)
        ]
    )


def half_classes_score(video_embeds: torch.Tensor, class_embeds: torch.Tensor) -> torch.Tensor:
    """Score videos by the half-classes protocol's own rule: mean over views of 100 times the cosine.

    Args:
        video_embeds: Features of the views, [b, v, d]: modulated once with all classes, averaged over the frames;
            L2-normalised here. A row of NaN stands for a video that could not be read.
        class_embeds: Class features, [c, d], L2-normalised here.

    Returns:
        Scores, [b, c]. The columns of a half are its scores: the features do not depend on the half.

    Raises:
        ValueError: if the shapes do not fit.

    Shapes: b videos, v views, c classes, d projection dim.
    """
    if video_embeds.ndim != 3 or class_embeds.ndim != 2 or video_embeds.shape[-1] != class_embeds.shape[-1]:
        raise ValueError(
            f"`video_embeds` must be [b, v, d] and `class_embeds` [c, d], got {list(video_embeds.shape)} and "
            f"{list(class_embeds.shape)}."
        )
    return mean_views(F.normalize(video_embeds, dim=-1) @ F.normalize(class_embeds, dim=-1).T)


def mean_views(cosines: torch.Tensor) -> torch.Tensor:
    """The score of `half_classes_score` from cosines [b, v, c]: 100 times their mean over views, [b, c]."""
    return (100 * cosines).mean(dim=1)


def half_classes_accuracy(
    scores: torch.Tensor | np.ndarray, labels: Sequence[int] | np.ndarray, num_splits: int = 10
) -> dict[str, Any]:
    """Accuracy over random halves of the classes, each over the videos of its own classes alone.

    Args:
        scores: Scores for all classes, [n, c], from `half_classes_score`; a row with a NaN counts as wrong.
        labels: True class indices, [n].
        num_splits: Number of halves.

    Returns:
        For m in top1 and top5: `m`, the mean over halves, `m_std`, their standard deviation (`np.std`), `m_splits`,
        one accuracy per half, `m_scored`, the mean over halves of that over the videos scored (None if a half has
        none), and `m_all_classes`; fractions of 1. `num_listed` and `num_scored` count the n videos.

    Raises:
        ValueError: if a half has no video, or scores and labels do not fit.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    whole = topk_accuracy(scores, labels)
    halves = []
    for seed, classes in enumerate(half_classes(scores.shape[1], num_splits)):
        inside = np.isin(labels, classes)
        if not inside.any():
            raise ValueError(f"None of the {len(labels)} videos is of a class in half {seed}; score more videos.")
        halves.append(topk_accuracy(scores[inside][:, classes], np.searchsorted(classes, labels[inside])))
    result: dict[str, Any] = {}
    for name in ("top1", "top5"):
        splits = [half[name] for half in halves]
        scored = [half[f"{name}_scored"] for half in halves]
        result[name], result[f"{name}_std"] = mean_and_std(splits)
        result[f"{name}_splits"] = splits
        result[f"{name}_scored"] = None if None in scored else float(np.mean(scored))
        result[f"{name}_all_classes"] = whole[name]
    return result | {"num_listed": whole["num_listed"], "num_scored": whole["num_scored"]}


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and population standard deviation (`np.std`, as the authors' ±) of one number per split."""
    return float(np.mean(values)), float(np.std(values))


@dataclass(frozen=True)
class Part:
    """A list of clips that is scored on its own; a protocol's result is the mean over its parts.

    Attributes:
        config: Configuration of the builder, for example `split1`.
        split: Split that is scored.
        label_set: Name of the candidate classes (see `modeling_mote.processing.label_sets`).
    """

    config: str
    split: str
    label_set: str


@dataclass(frozen=True)
class Published:
    """A number as reported by the authors; nothing that this package has measured.

    Attributes:
        backbone: `ViT-B/16` or `ViT-L/14`; None if the paper does not say.
        metric: `top1` or `top5`.
        value: Percent.
        std: Percent, over the parts; None if the paper gives none.
        num_frames: Frames per clip.
        shots: Training clips per class, few-shot only.
        source: Where it is printed.
    """

    backbone: str | None
    metric: str
    value: float
    std: float | None = None
    num_frames: int = 8
    shots: int | None = None
    source: str = "arXiv 2410.10589, as reported by the authors"


@dataclass(frozen=True)
class Protocol:
    """Everything that a number depends on, besides the checkpoint.

    Attributes:
        name: What `--protocol` takes.
        task: `close-set`, `zero-shot` or `few-shot`; `any` if the classes may be trained ones or not.
        builder: Key of `modeling_mote.processing.builders.BUILDERS`; None if the user chooses the data.
        parts: What is scored; empty if `builder` is None.
        num_clips: Clips per video, in time.
        num_crops: Crops per clip, in space. Views v = num_clips · num_crops.
        metrics: What is reported, the first one in tables. Accuracies are over the clips listed; a clip that can't be
            read counts as wrong.
        score_rule: `views` is `score_views`, `half_classes` is `half_classes_score` with `half_classes_accuracy`.
        num_frames: Frames per clip, t; None for as many as the checkpoint takes.
        sampling: Where the frames of a clip lie, see `MoTEVideoProcessorKwargs`.
        prompts: Name of a set in `modeling_mote.processing.prompts.PROMPT_SETS`.
        alpha: Image tower and logit scale are `alpha · fine-tuned + (1 - alpha) · CLIP`, as in the authors' test
            scripts; None for the checkpoint's weights as they are.
        modulate: Whether temporal feature modulation is on.
        square_pixels: Whether frames whose pixels are not square are stretched until they are. The authors' scripts
            take the frames as they are stored.
        aggregate: `mean_std` over the parts (or halves), or `none` if there is one part.
        shots: Training clips per class, K, that the few-shot protocol is run with.
        epochs: Epochs of few-shot training, each as long as the full list.
        published: The authors' numbers.
    """

    name: str
    task: Literal["close-set", "zero-shot", "few-shot", "any"]
    builder: str | None
    parts: tuple[Part, ...]
    num_clips: int
    num_crops: int
    metrics: tuple[str, ...] = ("top1",)
    score_rule: Literal["views", "half_classes"] = "views"
    num_frames: int | None = 8
    sampling: str = "uniform"
    prompts: str = "mote_28"
    alpha: float | None = 0.99
    modulate: bool = True
    square_pixels: bool = False
    aggregate: Literal["none", "mean_std"] = "none"
    shots: tuple[int, ...] = ()
    epochs: int | None = None
    published: tuple[Published, ...] = ()

    @property
    def views(self) -> str:
        """The views as tables write them, clips × crops: `4x3`."""
        return f"{self.num_clips}x{self.num_crops}"


_B16, _L14 = "ViT-B/16", "ViT-L/14"


def _kinetics400(num_clips: int, num_crops: int, published: tuple[Published, ...]) -> Protocol:
    return Protocol(
        name=f"kinetics400-{num_clips}x{num_crops}",
        task="close-set",
        builder="kinetics",
        parts=(Part("kinetics400", "validation", "kinetics400"),),
        num_clips=num_clips,
        num_crops=num_crops,
        metrics=("top1", "top5"),
        published=published,
    )


def _official_splits(dataset: str) -> tuple[Part, ...]:
    return tuple(Part(f"split{fold}", "test", dataset) for fold in (1, 2, 3))


def _zero_shot(
    dataset: str, builder: str, parts: tuple[Part, ...], b16: tuple[float, float], l14: tuple[float, float]
) -> Protocol:
    return Protocol(
        name=f"{dataset}-zero-shot",
        task="zero-shot",
        builder=builder,
        parts=parts,
        num_clips=3,
        num_crops=1,
        metrics=("top1", "top5"),
        aggregate="mean_std",
        published=(Published(_B16, "top1", *b16), Published(_L14, "top1", *l14)),
    )


def _half_classes(name: str, builder: str | None, parts: tuple[Part, ...]) -> Protocol:
    return Protocol(
        name=name,
        task="zero-shot",
        builder=builder,
        parts=parts,
        num_clips=3,
        num_crops=1,
        metrics=("top1", "top5"),
        score_rule="half_classes",
        aggregate="mean_std",
    )


def _few_shot(dataset: str, accuracies: Mapping[int, float]) -> Protocol:
    return Protocol(
        name=f"{dataset}-few-shot",
        task="few-shot",
        builder=dataset,
        parts=_official_splits(dataset)[:1],
        num_clips=1,
        num_crops=1,
        shots=tuple(accuracies),
        epochs=10,
        published=tuple(Published(None, "top1", value, shots=shots) for shots, value in accuracies.items()),
    )


# As the pipeline scores by default, on data of one's own: one view of square pixels, the checkpoint as it is.
_OWN_DATA = Protocol(
    name="own-data",
    task="any",
    builder=None,
    parts=(),
    num_clips=1,
    num_crops=1,
    metrics=("top1", "top5"),
    num_frames=None,
    alpha=None,
    square_pixels=True,
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            _kinetics400(1, 1, (Published(_B16, "top1", 81.8), Published(_B16, "top5", 95.9))),
            _kinetics400(
                4,
                3,
                (
                    Published(_B16, "top1", 83.0),
                    Published(_B16, "top5", 96.3),
                    Published(_L14, "top1", 86.8),
                    Published(_L14, "top5", 97.5),
                    Published(_L14, "top1", 87.2, num_frames=16),
                    Published(_L14, "top5", 97.7, num_frames=16),
                ),
            ),
            _zero_shot("ucf101", "ucf101", _official_splits("ucf101"), (83.4, 0.7), (88.7, 0.6)),
            _zero_shot("hmdb51", "hmdb51", _official_splits("hmdb51"), (55.8, 0.9), (61.4, 1.3)),
            _zero_shot(
                "kinetics600",
                "kinetics",
                tuple(Part(f"kinetics600_split{k}", "test", f"kinetics600_split{k}") for k in (1, 2, 3)),
                (70.2, 0.6),
                (78.4, 0.9),
            ),
            _OWN_DATA,
            _half_classes("half-classes", None, ()),
            _half_classes("ucf101-half-classes", "ucf101", _official_splits("ucf101")[:1]),
            _half_classes("hmdb51-half-classes", "hmdb51", _official_splits("hmdb51")[:1]),
            _few_shot("ucf101", {2: 88.8, 4: 91.0, 8: 92.3, 16: 93.6}),
            _few_shot("hmdb51", {2: 61.3, 4: 63.9, 8: 67.2, 16: 68.2}),
        )
    }
)


def get_protocol(name: str) -> Protocol:
    """Look up a protocol.

    Args:
        name: One of `PROTOCOLS`.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
