"""Which numbers tell whether the true label is in a list, also of motions that were never trained.

    cd examples/experiments
    python none_of_these.py --output runs/none_of_these

The demo's test clips have no part in this. In a world of another seed, a head is trained without one pair of opposite
motions, for two of the four pairs in turn. On clips that it was not trained on, logistic regressions of several sets
of numbers are fitted to lists of all lengths, and measured on lists of 6, 20 and all labels: on the trained classes
that they were not fitted to (fitted to half of them), and on the motions left out (fitted to all trained classes).
Prints for each the AUROC, and how often a list with and without the true label is recognised. A quarter of an hour on
one core; heads and frame features are kept in `--output`.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from heads import MOTE, fit
from worlds import Data, World, encode_world, load_clip, load_world, quiet

from modeling_mote.processing.builders.moving_shapes import OPPOSITE_MOTIONS
from modeling_mote.processing.calibration import _fit_logistic
from modeling_mote.processing.metrics.confidence import auroc
from modeling_mote.processing.tensor_files import load_tensors, save_tensors
from modeling_mote.training import freeze

WORLD = World(24, 4, 0.0, seed=7)
LEFT_OUT = OPPOSITE_MOTIONS[:2]
STEPS = 1200
FITTED = (1, 2, 4, 8, 16, 32, 60)  # labels of a list
DRAWS = 3
Numbers = dict[str, torch.Tensor]  # {set of numbers: [n, f]}


def train_head(data: Data, kept: list[int], fold: int, path: Path) -> Any:
    """A model whose temporal layers know some classes alone; from the file if it is there."""
    torch.manual_seed(fold)
    model = load_clip(temporal_config={"num_hidden_layers": MOTE.layers, "num_experts": MOTE.experts})
    names = [data.names("train")[index] for index in kept]
    model.set_training_classes(names, data.candidates(names))
    freeze(model, image_tower=True)
    if path.is_file():
        model.temporal_model.load_state_dict(load_tensors(path)[0])
        return model.eval()
    frames, labels = clips_of(data, "train", kept)
    fit(model, {"frame_embeds": frames}, labels, STEPS, fold)
    save_tensors(dict(model.temporal_model.state_dict()), path)
    return model


def clips_of(data: Data, split: str, classes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame features [n, t, d] of the clips of some classes, and their places among these, [n]."""
    place = torch.full((len(data.classes[split]),), -1)
    place[classes] = torch.arange(len(classes))
    labels = place[data.labels[split]]
    return data.frame_embeds[split][labels >= 0], labels[labels >= 0]


@torch.no_grad()
def numbers(model: Any, frames: torch.Tensor, temporal: torch.Tensor, classes: torch.Tensor) -> Numbers:
    """The sets that are compared, of clips and one list of labels [c, d]."""
    logits, rho, video = model.score_modulated(frames, temporal, classes)
    cosines, tokens = logits / model.logit_scale.exp(), F.normalize(frames + temporal, dim=-1)
    plain = F.normalize((frames + temporal).mean(1), dim=-1) @ classes.T
    looks = F.normalize(frames.mean(1), dim=-1) @ classes.T
    trained = model.seen_classes.weight
    others = trained[(trained @ classes.T).amax(1) < 0.9999]
    beside = (F.normalize(video, dim=-1) @ others.T).amax(1)
    of_best = (tokens * classes[cosines.argmax(1)][:, None]).sum(-1)  # [n, t]
    length = torch.full((len(frames),), math.log(len(classes)))

    def usual(values: torch.Tensor) -> list[torch.Tensor]:
        largest, average = values.amax(1), values.mean(1)
        return [largest, average, length, largest * length, average * length]

    sets = {
        "as it is: largest, mean, length": usual(cosines),
        "the same without modulation": usual(plain),
        "and rho": [*usual(cosines), rho, rho * length],
        "and the spread over labels": [*usual(cosines), cosines.std(1, correction=0)],
        "and the largest to training classes that are not in the list": [*usual(cosines), beside, beside * length],
        "and those of frame features alone": [*usual(cosines), *usual(looks)[:2], *usual(looks)[3:]],
        "and lowest and spread over frames": [
            *usual(cosines),
            of_best.amin(1),
            of_best.amin(1) * length,
            of_best.std(1),
        ],
    }
    return {name: torch.stack(each, 1).double() for name, each in sets.items()}


