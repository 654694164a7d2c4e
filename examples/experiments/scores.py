"""What the demo's scores are worth: calibration error, "none of these", sets; by clips to calibrate on and by list.

    python examples/experiments/scores.py --model runs/moving_shapes/model --unlike FOLDER_OF_OTHER_VIDEOS

Calibrates on validation clips of the trained classes, and measures on the four test splits: with all 96 labels of a
split, with a few of them, and with others of the world beside them. The videos of --unlike show something else, so
that "none of these" is right for all of them. Every list is scored as the pipeline scores it, modulation included.
Encodes every clip once; about five minutes.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from worlds import clips_of_split

from modeling_mote.calibrate import fit_to_clips
from modeling_mote.loading import load_checkpoint
from modeling_mote.processing import encode_classes
from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.builders.moving_shapes import MOTIONS, OBJECTS, class_name
from modeling_mote.processing.calibration import Calibration
from modeling_mote.processing.clips import collate_clips
from modeling_mote.processing.metrics.confidence import (
    auroc,
    expected_calibration_error,
    false_accept_rate,
    set_coverage,
)
from modeling_mote.processing.sources import find_videos
from modeling_mote.training import ScoredClips

SPLITS = ("test", "test_compositions", "test_objects", "test_motions")
DRAWS = 20
SIZES, LONG = (2, 6, 20), 400  # labels of a list
MORE_SEED = 1  # of the world that gives five more clips per class to calibrate on


@dataclass
class Split:
    """Clips of a split as features.

    Attributes:
        names: of its labels, c.
        classes: text features of the labels, [c, d].
        labels: true label of each clip, [n].
        frames: frame features e, [n, t, d].
        temporal: temporal features h, [n, t, d].
    """

    names: list[str]
    classes: torch.Tensor
    labels: torch.Tensor
    frames: torch.Tensor
    temporal: torch.Tensor

    def joined(self, other: "Split") -> "Split":
        """These clips and those of another split of the same labels."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("labels", "frames", "temporal"))
        return Split(self.names, self.classes, *map(torch.cat, pairs))


