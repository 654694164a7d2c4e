"""Your classes from a few clips, without training: example videos correct the similarities to the labels' texts.

>>> examples = ExampleSet.from_videos(classify, {"vaulting": ["a.mp4", "b.mp4"], "yoga": ["c.mp4", "d.mp4"]})
>>> classify("clip.mp4", candidate_labels=["vaulting", "yoga", "archery"], examples=examples)

A video is known by two features: e, the mean of its frame features, and h, the mean of its temporal features. A ridge
regression from both, x = [e/2, h] (each L2-normalised), to what the examples' labels are gives the evidence of the
examples, and

    similarity = sharpness · (cosine to the text + share · evidence)

for the labels that have examples. Unlike the similarity to single examples of Tip-Adapter (arXiv 2207.09519), the
regression finds what all examples of a label share, and what labels share: its target is either the label's text
feature less the mean of all labels', so that what "red bar bouncing" teaches about bouncing serves "blue star
bouncing", or the label alone, for names that say little. Which of the two, the ridge, the share and the sharpness are
those under which every example, left out of the regression, is scored best by the others (leave-one-out, exact and in
closed form). The videos that are to be scored have no part in it.

Shapes, throughout: n examples, c candidate labels, m of them with examples, b videos, v views, t frames,
d = `projection_dim`.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .module_state import module_state, tokens_merged_per_layer
from .reading import PixelReader, ProcessDied, Reading, VideoPart, describe_death, read_in_processes
from .tensor_files import load_tensors, save_tensors
from .video_inputs import is_one_video

FRAME_WEIGHT = 0.5  # of e beside h: what moves differs more among videos that look alike
KIND = "examples of MoTE"  # in a file's metadata
TARGETS = ("texts", "labels")
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHARES = (0.1, 0.3, 1.0, 3.0, 10.0)
SHARPNESS = (0.5, 1.0, 2.0, 4.0)
# With one example per label, leaving it out leaves its label with none, so that the examples look worse than they
# are: they count at least this much.
LEAST_SHARE, LEAST_SHARPNESS, MOST_RIDGE = 0.3, 1.0, 1.0
MOST_LEFT_OUT = 1000  # examples that the choice is made on; of more, evenly spread ones
SAME = 1e-5  # two videos whose features differ less, relative to their size, are one
SAME_MODEL = 0.05  # in bfloat16, features of a picture differ by a hundredth of their size; of another model, by all
KEPT_FITS = 8  # lists of labels


class Evidence(NamedTuple):
    """What examples add to the similarities of one list of labels.

    Attributes:
        columns: of the labels that have examples, among the candidates, [m].
        weights: from a video's features x to the evidence for these labels, times the share, [2d, m].
        sharpness: factor of cosine and evidence together.
        target: what the regression explains, "texts" or "labels"; "none" if the texts alone did better.
        ridge: its penalty.
        share: of the evidence beside the cosine.
    """

    columns: torch.Tensor
    weights: torch.Tensor
    sharpness: float = 1.0
    target: str = "none"
    ridge: float = 0.0
    share: float = 0.0

    def adapt(self, cosines: torch.Tensor, frame_embeds: torch.Tensor, temporal_embeds: torch.Tensor) -> torch.Tensor:
        """Turn cosines to texts into similarities to texts and examples.

        A video's largest similarity among the labels that have examples stays the largest cosine among them, so that
        it means what it meant: whether the label is in the list at all, and whether a label without examples, whose
        cosine stays as it is, fits better, remain questions to the text. No similarity falls below -1.

        Args:
            cosines: of videos to the candidates' texts, [b, c].
            frame_embeds: mean frame features e, [b, d].
            temporal_embeds: mean temporal features h, [b, d].

        Returns:
            similarities, float32 [b, c].
        """
        cosines = cosines.float()
        if self.target == "none":
            return cosines
        columns, weights = self.columns.to(cosines.device), self.weights.to(cosines.device)
        texts = cosines[:, columns]  # [b, m]
        evidence = _features(frame_embeds, temporal_embeds).to(weights) @ weights  # [b, m]
        return cosines.index_copy(1, columns, _combine(texts, evidence, self.sharpness))


@dataclass(eq=False)
class ExampleSet:
    """Example videos of labels, as features of one model.

    Make one with `from_videos`, `from_features` or `load`.

    Attributes:
        labels: the labels that have examples, in the order of their first one.
        targets: which of them each example shows, int64 [n].
        frame_embeds: mean frame features e, float32 [n, d].
        temporal_embeds: mean temporal features h, float32 [n, d].
        names: what messages call each example.
        probe: what the model makes of a picture that is always the same, [2d]: another model makes something else.
        tokens_merged: pairs of tokens that each layer of the model's image tower merges.
    """

    labels: tuple[str, ...]
    targets: torch.Tensor
    frame_embeds: torch.Tensor
    temporal_embeds: torch.Tensor
    names: tuple[str, ...]
    probe: torch.Tensor
    tokens_merged: int = 0
    _fits: list[tuple[tuple, torch.Tensor, Evidence]] = field(default_factory=list, init=False, repr=False)
    _checked: str | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    @torch.no_grad()
    def from_videos(
        cls,
        classify: Any,
        examples: Mapping[str, Any],
        batch_size: int = 8,
        num_workers: int = 0,
        **options: Any,
    ) -> "ExampleSet":
        """Read example videos, each by the frames that the pipeline would score.

        Args:
            classify: the zero-shot pipeline, for its model and its processor.
            examples: {label: its videos}; a video is whatever the pipeline takes.
            batch_size: videos in one forward.
            num_workers: processes that read videos; with 0, this one does.
            **options: how videos are read, as the pipeline takes them (`num_frames`, `num_clips`, ...).

        Returns:
            The set. A video given twice under one label counts once, with a warning.

        Raises:
            ValueError: for no label or a label without a video, a video that can't be read, named with the reason,
                and one that stands under two labels.
        """
        parts, targets = _list_videos(examples)
        video_processor = classify.processor.video_processor
        num_frames = None if options.get("fps") else video_processor.frames_per_clip(classify.model.config)
        reader = PixelReader(video_processor, num_frames, {**options, "do_sample_frames": True})
        means: list[torch.Tensor] = []
        batch: list[torch.Tensor] = []
        for index, reading in read_in_processes(reader, parts, num_workers):
            pixels = _pixels(reading, parts[index].name)
            if batch and (len(batch) == batch_size or pixels.shape != batch[0].shape):  # `fps` gives several lengths
                means.append(_encode(classify, batch))
                batch = []
            batch.append(pixels)
        means.append(_encode(classify, batch))
        names = tuple(part.name for part in parts)
        return cls._of(classify.model, tuple(examples), torch.tensor(targets), torch.cat(means), names)

    @classmethod
    @torch.no_grad()
    def from_features(cls, model: Any, examples: Mapping[str, torch.Tensor]) -> "ExampleSet":
        """Make a set from frame features that are there already.

        Args:
            model: the MoTE that they are of.
            examples: {label: frame features e of its videos, as `model.get_frame_features` gives them, [k, t, d] or
                [k, v, t, d]}; t may differ between labels.

        Raises:
            ValueError: for no label, a label without features or with features of another shape, and a video that
                stands under two labels.
        """
        means, targets, names = [], [], []
        for index, (label, frames) in enumerate(examples.items()):
            width = model.config.projection_dim
            if frames.ndim not in (3, 4) or frames.shape[-1] != width or 0 in frames.shape:
                raise ValueError(
                    f"the features of {label!r} must be [videos, frames, {width}], or with views after videos, got "
                    f"{list(frames.shape)}"
                )
            means.append(_embed(model, frames.to(model.device, model.dtype)))
            targets += [index] * len(frames)
            names += [f"video {number} of {label!r}" for number in range(len(frames))]
        if not means:
            raise ValueError("examples hold no label: pass {label: features of its videos}")
        return cls._of(model, tuple(examples), torch.tensor(targets), torch.cat(means), tuple(names))

    @classmethod
    def _of(
        cls, model: Any, labels: tuple[str, ...], targets: torch.Tensor, means: torch.Tensor, names: tuple[str, ...]
    ) -> "ExampleSet":
        """A set of features [n, 2, d] in which no video stands twice."""
        if not means.isfinite().all():
            raise ValueError("the model gives features that are no finite numbers: its weights are damaged")
        kept = _without_twins(means.flatten(1), targets, labels, names)
        frames, temporal = means[kept].unbind(1)
        found = cls(
            labels,
            targets[kept],
            frames.contiguous(),
            temporal.contiguous(),
            tuple(names[index] for index in kept),
            _probe(model),
            tokens_merged_per_layer(model),
        )
        found._checked = _state(model)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set as a safetensors file, which holds features and labels, no video.

        Raises:
            OSError: if it can't be written; what was there is there still.
        """
        tensors = {name: getattr(self, name) for name in ("targets", "frame_embeds", "temporal_embeds", "probe")}
        texts = {name: json.dumps(getattr(self, name)) for name in ("labels", "names", "tokens_merged")}
        save_tensors(tensors, Path(path), {"kind": KIND, **texts})

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any) -> "ExampleSet":
        """Read a set that was saved.

        Args:
            path: the file.
            model: the model that it is to be used with: the one that it was made with, in any precision, its experts
                merged or not.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, no set of examples, or was made with another model.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: there is no such file of examples")
        tensors, metadata = load_tensors(Path(path))
        if metadata.get("kind") != KIND:
            raise ValueError(f"{path} holds no examples: name a file that ExampleSet.save wrote")
        found = cls(
            labels=tuple(json.loads(metadata["labels"])),
            names=tuple(json.loads(metadata["names"])),
            tokens_merged=json.loads(metadata.get("tokens_merged", "0")),
            **{name: tensor.clone() for name, tensor in tensors.items()},
        )
        found.check_model(model, str(path))
        return found

    def check_model(self, model: Any, name: str = "these examples") -> None:
        """Make sure that the features are those of a model, by what it makes of one picture.

        Raises:
            ValueError: if it is another model, or merges other numbers of tokens.
        """
        state = _state(model)
        if state is not None and state == self._checked:
            return
        if tokens_merged_per_layer(model) != self.tokens_merged:
            raise ValueError(
                f"{name} were made with merge_tokens {self.tokens_merged}, and the model has "
                f"{tokens_merged_per_layer(model)}: set the same, or make them again"
            )
        found = _probe(model)
        if found.shape != self.probe.shape or (found - self.probe).norm() > SAME_MODEL * self.probe.norm():
            raise ValueError(
                f"{name} were made with another model, whose features mean something else: make them again from the "
                "example videos with ExampleSet.from_videos"
            )
        self._checked = state

    @torch.no_grad()
    def evidence(self, model: Any, class_embeds: torch.Tensor, labels: Sequence[str]) -> Evidence:
        """Find out what the examples add for one list of labels; kept for the next call with the same list.

        Args:
            model: the MoTE that scores.
            class_embeds: L2-normalised text features of the candidates, [c, d].
            labels: the candidates, c names.

        Raises:
            ValueError: if a label of the examples is no candidate, or the model is another one.
        """
        if lost := [label for label in self.labels if label not in labels]:
            raise ValueError(
                f"the examples' label {lost[0]!r} is not among the {len(labels)} candidate labels, such as "
                f"{labels[0]!r}: add it, or leave its examples out"
            )
        self.check_model(model)
        scale, config = float(model.logit_scale.float().exp()), model.config
        modulation = (config.modulation_scope, config.modulation_top_k, config.modulation_temperature)
        key = (tuple(labels), scale, modulation, config.training_classes_sha256)
        classes = class_embeds.float().cpu()
        for known, embeds, evidence in self._fits:
            if known == key and torch.equal(embeds, classes):
                return evidence
        frames, temporal = (each[:, None].to(model.device) for each in (self.frame_embeds, self.temporal_embeds))
        logits, *_ = model.score_modulated(frames, temporal, class_embeds)
        columns = torch.tensor([list(labels).index(label) for label in self.labels])
        cosines = (logits.float() / scale).cpu()[:, columns]
        evidence = fit(
            _features(self.frame_embeds, self.temporal_embeds), cosines, self.targets, classes, columns, scale
        )
        self._fits = [*self._fits, (key, classes, evidence)][-KEPT_FITS:]
        return evidence

    def adapt(
        self,
        model: Any,
        class_embeds: torch.Tensor,
        labels: Sequence[str],
        cosines: torch.Tensor,
        frame_embeds: torch.Tensor,
        temporal_embeds: torch.Tensor,
    ) -> torch.Tensor:
        """Similarities of videos to labels, by texts and examples.

        Args:
            model: the MoTE that scores.
            class_embeds: L2-normalised text features of the candidates, [c, d].
            labels: the candidates, c names.
            cosines: of the videos to the texts of the candidates, [b, c].
            frame_embeds: frame features e, [b, t, d] or [b, v, t, d].
            temporal_embeds: temporal features h, as `frame_embeds`.

        Returns:
            similarities on the scale of cosines, float32 [b, c]; see `Evidence.adapt`.

        Raises:
            ValueError: see `evidence`.
        """
        evidence = self.evidence(model, class_embeds, labels)
        means = _means(frame_embeds, temporal_embeds)  # [b, 2, d]
        return evidence.adapt(cosines, means[:, 0], means[:, 1])


# ------------------------------------------------------------------------------------------------------------- reading


def _list_videos(examples: Any) -> tuple[list[VideoPart], list[int]]:
    """The videos of all labels with what messages call them, and the number of each one's label."""
    if not isinstance(examples, Mapping) or not examples:
        raise ValueError('examples must be {"label": [its videos], ...} with at least one label, or an ExampleSet')
    parts, targets = [], []
    for number, (label, videos) in enumerate(examples.items()):
        if is_one_video(videos) and not isinstance(videos, (list, tuple)):
            videos = [videos]
        videos = list(videos)
        if not videos:
            raise ValueError(f"label {label!r} has no example: leave it out of the examples, or give it a video")
        for place, video in enumerate(videos):
            named = isinstance(video, (str, os.PathLike))
            parts.append(VideoPart(video, str(video) if named else f"example {place} of {label!r}"))
            targets.append(number)
    return parts, targets


