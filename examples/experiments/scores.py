"""What the demo's scores are worth: calibration error, "none of these", sets; by clips to calibrate on and by list.

    python examples/experiments/scores.py --model runs/moving_shapes/model --unlike FOLDER_OF_OTHER_VIDEOS

Calibrates on validation clips of the trained classes, and measures on the four test splits. The videos of --unlike
show something else, so that "none of these" is right for all of them. Encodes every clip once; about two minutes.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from modeling_mote.loading import load_checkpoint
from modeling_mote.processing import encode_classes
from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.calibration import Calibration, fit_calibration, without_true
from modeling_mote.processing.clips import VideoClips, collate_clips
from modeling_mote.processing.metrics.confidence import (
    auroc,
    expected_calibration_error,
    false_accept_rate,
    set_coverage,
)
from modeling_mote.processing.sources import find_videos

SPLITS = ("test", "test_compositions", "test_objects", "test_motions")
DRAWS = 20


class Cosines:
    """Cosines of clips to lists of labels, as the pipeline computes them.

    Args:
        folder: of the checkpoint.
    """

    def __init__(self, folder: str) -> None:
        self.model, self.processor = load_checkpoint(folder)
        self.model.merge_experts()
        self.builder = MovingShapes()
        self.builder.download_and_prepare()

    @torch.no_grad()
    def of_split(self, split: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frame features [n, t, d], labels [n] and class features [c, d] of a split."""
        rows, names = self.builder.as_dataset(split), self.builder.class_names(split)
        labels = {rows.features["label"].str2int(name): index for index, name in enumerate(names)}
        clips = VideoClips(rows, self.processor.video_processor, self.processor.num_frames, "uniform", labels=labels)
        frames, truth = [], []
        for batch in DataLoader(clips, batch_size=64, collate_fn=collate_clips):
            frames.append(self.model.get_frame_features(clips.inputs(batch)["pixel_values_videos"]).pooler_output)
            truth.append(batch["labels"])
        return torch.cat(frames), torch.cat(truth), encode_classes(self.model, self.processor, names)

    @torch.no_grad()
    def of_files(self, folder: str) -> torch.Tensor:
        """Frame features [n, t, d] of videos; those that can't be read are left out, and named."""
        frames = []
        for file in find_videos([folder]).files:
            try:
                options = {"num_frames": self.processor.num_frames, "do_sample_frames": True, "return_tensors": "pt"}
                pixels = self.processor.video_processor(file, **options)["pixel_values_videos"]
            except ValueError as error:
                print(f"left out: {error}")
                continue
            frames.append(self.model.get_frame_features(pixels).pooler_output)
        return torch.cat(frames)

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """[n, c] of frame features and class features."""
        logits = self.model(frame_embeds=frames, class_embeds=classes).logits_per_video
        return (logits / self.model.logit_scale.exp()).double()


def measure(
    known: Calibration, cosines: torch.Tensor, labels: torch.Tensor, unlike: torch.Tensor | None = None
) -> dict[str, float]:
    """What a calibration is worth on clips it was not fitted on."""
    likely = known.log_probabilities(cosines)
    listed, missing = known.known_probability(cosines), known.known_probability(without_true(cosines, labels))
    kinds = np.repeat([1, 0], len(labels))
    sets = [(-row <= known.largest_residual(0.9)).nonzero()[:, 0].tolist() for row in likely]
    found = set_coverage(sets, labels)
    values = {
        "top-1": float((cosines.argmax(1) == labels).double().mean()),
        "ECE": expected_calibration_error(likely.exp().numpy(), labels)["ece"],
        "AUROC listed": auroc(torch.cat([listed, missing]), kinds)["auroc"],
        "false accepts": false_accept_rate(torch.cat([listed, missing]), kinds)["false_accept_rate"],
        "listed, said so": float((listed > 0.5).double().mean()),
        "missing, said so": float((missing < 0.5).double().mean()),
        "coverage": found["coverage"],
        "set size": found["mean_set_size"],
        "empty sets": found["empty_sets"],
    }
    if unlike is not None:
        other = known.known_probability(unlike)
        pairs = np.repeat([1, 0], [len(listed), len(other)])
        values["AUROC unlike"] = auroc(torch.cat([listed, other]), pairs)["auroc"]
    return values


def draw_clips(labels: torch.Tensor, per_class: int) -> Iterator[torch.Tensor]:
    """Indices of so many clips per class, several times."""
    for seed in range(DRAWS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        yield torch.cat([order[labels[order] == label][:per_class] for label in labels.unique()])


def show(name: str, runs: list[dict[str, float]]) -> None:
    """A row of the table: means, and standard deviations if there are several runs."""
    cells = []
    for key in runs[0]:
        values = np.array([run[key] for run in runs])
        cells.append(f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""))
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def show_short_lists(name: str, known: Calibration, cosines: torch.Tensor, labels: torch.Tensor, size: int) -> None:
    """Lists of the true label and random others."""
    generator, runs = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        others = torch.rand(cosines.shape, generator=generator).scatter(1, labels[:, None], 2.0)
        columns = others.argsort(dim=1, descending=True)[:, :size]  # the true one first
        runs.append(measure(known, cosines.gather(1, columns), torch.zeros_like(labels)))
    show(f"{name}, lists of {size}", runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/moving_shapes/model")
    parser.add_argument("--unlike", help="folder of videos that show something else")
    options = parser.parse_args()
    cosines = Cosines(options.model)
    other = None if options.unlike is None else cosines.of_files(options.unlike)
    scored: dict[str, tuple[Any, ...]] = {}
    for split in ("validation", *SPLITS):
        frames, labels, classes = cosines.of_split(split)
        unlike = None if other is None else cosines(other, classes)
        scored[split] = cosines(frames, classes), labels, unlike
    values, labels, _ = scored["validation"]
    known = fit_calibration(values, labels)
    print("| measured on | " + " | ".join(measure(known, *scored["test"])) + " |")
    for split in SPLITS:
        show(f"{split}, calibrated on trained classes", [measure(known, *scored[split])])
    for split in SPLITS:
        own, truth, unlike = scored[split]
        draws = [torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed)) for seed in range(DRAWS)]
        halves = [(each[: len(truth) // 2], each[len(truth) // 2 :]) for each in draws]
        runs = [measure(fit_calibration(own[a], truth[a]), own[b], truth[b], unlike) for a, b in halves]
        show(f"{split}, calibrated on its other half", runs)
    for per_class in (1, 2, 5):
        fits = [fit_calibration(values[each], labels[each]) for each in draw_clips(labels, per_class)]
        show(f"test, {per_class} validation clips per class", [measure(each, *scored["test"]) for each in fits])
    for split in SPLITS:
        for size in (2, 6, 20):
            show_short_lists(split, known, *scored[split][:2], size)


if __name__ == "__main__":
    main()
