"""What token merging gains and costs: the image tower's speed by the number merged, and top-1 on the demo's clips.

    python examples/experiments/fewer_tokens.py --model runs/moving_shapes/model --page docs/fewer_tokens.md

Speed is measured on ViT-B/16's tower with random weights, 197 tokens, one video of 8 frames of 224 pixels, and on the
demo's, 17 tokens, 64 videos, in float32, by the processor time of one thread: medians of alternated rounds, against
the same tower without merging. Top-1 is that of all clips of the demo's four splits. Prints the tables, writes
`fewer_tokens.json` and `fewer_tokens.png` to --output, and with --page the tables into that page. About five minutes.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmark import alternated, build, pixels_of
from matplotlib.figure import Figure
from reports import save, table, write_tables
from torch import nn
from torch.utils.data import DataLoader
from worlds import SPLIT_TITLES, clips_of_split

from modeling_mote import merge_tokens
from modeling_mote.loading import load_checkpoint
from modeling_mote.processing import encode_classes
from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.clips import collate_clips
from modeling_mote.processing.files import write_whole

LARGE, SMALL = (0, 4, 8, 12, 16, 20), (0, 1, 2, 3, 4, 6, 8)  # pairs merged per layer


def tokens_left(config: Any, per_layer: int) -> tuple[int, float]:
    """Tokens after the last layer, and the mean over the layers' feed-forwards, as a share of all."""
    start = tokens = (config.image_size // config.patch_size) ** 2 + 1
    seen = []
    for _ in range(config.num_hidden_layers):
        tokens -= min(per_layer, (tokens - 1) // 2)
        seen.append(tokens)
    return tokens, sum(seen) / len(seen) / start


@torch.no_grad()
def speeds(model: nn.Module, pixels: torch.Tensor, numbers: Sequence[int], rounds: int) -> list[dict[str, float]]:
    """The image tower's time without merging over its time with it, for each number."""

    def encode(number: int) -> None:
        merge_tokens(model, number)
        model.get_frame_features(pixels)

    calls: dict[str, Callable[[], None]] = {str(number): partial(encode, number) for number in numbers}
    found = alternated(calls, rounds, time.process_time)
    merge_tokens(model, 0)
    rows = []
    for number in numbers:
        left, share = tokens_left(model.config.vision_config, number)
        speed = found["0"] / found[str(number)]
        rows.append({"merged": number, "left": left, "share": share, "speed": speed, "seconds": found[str(number)]})
    return rows


@torch.no_grad()
def accuracies(model: Any, processor: Any, numbers: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """{split: {"off" or "on", of modulation: top-1 for each number}} over all clips of the demo's splits."""
    builder = MovingShapes()
    builder.download_and_prepare()
    found: dict[str, dict[str, list[float]]] = {}
    for split in SPLIT_TITLES:
        clips, names = clips_of_split(builder, split, processor.video_processor, processor.num_frames)
        batches = list(DataLoader(clips, batch_size=64, collate_fn=collate_clips))
        classes, truth = encode_classes(model, processor, names), torch.cat([each["labels"] for each in batches])
        found[split] = {"off": [], "on": []}
        for number in numbers:
            merge_tokens(model, number)
            frames = torch.cat([model.get_frame_features(**clips.inputs(each)).pooler_output for each in batches])
            video = model.get_video_features(frame_embeds=frames).pooler_output
            for name, scores in (
                ("off", F.normalize(video, dim=-1) @ classes.T),
                ("on", model(frame_embeds=frames, class_embeds=classes).logits_per_video),
            ):
                found[split][name].append(float((scores.argmax(-1) == truth).float().mean()))
        merge_tokens(model, 0)
    return found


def speed_table(rows: Sequence[dict[str, float]]) -> str:
    head = ["merged per layer", "tokens after the last", "tokens, mean of the layers", "speed of the tower"]
    body = [
        [f"{row['merged']}", f"{row['left']}", f"{100 * row['share']:.0f} %", f"{row['speed']:.2f} ×"] for row in rows
    ]
    return table(head, body)


def accuracy_table(rows: Sequence[dict[str, float]], found: dict[str, dict[str, list[float]]]) -> str:
    head = ["merged per layer", "tokens, mean of the layers", "speed of the demo's tower"]
    head += [f"{title}, top-1 % (with modulation)" for title in SPLIT_TITLES.values()]
    body = []
    for index, row in enumerate(rows):
        shown = [f"{100 * found[s]['off'][index]:.1f} ({100 * found[s]['on'][index]:.1f})" for s in SPLIT_TITLES]
        body.append([f"{row['merged']}", f"{100 * row['share']:.0f} %", f"{row['speed']:.2f} ×", *shown])
    return table(head, body)


def picture(
    large: Sequence[dict[str, float]], small: Sequence[dict[str, float]], found: dict[str, dict[str, list[float]]]
) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    merged = [row["merged"] for row in large]
    left.plot(merged, [row["speed"] for row in large], marker="o", label="measured")
    left.plot(merged, [1 / row["share"] for row in large], ":", color="grey", label="in proportion to the tokens")
    left.set(title="ViT-B/16's image tower, 197 tokens", xlabel="pairs merged per layer", ylabel="speed, ×")
    left.set(ylim=(0, None), xlim=(0, None))
    left.legend()
    for split, title in SPLIT_TITLES.items():
        right.plot([row["merged"] for row in small], [100 * x for x in found[split]["off"]], marker="o", label=title)
    right.set(title="the demo, 17 tokens, modulation off", xlabel="pairs merged per layer", ylabel="top-1, %")
    right.set(ylim=(0, 102), xlim=(0, None))
    right.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="runs/moving_shapes/model", help="folder that the demo left")
    parser.add_argument("--rounds", type=int, default=5, help="alternated runs of each number")
    parser.add_argument("--output", type=Path, default=Path("results/fewer_tokens"), help="folder of what is written")
    parser.add_argument("--page", type=Path, help="Markdown file to put the tables into")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model, processor = load_checkpoint(options.model)
    model.merge_experts()
    side = model.config.vision_config.image_size
    frames = torch.randn(64, 8, 3, side, side, generator=torch.Generator().manual_seed(0))
    large = speeds(build(torch.float32, "sdpa").cpu(), pixels_of(1).cpu(), LARGE, options.rounds)
    small = speeds(model, frames, SMALL, 3 * options.rounds)
    found = accuracies(model, processor, SMALL)
    tables = {"speed": speed_table(large), "accuracy": accuracy_table(small, found)}
    print(*tables.values(), sep="\n\n")
    rows = {"large": large, "small": small, "top1": found}
    write_whole(options.output / "fewer_tokens.json", json.dumps(rows, indent=2) + "\n")
    save(picture(large, small, found), options.output / "fewer_tokens.png")
    if options.page is not None:
        write_tables(options.page, tables)


if __name__ == "__main__":
    main()