class Encoder:
    """Features of clips, and cosines as the pipeline computes them: modulated for each list of labels anew.

    Args:
        model: that scores them.
        processor: the model's, to read clips and labels; features and cosines need none.
    """

    def __init__(self, model: Any, processor: Any = None) -> None:
        self.model, self.processor = model, processor

    def texts(self, names: Sequence[str]) -> torch.Tensor:
        """Text features of labels, [c, d]."""
        return encode_classes(self.model, self.processor, names)

    @torch.no_grad()
    def of_split(self, split: str, **world: Any) -> Split:
        """The clips of a split, of another world if one is given."""
        builder = MovingShapes(**world)
        builder.download_and_prepare()
        clips, names = clips_of_split(builder, split, self.processor.video_processor, self.processor.num_frames)
        frames, truth = [], []
        for batch in DataLoader(clips, batch_size=64, collate_fn=collate_clips):
            frames.append(self.model.get_frame_features(clips.inputs(batch)["pixel_values_videos"]).pooler_output)
            truth.append(batch["labels"])
        return self._split(names, torch.cat(truth), torch.cat(frames))

    @torch.no_grad()
    def of_files(self, folder: str) -> Split:
        """Videos of a folder, without labels; those that can't be read are left out, and named."""
        frames = []
        for file in find_videos([folder]).files:
            try:
                options = {"num_frames": self.processor.num_frames, "do_sample_frames": True, "return_tensors": "pt"}
                pixels = self.processor.video_processor(file, **options)["pixel_values_videos"]
            except ValueError as error:
                print(f"left out: {error}")
                continue
            frames.append(self.model.get_frame_features(pixels).pooler_output)
        return self._split([], torch.full((len(frames),), -1), torch.cat(frames))

    def _split(self, names: list[str], labels: torch.Tensor, frames: torch.Tensor) -> Split:
        classes = self.texts(names) if names else torch.empty(0, frames.shape[-1])
        return Split(names, classes, labels, frames, self.model.get_temporal_features(frames).last_hidden_state)

    def fit(self, split: Split, rows: torch.Tensor | slice = slice(None)) -> Calibration:
        """The calibration of some clips of a split, as `mote calibrate` fits it."""
        cosines = self.cosines(split, split.classes, rows).float()
        means = (each[rows].mean(1) for each in (split.frames, split.temporal))
        return fit_to_clips(self.model, [ScoredClips(cosines, split.labels[rows], *means)], split.classes)

    @torch.no_grad()
    def cosines(self, split: Split, classes: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Of some clips of a split to labels, float64 [n, c]."""
        logits, *_ = self.model.score_modulated(split.frames[rows], split.temporal[rows], classes)
        return (logits / self.model.logit_scale.exp()).double()


@dataclass
class Scored:
    """Cosines of clips to lists of labels with the true one among them, and to lists without it.

    Attributes:
        listed: [n, c].
        labels: place of the true label in the list, [n].
        missing: [n, c'].
        unlike: of videos that show something else, to the same list, [m, c].
    """

    listed: torch.Tensor
    labels: torch.Tensor
    missing: torch.Tensor
    unlike: torch.Tensor | None = None

    def some(self, rows: torch.Tensor) -> "Scored":
        """Some of the clips."""
        return Scored(self.listed[rows], self.labels[rows], self.missing[rows], self.unlike)


def whole_list(encoder: Encoder, split: Split, more: torch.Tensor, other: Split | None) -> Scored:
    """The labels of a split, and more [k, d] that no clip shows; then each clip without its own."""
    classes = torch.cat([split.classes, more])
    listed = encoder.cosines(split, classes)
    missing = torch.empty(len(listed), len(classes) - 1, dtype=torch.float64)
    for label in range(len(split.names)):
        rows = split.labels == label
        missing[rows] = encoder.cosines(split, torch.cat([classes[:label], classes[label + 1 :]]), rows)
    return Scored(listed, split.labels, missing, None if other is None else encoder.cosines(other, classes))


def short_lists(encoder: Encoder, split: Split, size: int) -> Iterator[Scored]:
    """Lists of the true label and random others, and of as many others; another one for each label and draw."""
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        listed, missing = torch.empty(2, len(split.labels), size, dtype=torch.float64)
        for label in range(len(split.names)):
            order = torch.randperm(len(split.names), generator=generator)
            others, rows = order[order != label][:size], split.labels == label
            columns = torch.cat([torch.tensor([label]), others[:-1]])
            listed[rows] = encoder.cosines(split, split.classes[columns], rows)
            missing[rows] = encoder.cosines(split, split.classes[others], rows)
        yield Scored(listed, torch.zeros_like(split.labels), missing)


def measure(known: Calibration, scored: Scored) -> dict[str, float]:
    """What a calibration is worth on clips it was not fitted on."""
    likely = known.log_probabilities(scored.listed)
    listed, missing = known.known_probability(scored.listed), known.known_probability(scored.missing)
    kinds = np.repeat([1, 0], len(scored.labels))
    alone, own = (
        known.label_probabilities(scored.listed) >= 0.5,
        F.one_hot(scored.labels, scored.listed.shape[1]).bool(),
    )
    sets = [(-row <= known.largest_residual(0.9)).nonzero()[:, 0].tolist() for row in likely]
    found = set_coverage(sets, scored.labels)
    values = {
        "top-1": float((scored.listed.argmax(1) == scored.labels).double().mean()),
        "ECE": expected_calibration_error(likely.exp().numpy(), scored.labels)["ece"],
        "AUROC listed": auroc(torch.cat([listed, missing]), kinds)["auroc"],
        "false accepts": false_accept_rate(torch.cat([listed, missing]), kinds)["false_accept_rate"],
        "listed, said so": float((listed > 0.5).double().mean()),
        "missing, said so": float((missing < 0.5).double().mean()),
        "coverage": found["coverage"],
        "set size": found["mean_set_size"],
        "empty sets": found["empty_sets"],
        "own label ≥ 0.5": float(alone[own].double().mean()),
        "others ≥ 0.5": float(alone[~own].double().sum() / len(alone)),
    }
    if scored.unlike is not None:
        other = known.known_probability(scored.unlike)
        pairs = np.repeat([1, 0], [len(listed), len(other)])
        values["AUROC unlike"] = auroc(torch.cat([listed, other]), pairs)["auroc"]
    return values


def draw_clips(labels: torch.Tensor, per_class: int) -> Iterator[torch.Tensor]:
    """Indices of so many clips per class, several times; once if they are all."""
    draws = DRAWS if per_class < labels.bincount().max() else 1
    for seed in range(draws):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        yield torch.cat([order[labels[order] == label][:per_class] for label in labels.unique()])


def show(name: str, runs: list[dict[str, float]]) -> None:
    """A row of the table: means, and standard deviations if there are several runs."""
    cells = []
    for key in runs[0]:
        values = np.array([run[key] for run in runs])
        cells.append(f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""))
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/moving_shapes/model")
    parser.add_argument("--unlike", help="folder of videos that show something else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = Encoder(*load_checkpoint(options.model))
    encoder.model.merge_experts()
    other = None if options.unlike is None else encoder.of_files(options.unlike)
    none = torch.empty(0, encoder.model.config.projection_dim)
    validation = encoder.of_split("validation")
    known = encoder.fit(validation)
    splits = {split: encoder.of_split(split) for split in SPLITS}
    scored = {split: whole_list(encoder, each, none, other) for split, each in splits.items()}
    print("| measured on | " + " | ".join(measure(known, scored["test"])) + " |")
    for split in SPLITS:
        show(f"{split}, calibrated on trained classes", [measure(known, scored[split])])
    for split, each in scored.items():
        count = len(each.labels)
        draws = [torch.randperm(count, generator=torch.Generator().manual_seed(seed)) for seed in range(DRAWS)]
        halves = [(draw[: count // 2], draw[count // 2 :]) for draw in draws]
        runs = [measure(encoder.fit(splits[split], a), each.some(b)) for a, b in halves]
        show(f"{split}, calibrated on its other half", runs)
    everything = [class_name(*thing, motion) for thing in OBJECTS for motion in MOTIONS]
    for split, each in splits.items():
        for size in SIZES:
            show(f"{split}, lists of {size}", [measure(known, found) for found in short_lists(encoder, each, size)])
        strange = [name for name in everything if name not in each.names]
        order = torch.randperm(len(strange), generator=torch.Generator().manual_seed(0))
        more = encoder.texts([strange[index] for index in order[: LONG - len(each.names)].tolist()])
        show(f"{split}, list of {LONG}", [measure(known, whole_list(encoder, each, more, other))])
    more_clips = encoder.of_split("validation", seed=MORE_SEED, train_videos_per_class=1)
    both = validation.joined(more_clips)
    for per_class in (1, 2, 5, 10):
        fits = [encoder.fit(both, each) for each in draw_clips(both.labels, per_class)]
        show(f"test, {per_class} clips per class", [measure(each, scored["test"]) for each in fits])


if __name__ == "__main__":
    main()
