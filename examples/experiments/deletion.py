"""Checks `explain`: deleting what it calls relevant must lower the score faster than deleting at random.

    cd examples/experiments
    python deletion.py --model ../../runs/moving_shapes/model

On held-out MovingShapes clips, each explained for its true label among all labels of its split: parts of the clip are
replaced by its mean colour, the most relevant first, at random, or the least relevant first; patches in the order of
`patch_map`, whole frames in that of `frame_shares` and of `frame_effects`. Prints the area under the curves of
similarity and score over the share of the clip that is deleted, a mean over clips, and how far below random the first
order is, with its standard error over clips. Lower is faster.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_mote import Explanation, explain
from modeling_mote.loading import load_pipeline
from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.builders.moving_shapes import SPLITS

ORDERS = ("most relevant first", "at random", "least relevant first")
FRAMES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
# What is deleted in its order, and the shares of the clip that are, beside none and all.
DELETED = {
    "patch_map": (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4),
    "frame_shares": FRAMES,
    "frame_effects": FRAMES,
}


def delete(frames: torch.Tensor, relevance: torch.Tensor, count: int) -> torch.Tensor:
    """The clip without its `count` most relevant parts, which get its mean colour.

    Args:
        frames: uint8 [t, 3, h, w].
        relevance: of its frames [t, 1, 1] or its patches [t, rows, columns].
        count: parts to delete.
    """
    gone = torch.zeros(relevance.numel(), dtype=torch.bool)
    gone[relevance.flatten().argsort(descending=True, stable=True)[:count]] = True
    gone = gone.view(relevance.shape)
    for dim, size in ((1, frames.shape[-2]), (2, frames.shape[-1])):
        gone = gone.repeat_interleave(size // relevance.shape[dim], dim)
    colour = frames.float().mean((0, 2, 3)).round().to(torch.uint8)[:, None, None]
    return torch.where(gone[:, None], colour, frames)


@torch.no_grad()
def areas(
    classify: Any, why: Explanation, relevance: torch.Tensor, shares: Sequence[float], draw: torch.Generator
) -> np.ndarray:
    """Areas under the curves of similarity and score as ever more of a clip is deleted, [orders, 2].

    Args:
        classify: the pipeline that was explained.
        why: the explanation of the clip.
        relevance: of its frames [t, 1, 1] or its patches [t, rows, columns].
        shares: of the clip to delete, between 0 and 1.
        draw: of the random order.
    """
    model, processor = classify.model, classify.processor.video_processor
    orders = (relevance, torch.rand(relevance.shape, generator=draw), -relevance)
    counts = [round(share * relevance.numel()) for share in shares]
    ends = [why.frames, delete(why.frames, relevance, relevance.numel())]  # whole and blank: alike for all orders
    clips = torch.stack(ends + [delete(why.frames, order, count) for order in orders for count in counts])
    frames = model.get_frame_features(processor.normalize_pixels(clips)).pooler_output
    temporal = model.get_temporal_features(frames).last_hidden_state
    classes = model.normalize_classes(classify.class_features(why.candidate_labels))
    logits, _, _ = model.score_modulated(frames, temporal, classes)
    label = why.candidate_labels.index(why.label)
    found = torch.stack([logits[:, label] / model.logit_scale.exp(), logits.softmax(-1)[:, label]], -1)
    whole, blank = found[:2, None, None].expand(-1, len(orders), -1, -1)  # [orders, 1, 2]
    curves = torch.cat([whole, found[2:].unflatten(0, (len(orders), len(counts))), blank], dim=1)
    deleted = torch.tensor([0, *counts, relevance.numel()]) / relevance.numel()
    return torch.trapezoid(curves, deleted, dim=1).numpy()


def measure(
    classify: Any,
    clips: Sequence[tuple[Any, str]],
    labels: Sequence[str],
    deleted: Mapping[str, Sequence[float]] = DELETED,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Explain clips, then delete what was found.

    Args:
        classify: the pipeline, of one view a clip.
        clips: videos and their labels.
        labels: all the candidates.
        deleted: fields of [`Explanation`] that order parts of a clip, and the shares of it to delete.
        seed: of the random orders.
        progress: whether to show it.

    Returns:
        for each field, areas under the curves of similarity and score, [clips, orders, 2].
    """
    draw, found = torch.Generator().manual_seed(seed), {name: [] for name in deleted}
    for video, label in tqdm(clips, disable=not progress, leave=False):
        why = explain(classify, video, label, labels)
        for name, shares in deleted.items():
            relevance = getattr(why, name)
            whole = relevance if relevance.ndim == 3 else relevance[:, None, None]
            found[name].append(areas(classify, why, whole, shares, draw))
    return {name: np.stack(each) for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="../../runs/moving_shapes/model", help="checkpoint that `make demo` left")
    parser.add_argument("--split", default="test", choices=SPLITS[1:])
    parser.add_argument("--clips", type=int, default=240, help="evenly spaced ones of the split")
    options = parser.parse_args()
    classify = load_pipeline(options.model, "cpu")
    builder = MovingShapes()
    builder.download_and_prepare()
    rows, labels = builder.as_dataset(options.split), builder.class_names(options.split)
    some = rows.select(np.linspace(0, len(rows) - 1, min(options.clips, len(rows)), dtype=int).tolist())
    names = rows.features["label"].int2str(some["label"][:])
    measured = measure(classify, list(zip(some["video"], names, strict=True)), labels, progress=True)
    print(f"{len(some)} clips of {options.split}, {len(labels)} labels; area under the curve, lower is faster")
    for what, each in measured.items():
        for order, row in zip(ORDERS, each.mean(0), strict=True):
            print(f"{what:13} {order:22} similarity {row[0]:.4f}  score {row[1]:.4f}")
        gained = each[:, 1] - each[:, 0]
        mean, error = gained.mean(0), gained.std(0, ddof=1) / len(gained) ** 0.5
        figures = (
            f"{name} {m:.4f} ± {e:.4f}" for name, m, e in zip(("similarity", "score"), mean, error, strict=True)
        )
        print(f"{what:13} most relevant below random by {', '.join(figures)}")


if __name__ == "__main__":
    main()