def _pixels(reading: Any, name: str) -> torch.Tensor:
    """The pixels [(v), t, 3, h, w] of an example that was read, or the reason why not."""
    if isinstance(reading, ProcessDied):
        reading = Reading(error=describe_death(reading, name))
    if reading.pixels is None:
        raise ValueError(f"an example can't be read: {reading.error}")
    if reading.warning:
        warnings.warn(reading.warning, stacklevel=3)
    return torch.from_numpy(reading.pixels)


def _encode(classify: Any, videos: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean features [b, 2, d] of the pixels of videos of one shape."""
    pixels = classify.processor.video_processor.normalize_pixels(torch.stack(list(videos)).to(classify.device))
    frames = classify.model.get_frame_features(pixels.to(classify.dtype), return_dict=True).pooler_output
    return _embed(classify.model, frames)


def _embed(model: Any, frame_embeds: torch.Tensor) -> torch.Tensor:
    """Mean features [b, 2, d] of frame features [b, (v), t, d], float32 on the CPU."""
    was_training = model.training
    model.eval()  # else experts would be drawn at random
    try:
        temporal = model.get_temporal_features(frame_embeds, return_dict=True).last_hidden_state
    finally:
        model.train(was_training)
    return _means(frame_embeds, temporal).cpu()


def _means(frame_embeds: torch.Tensor, temporal_embeds: torch.Tensor) -> torch.Tensor:
    """Means over frames and views of e and h, [b, (v), t, d] each: float32 [b, 2, d]."""
    return torch.stack([each.float().flatten(1, -2).mean(1) for each in (frame_embeds, temporal_embeds)], dim=1)


def _without_twins(
    features: torch.Tensor, targets: torch.Tensor, labels: Sequence[str], names: Sequence[str]
) -> list[int]:
    """Indices of the examples [n, 2d] that no earlier one equals: left out, an example is not to find its twin."""
    kept: list[int] = []
    norms = features.norm(dim=-1)
    for start in range(0, len(features), 1024):
        near = torch.cdist(features[start : start + 1024], features) <= SAME * norms
        for row in range(len(near)):
            index = start + row
            earlier = near[row, :index].nonzero()[:, 0].tolist()
            if not earlier:
                kept.append(index)
            elif targets[earlier[0]] != targets[index]:
                raise ValueError(
                    f"{names[earlier[0]]}, an example of {labels[int(targets[earlier[0]])]!r}, and {names[index]}, of "
                    f"{labels[int(targets[index])]!r}, are the same to the model: leave one of them out"
                )
            else:
                warnings.warn(f"{names[index]} is the same video as {names[earlier[0]]}: it counts once", stacklevel=4)
    return kept


@torch.no_grad()
def _probe(model: Any) -> torch.Tensor:
    """What a model makes of a picture that is always the same, e and h L2-normalised, float32 [2d] on the CPU."""
    size, frames = model.config.vision_config.image_size, model.config.num_frames
    ramp = torch.linspace(-1, 1, 3 * size * size).view(1, 1, 3, size, size)
    picture = torch.sin(40 * ramp) + ramp.flip(-1)  # stripes and a slope
    first = next(model.vision_model.parameters())
    embeds = model.get_frame_features(picture.to(first.device, first.dtype), return_dict=True).pooler_output  # [1,1,d]
    moving = torch.cat([embeds.roll(step, dims=-1) for step in range(frames)], dim=1)  # [1, t, d]
    means = _embed(model, moving)
    return torch.cat([F.normalize(embeds[0, 0].float().cpu(), dim=-1), F.normalize(means[0, 1], dim=-1)])


def _state(model: Any) -> str | None:
    return module_state(model.vision_model, model.visual_projection, model.temporal_model)


# ------------------------------------------------------------------------------------------------------------- fitting


def _features(frame_embeds: torch.Tensor, temporal_embeds: torch.Tensor) -> torch.Tensor:
    """x = [e/2, h], each L2-normalised: float32 [b, 2d]."""
    e, h = (F.normalize(each.float(), dim=-1) for each in (frame_embeds, temporal_embeds))
    return torch.cat([FRAME_WEIGHT * e, h], dim=-1)


def fit(
    features: torch.Tensor,
    cosines: torch.Tensor,
    targets: torch.Tensor,
    class_embeds: torch.Tensor,
    columns: torch.Tensor,
    scale: float,
) -> Evidence:
    """Choose what examples add to cosines by leave-one-out.

    Args:
        features: x of the examples, [n, 2d].
        cosines: of the examples to the texts of the labels that have examples, [n, m].
        targets: which of these labels each example shows, [n].
        class_embeds: text features of all candidates, [c, d].
        columns: of the labels that have examples, [m].
        scale: of the softmax whose cross-entropy is compared.
    """
    nothing = Evidence(columns, torch.zeros(features.shape[1], len(columns)))
    if len(columns) < 2:
        return nothing
    texts = class_embeds[columns].double()
    texts = F.normalize(texts - texts.mean(0), dim=-1)  # [m, d]: what tells the labels apart
    answers = {"texts": texts @ texts.T, "labels": torch.eye(len(columns), dtype=torch.float64) - 1 / len(columns)}
    singles = len(targets) == len(columns)
    regression = Ridge(features.double())
    rows = torch.linspace(0, len(targets) - 1, min(len(targets), MOST_LEFT_OUT)).long()
    own, right = cosines[rows], targets[rows]
    best = float("inf") if singles else F.cross_entropy(scale * own, right).item()
    chosen = nothing
    for target in TARGETS[:1] if singles else TARGETS:
        wanted = answers[target][targets]  # [n, m]
        for ridge in RIDGES:
            if singles and ridge > MOST_RIDGE:
                continue
            left_out = regression.left_out(wanted, ridge, rows).float()
            for share in SHARES:
                for sharpness in SHARPNESS:
                    if singles and (share < LEAST_SHARE or sharpness < LEAST_SHARPNESS):
                        continue
                    moved = _combine(own, share * left_out, sharpness)
                    loss = F.cross_entropy(scale * moved, right).item()
                    if loss < best:
                        best = loss
                        chosen = Evidence(columns, nothing.weights, sharpness, target, ridge, share)
    if chosen.target == "none":
        return nothing
    weights = regression.weights(answers[chosen.target][targets], chosen.ridge)
    return chosen._replace(weights=chosen.share * weights.float())


def _combine(texts: torch.Tensor, evidence: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Similarities [b, m] of cosines and evidence; the largest is the largest cosine, and none is below -1."""
    top = texts.amax(-1, keepdim=True)
    below = sharpness * (texts + evidence)
    below = below - below.amax(-1, keepdim=True)  # 0 and less
    room = (top + 1) / -below.amin(-1, keepdim=True).clamp(max=-1e-6)
    return top + below * room.clamp(max=1.0)


class Ridge:
    """Ridge regressions from the same rows [n, p] to any targets [n, q], of any penalty, from one decomposition."""

    def __init__(self, rows: torch.Tensor) -> None:
        wide = rows.shape[0] <= rows.shape[1]
        values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
        kept = values > values.max() * 1e-10
        self.squares, vectors = values[kept], vectors[:, kept]
        singular = self.squares.sqrt()
        self.left = vectors if wide else rows @ vectors / singular  # [n, r]
        self.right = rows.T @ vectors / singular if wide else vectors  # [p, r]

    def weights(self, wanted: torch.Tensor, ridge: float) -> torch.Tensor:
        """[p, q]: x @ weights is the prediction."""
        shrunk = self.squares.sqrt() / (self.squares + ridge)
        return (self.right * shrunk) @ (self.left.T @ wanted)

    def left_out(self, wanted: torch.Tensor, ridge: float, rows: torch.Tensor) -> torch.Tensor:
        """Prediction for some rows, each from all the others: (Hy - diag(H)y) / (1 - diag(H)), H the hat matrix."""
        some = self.left[rows]
        hat = some * (self.squares / (self.squares + ridge))
        own = (hat * some).sum(-1, keepdim=True)  # diag(H)
        return (hat @ (self.left.T @ wanted) - own * wanted[rows]) / (1 - own).clamp(min=1e-9)


__all__ = ["Evidence", "ExampleSet"]