def draw_lists(
    model: Any, clips: tuple[torch.Tensor, ...], classes: torch.Tensor, size: int, seed: int
) -> Iterator[tuple[Numbers, bool, int]]:
    """For each class a list with it, and one as long without it: numbers of its clips, which one, and the class."""
    frames, temporal, labels = clips
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique().tolist():
        order, rows = torch.randperm(len(classes), generator=generator), labels == label
        others = order[order != label][:size]
        own = torch.cat([torch.tensor([label]), others[: size - 1]])
        yield numbers(model, frames[rows], temporal[rows], classes[own]), True, label
        yield numbers(model, frames[rows], temporal[rows], classes[others]), False, label


def gather(found: list[tuple[Numbers, bool, int]], of: set[int] | None = None) -> tuple[Numbers, torch.Tensor]:
    """Numbers [n, f] of all lists, or of those for some classes; and whether each holds the true label, [n]."""
    chosen = [each for each in found if of is None or each[2] in of]
    values = {name: torch.cat([each[0][name] for each in chosen]) for name in chosen[0][0]}
    counts = torch.tensor([len(next(iter(each[0].values()))) for each in chosen])
    return values, torch.tensor([each[1] for each in chosen]).repeat_interleave(counts)


def measure(weights: Numbers, values: Numbers, listed: torch.Tensor) -> dict[str, list[float]]:
    """AUROC, and how often a list with, and one without the true label is recognised."""
    rows = {}
    for name, weight in weights.items():
        odds = values[name] @ weight[:-1] + weight[-1]
        area = auroc(odds.numpy(), listed.numpy())["auroc"]
        rows[name] = [area, (odds[listed] > 0).double().mean().item(), (odds[~listed] < 0).double().mean().item()]
    return rows


def compare(model: Any, data: Data, kept: list[int], left_out: list[int]) -> dict[str, dict[str, list[float]]]:
    """{what was measured: {set of numbers: [AUROC, with, without]}} of one head."""

    def load(split: str, classes: list[int]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        frames, labels = clips_of(data, split, classes)
        with torch.no_grad():
            temporal = model.get_temporal_features(frames).last_hidden_state
        return (frames, temporal, labels), data.candidates([data.names(split)[index] for index in classes])

    known, classes = load("test", kept)
    strange, new_classes = load("train", left_out)  # clips of classes that the head was not trained on
    half = set(torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[: len(kept) // 2].tolist())
    found = [each for size in FITTED for each in draw_lists(model, known, classes, size, size)]
    weights = []
    for of in (half, None):
        values, listed = gather(found, of)
        weights.append({name: torch.tensor(_fit_logistic(each, listed)).double() for name, each in values.items()})
    rows = {}
    for title, clips, names, weight, of in (
        ("trained", known, classes, weights[0], set(range(len(kept))) - half),
        ("left out", strange, new_classes, weights[1], None),
    ):
        for size in (6, 20, len(names) - 1):
            draws = [gather(list(draw_lists(model, clips, names, size, 100 + seed)), of) for seed in range(DRAWS)]
            measured = [measure(weight, *each) for each in draws]
            rows[f"{title}, {size if size < len(names) - 1 else 'all'}"] = {
                name: np.mean([each[name] for each in measured], axis=0).tolist() for name in weight
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/none_of_these", help="folder for what is kept")
    output = Path(parser.parse_args().output)
    quiet()
    torch.set_num_threads(1)
    encode_world(WORLD, output)
    data, runs = load_world(WORLD, output), []
    for fold, pair in enumerate(LEFT_OUT):
        motions = [parts[2] for parts in data.classes["train"]]
        kept = [index for index, motion in enumerate(motions) if motion not in pair]
        left_out = [index for index, motion in enumerate(motions) if motion in pair]
        model = train_head(data, kept, fold, output / f"without_{'_'.join(pair).replace(' ', '_')}.safetensors")
        runs.append(compare(model, data, kept, left_out))
    print("| | " + " | ".join(runs[0]) + " |")
    print("|---" * (1 + len(runs[0])) + "|")
    for name in next(iter(runs[0].values())):
        cells = [np.mean([run[column][name] for run in runs], axis=0) for column in runs[0]]
        shown = (f"{area:.3f} ({100 * yes:.0f} / {100 * no:.0f} %)" for area, yes, no in cells)
        print(f"| {name} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
