"""What engines change in the demo's scores: top-1 on its four splits, and how far cosines move.

    python examples/experiments/engines.py --model runs/moving_shapes/model

Encodes the same pixels by every engine that is installed here (`mote classify --engine`), and scores them as the
pipeline does. Prints a markdown table, with this CPU's instruction sets. A few minutes, most of them reading.
`benchmark.py --rows engines` has the speed.
"""

import argparse
import os

import torch
import transformers
from worlds import SPLIT_TITLES, clips_of_split

from modeling_mote.engines import drop_engine, instruction_sets, use_engine
from modeling_mote.fastest import candidates
from modeling_mote.loading import load_checkpoint
from modeling_mote.processing import encode_classes
from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.clips import collate_clips

BATCH = 32


def read_split(builder: MovingShapes, split: str, processor: transformers.ProcessorMixin) -> tuple:
    """Pixels [n, t, 3, h, w], labels [n] and class names of a split."""
    clips, names = clips_of_split(builder, split, processor.video_processor, processor.num_frames)
    batch = collate_clips([clips[index] for index in range(len(clips))])
    return clips.inputs(batch)["pixel_values_videos"], batch["labels"], names


@torch.no_grad()
def score(model: torch.nn.Module, pixels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cosines [n, c] of pixels [n, t, 3, h, w] to classes [c, d], as the pipeline computes them."""
    logits = [model(pixel_values_videos=some, class_embeds=classes).logits_per_video for some in pixels.split(BATCH)]
    return torch.cat(logits) / model.logit_scale.exp()


def row_of(
    name: str, found: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]
) -> str:
    """A row of the table: top-1 of every split, the largest move of a cosine, and clips whose top-1 changed."""
    cells, largest, changed, wrong, clips = [], 0.0, 0, 0, 0
    for split, cosines in found.items():
        difference = (cosines - plain[split]).abs().max().item()
        first, second = plain[split].topk(2, dim=-1).values.unbind(-1)
        moved = cosines.argmax(-1) != plain[split].argmax(-1)
        cells.append(f"{100 * (cosines.argmax(-1) == truth[split]).double().mean():.1f} %")
        largest, changed, clips = max(largest, difference), changed + int(moved.sum()), clips + len(moved)
        wrong += int((moved & (first - second > 2 * difference)).sum())
    return f"| {name} | {' | '.join(cells)} | {largest:.1e} | {changed} of {clips} | {wrong} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/moving_shapes/model", help="folder that train.py wrote")
    parser.add_argument("--engines", nargs="+", default=candidates(), help="those to compare with torch")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    model, processor = load_checkpoint(options.model)
    model.merge_experts()
    builder = MovingShapes()
    builder.download_and_prepare()
    read = {split: read_split(builder, split, processor) for split in SPLIT_TITLES}
    classes = {split: encode_classes(model, processor, names) for split, (_, _, names) in read.items()}
    truth = {split: labels for split, (_, labels, _) in read.items()}
    plain = {split: score(model, pixels, classes[split]) for split, (pixels, _, _) in read.items()}
    print(f"{os.cpu_count()} cores, {', '.join(instruction_sets())}; top-1 out of the split's own labels\n")
    columns = ["engine", *SPLIT_TITLES.values(), "a cosine moves by at most", "top-1 changed", "... that was clear"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", row_of("torch", plain, plain, truth), sep="\n")
    for name in options.engines:
        if name == "torch":
            continue
        use_engine(model, name)
        found = {split: score(model, pixels, classes[split]) for split, (pixels, _, _) in read.items()}
        print(row_of(name, found, plain, truth), flush=True)
    drop_engine(model)
    print("\nClear: torch's first two cosines lie further apart than twice the split's largest move.")


if __name__ == "__main__":
    main()
