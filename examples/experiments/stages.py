"""Draws where a video's time goes: opening, decoding, resizing, the image tower by kind of operation, head, text.

    cd examples/experiments
    python stages.py  # ViT-B/16 sizes, random weights, a drawn clip of 10 s
    python stages.py --model MODEL --videos my_videos --labels archery yoga

For one clip by itself, and per clip of a folder scored in batches, where the labels' texts are encoded once for all.
Processor time on one thread, so that stages add up. Leaves the numbers in docs/stages.json and the picture in
docs/pictures/stages.png.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import av
import torch
import transformers
from bulk_cost import Work
from growth import ROOT
from matplotlib.figure import Figure
from reports import save
from torch.profiler import ProfilerActivity, profile

from modeling_mote.loading import load_pipeline
from modeling_mote.processing import encode_classes
from modeling_mote.processing.files import write_whole

LABELS = [f"word{number}" for number in range(1, 21)]  # those that the tokenizer of random weights knows
BATCH = 8  # clips of a folder at a time
# What the profiler calls the operations of CLIP's image tower; what is in none of them is "the rest".
KINDS = {
    "matrix products": r"aten::(addmm|mm|bmm|linear)|mkl::_mkl_linear",
    "attention": r"aten::_?scaled_dot_product_.*|aten::_softmax",
    "QuickGELU": r"aten::(sigmoid|mul)",
    "layer norms": r"aten::(native_)?layer_norm",
    "residual adds": r"aten::add_?",
    "patch embedding": r"aten::(_?convolution|mkldnn_convolution|_?slow_conv2d.*|thnn_conv2d)",
}
COLORS = (  # one per stage
    *("#999999", "#56b4e9", "#0072b2", "#d55e00", "#e69f00", "#f0e442"),
    *("#cc79a7", "#b07aa1", "#8c564b", "#ddb8a0", "#222222", "#009e73"),
)


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Processor seconds of a call, the median of some, after one that is not counted."""
    call()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return median(found)


def reading(path: str, processor: Any, rounds: int) -> dict[str, float]:
    """What reading a clip takes: a stage is what is added to the one before it."""

    def opened(decode: bool) -> None:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.thread_count = "NONE", 1
            for _ in container.decode(stream) if decode else ():
                pass

    options = processor.reading_options()
    opening = seconds(lambda: opened(False), rounds)
    decoding = seconds(lambda: opened(True), rounds) - opening
    whole = seconds(lambda: processor.read(path, path, options=options), rounds)
    return {"opening": opening, "decoding": decoding, "choosing, resizing": max(0.0, whole - opening - decoding)}


@torch.no_grad()
def tower(model: Any, pixels: torch.Tensor, rounds: int) -> dict[str, float]:
    """What the image tower takes of pixels [b, t, 3, h, w], its time shared out as the profiler saw it."""
    whole = seconds(lambda: model.get_frame_features(pixels), rounds)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        model.get_frame_features(pixels)
    events = [(event.key, event.self_cpu_time_total) for event in profiler.key_averages()]
    total = sum(spent for _, spent in events)
    shares = {
        kind: sum(spent for key, spent in events if re.fullmatch(names, key)) / total for kind, names in KINDS.items()
    }
    shares["rest of the tower"] = 1 - sum(shares.values())
    return {kind: whole * share for kind, share in shares.items()}


@torch.no_grad()
def measure(model: str, names: list[str], videos: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per clip and stage, of one clip by itself and of each of a folder."""
    classify = load_pipeline(model, "cpu")
    mote, processor = classify.model, classify.processor
    text = seconds(lambda: encode_classes(mote, processor, names), 1)
    embeds = encode_classes(mote, processor, names)
    read = [reading(video, processor.video_processor, rounds) for video in videos]
    shape = processor(videos=videos[:1], return_tensors="pt")["pixel_values_videos"].shape[1:]
    found = {}
    for title, count in (("one clip", 1), (f"per clip of a folder, batches of {BATCH}", BATCH)):
        batch = torch.randn(count, *shape)  # not one clip many times: equal frames are encoded once
        stages = {name: median(each[name] for each in read) for name in read[0]}
        stages |= {kind: spent / count for kind, spent in tower(mote, batch, max(1, rounds // count)).items()}
        frames = mote.get_frame_features(batch).pooler_output
        head = seconds(lambda frames=frames: mote(frame_embeds=frames, class_embeds=embeds), rounds) / count
        stages |= {"head, modulation, scores": head, f"texts of {len(names)} labels": text if count == 1 else 0.0}
        found[title] = {name: 1000 * spent for name, spent in stages.items()}
    return found


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """A bar per case, its stages from left to right in the order in which they happen."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axis = figure.subplots()
    names = list(next(iter(found.values())))
    for place, stages in enumerate(found.values()):
        left = 0.0
        for number, name in enumerate(names):
            width = stages[name]
            axis.barh(place, width, left=left, color=COLORS[number], edgecolor="white")
            left += width
        axis.text(left, place, f" {left:,.0f} ms", va="center")
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set(xlabel="processor time, ms", title="Where the time of a video goes")
    handles = [figure_patch(number, name) for number, name in enumerate(names)]
    axis.legend(handles=handles, ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    save(figure, path)


def figure_patch(number: int, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=COLORS[number], label=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint, in place of random weights of ViT-B/16's sizes")
    parser.add_argument("--labels", nargs="*", help="names of classes that the checkpoint's tokenizer knows")
    parser.add_argument("--videos", type=Path, help="folder of clips, in place of a drawn one")
    parser.add_argument("--rounds", type=int, default=3, help="times that each stage is measured")
    parser.add_argument("--report", type=Path, default=ROOT / "docs", help="folder of stages.json and of pictures/")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Work(Path(temporary), arguments.videos, 1, arguments.rounds)
        model, labels = arguments.model or work.checkpoint(small=False), arguments.labels or LABELS
        found = measure(model, labels, [str(path) for path in work.own], arguments.rounds)
    for title, stages in found.items():
        total = sum(stages.values())
        print(f"{title}: {total:.0f} ms of processor time")
        print("\n".join(f"  {name:28} {spent:8.1f} ms {100 * spent / total:5.1f} %" for name, spent in stages.items()))
    write_whole(arguments.report / "stages.json", json.dumps(found, indent=1) + "\n")
    draw(found, arguments.report / "pictures" / "stages.png")


if __name__ == "__main__":
    main()
