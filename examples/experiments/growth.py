"""Draws how time grows with each size, measured on the machine at hand, beside what bounds it.

    cd examples/experiments
    python growth.py                             # all curves; minutes, longer on a machine that does other work
    python growth.py --curves frames classes     # some of them; the others stay as they were
    python growth.py --index_rows 10000 100000 1000000 10000000
    python growth.py --redraw                    # the picture again, from the numbers that are there

Leaves the numbers in docs/growth.json, every round of every size, and the picture in docs/pictures/growth.png. Sizes
of a curve are measured in turn, so that a slow spell of the machine hits all alike. ViT-B/16 has random weights, in
float32; curves that say "small model" take the image tower of the demo.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from benchmark import (
    DEVICE,
    as_if_trained,
    build,
    made_up_queries,
    pixels_of,
    sequential,
    timed,
    uniform_frames,
    write_clip,
    write_made_up_shards,
)
from matplotlib.figure import Figure
from reports import save
from transformers import AutoTokenizer

from modeling_mote import MoTEConfig, MoTEForVideoClassification, MoTEModel
from modeling_mote.processing import (
    MoTEProcessor,
    MoTEVideoProcessor,
    ZeroShotVideoClassificationPipeline,
    classify_windows,
    decode_video,
)
from modeling_mote.processing.files import write_whole
from modeling_mote.processing.reading import PixelReader, read_in_processes
from modeling_mote.video_index import build_index, open_index

ROOT = Path(__file__).parents[2]
SMALL_CLIP = ROOT / "examples" / "moving_shapes_clip"
D = 512  # the width of the features
Call = Callable[[], Any]


class Bench:
    """Models, features and files that curves share, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Any:
        return build(torch.float32, "sdpa")

    @cached_property
    def frame_embeds(self) -> torch.Tensor:
        """Of one video, [1, 8, 512]."""
        return torch.randn(1, 8, D, device=DEVICE)

    @cached_property
    def small_pipeline(self) -> Any:
        model: Any = as_if_trained(MoTEModel.from_pretrained(SMALL_CLIP))
        size = model.config.vision_config.image_size
        crop = {"height": size, "width": size}
        video_processor = MoTEVideoProcessor(
            num_frames=8, short_video="loop", size={"shortest_edge": size}, crop_size=crop
        )
        processor = MoTEProcessor(video_processor, AutoTokenizer.from_pretrained(SMALL_CLIP))
        return ZeroShotVideoClassificationPipeline(
            model=model.eval(), processor=processor, tokenizer=processor.tokenizer, candidate_labels=["red", "blue"]
        )

    def clip(self, frames: int) -> Path:
        """A file of so many frames of 340 x 256 pixels, 25 per second."""
        path = self.folder / f"{frames}.mp4"
        if not path.exists():
            write_clip(path, 250, "libx264", frames)
        return path

    def index(self, rows: int) -> tuple[Any, np.ndarray]:
        """An index of made-up features, and the rows themselves."""
        features = self.folder / f"features-{rows}"
        vectors = np.concatenate([part for _, part in write_made_up_shards(features, rows)])
        place = self.folder / f"{rows}.index"
        build_index(place, [features])
        return open_index(place), vectors


@dataclass(frozen=True)
class Curve:
    """What is timed at each size, and what bounds it: a call that is timed too, or a number made of the first size's.

    Attributes:
        measured: What is timed, for the title.
        size: What grows, for the axis.
        bound: What the line is, for the legend.
        sizes: At least five where the machine has room for them.
        calls: (bench, size) → what is timed, and what is timed for the line, if it is not computed.
        ideal: (first size, its seconds, size) → seconds, where the line is computed.
    """

    measured: str
    size: str
    bound: str
    sizes: tuple[int, ...]
    calls: Callable[[Bench, int], tuple[Call, Call | None]]
    ideal: Callable[[int, float, int], float] | None = None


@torch.no_grad()
def forward(model: Any, **inputs: Any) -> Any:
    return model(**inputs)


@torch.no_grad()
def tower(model: Any, frames: int) -> Any:
    return model.get_frame_features(pixels_of(1, frames))


def by_pixels(shape: Callable[[int], tuple[int, ...]]) -> Callable[[Bench, int], tuple[Call, Call]]:
    """Classifies pixels of a shape that grows; the line is the image tower alone, on as many frames."""

    def calls(bench: Bench, size: int) -> tuple[Call, Call]:
        *lead, frames = shape(size)
        count = int(np.prod(lead)) * frames
        pixels = pixels_of(count // frames, frames).unflatten(0, tuple(lead))
        return partial(forward, bench.model, pixel_values_videos=pixels), partial(tower, bench.model, count)

    return calls


def classes(bench: Bench, count: int) -> tuple[Call, Call]:
    embeds = F.normalize(torch.randn(count, D, device=DEVICE), dim=-1)
    query = torch.randn(1, D, device=DEVICE)
    return partial(
        forward, bench.model, frame_embeds=bench.frame_embeds, class_embeds=embeds
    ), lambda: query @ embeds.T


def head_of(experts: int) -> Any:
    """The head of ViT-B/16 with so many experts; the towers, which are not used, have one layer."""
    layers = {"num_hidden_layers": 1}
    temporal = {"num_experts": experts}
    config = MoTEConfig(vision_config=layers, text_config=layers, temporal_config=temporal, training_classes_set=True)
    config.num_labels = 400
    return MoTEForVideoClassification(config).to(DEVICE).eval()


def experts(bench: Bench, count: int) -> tuple[Call, None]:
    return partial(forward, head_of(count), frame_embeds=bench.frame_embeds), None


def expert_training(bench: Bench, count: int) -> tuple[Call, None]:
    model = head_of(count).train()
    embeds, labels = torch.randn(8, 8, D, device=DEVICE), torch.arange(8, device=DEVICE)

    def step() -> None:
        model(frame_embeds=embeds, labels=labels).loss.backward()
        model.zero_grad()

    return step, None


def video_length(bench: Bench, seconds: int) -> tuple[Call, Call]:
    path = bench.clip(25 * seconds)
    return partial(decode_video, path, uniform_frames), partial(sequential, path, convert=False)


def windows(bench: Bench, seconds: int) -> tuple[Call, Call]:
    path, classify = bench.clip(25 * seconds), bench.small_pipeline

    def score() -> None:
        for _ in classify_windows(classify, str(path), None, window=2.0, stride=1.0):
            pass

    return score, partial(sequential, path, convert=False)


def reading_processes(bench: Bench, count: int) -> tuple[Call, None]:
    reader = PixelReader(bench.small_pipeline.processor.video_processor, 8, {})
    files = [str(bench.clip(250))] * 48
    return lambda: list(read_in_processes(reader, files, count)), None


def index_rows(bench: Bench, rows: int) -> tuple[Call, Call]:
    index, vectors = bench.index(rows)
    queries = made_up_queries(rows)["like videos"][:20]

    def ask() -> None:
        for query in queries:
            index.search(query, 10)

    def scan() -> None:
        for query in queries:
            np.argpartition(vectors @ query, -10)

    return ask, scan


def level(first: int, seconds: float, size: int) -> float:
    return seconds


def shared_by_cores(first: int, seconds: float, size: int) -> float:
    return seconds / min(size, os.cpu_count() or 1)


CURVES = {
    "frames": Curve("one video", "frames", "image tower alone", (2, 4, 8, 12, 16), by_pixels(lambda t: (1, t))),
    "videos": Curve(
        "videos of 2 frames", "videos per batch", "image tower alone", (1, 2, 4, 6, 8), by_pixels(lambda b: (b, 2))
    ),
    "views": Curve(
        "one video of 2 frames", "views", "image tower alone", (1, 2, 3, 4, 6), by_pixels(lambda v: (1, v, 2))
    ),
    "classes": Curve(
        "head, modulation, scores of one video",
        "candidate classes",
        "one product with their features",
        (1, 20_000, 40_000, 60_000, 80_000, 100_000),
        classes,
    ),
    "experts": Curve("head of one video, inference", "experts", "as with one", (1, 2, 4, 8, 12, 16), experts, level),
    "training": Curve(
        "head of 8 videos, training step", "experts", "as with one", (1, 2, 4, 8, 12, 16), expert_training, level
    ),
    "length": Curve(
        "reading 8 frames of a file", "seconds of video", "PyAV decoding it", (10, 20, 40, 60, 80), video_length
    ),
    "windows": Curve(
        "a window per second, small model", "seconds of video", "PyAV decoding it", (10, 20, 40, 60, 80), windows
    ),
    "processes": Curve(
        "reading 48 clips of 10 s",
        "reading processes",
        f"one's time shared by {os.cpu_count()} cores",
        (1, 2, 3, 4, 5),
        reading_processes,
        shared_by_cores,
    ),
    "index": Curve(
        "20 queries of a search index",
        "rows",
        "exact scan with NumPy",
        (10_000, 50_000, 100_000, 200_000, 300_000),
        index_rows,
    ),
}


def measure(curve: Curve, rounds: int) -> dict[str, Any]:
    """Every round of every size in turn, after one that is not counted: milliseconds, of the curve and of its line."""
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary))
        calls = [curve.calls(bench, size) for size in curve.sizes]
        times: dict[str, list[list[float]]] = {"measured": [[] for _ in calls], "bound": [[] for _ in calls]}
        for number in range(rounds + 1):
            for position, pair in enumerate(calls):
                for kind, call in zip(times, pair, strict=True):
                    seconds = 0.0 if call is None else timed(call)
                    if number and call is not None:
                        times[kind][position].append(1000 * seconds)
    if curve.ideal is not None:
        first = median(times["measured"][0])
        times["bound"] = [[curve.ideal(curve.sizes[0], first, size)] for size in curve.sizes]
    return {"sizes": list(curve.sizes), **times}


def exponent(sizes: list[int], times: list[list[float]]) -> float:
    """How time grows over the larger half of the sizes: 1 is in proportion, 2 with the square, 0 not at all."""
    from_ = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[from_:]), np.log([median(each) for each in times[from_:]]), 1)[0])


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """A plot per curve, both axes from 0: points are medians, bars reach from the fastest round to the slowest."""
    columns = 3
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(13, 3.4 * lines), layout="constrained")
    plots = figure.subplots(lines, columns, squeeze=False).flat
    for axis in plots:
        axis.axis("off")
    for axis, (name, rows) in zip(figure.axes, found.items(), strict=False):
        curve, sizes = CURVES[name], rows["sizes"]
        axis.axis("on")
        middle = [median(each) for each in rows["measured"]]
        spread = [
            [value - min(each) for value, each in zip(middle, rows["measured"], strict=True)],
            [max(each) - value for value, each in zip(middle, rows["measured"], strict=True)],
        ]
        axis.errorbar(sizes, middle, spread, marker="o", color="#0072b2", capsize=3, label=curve.measured)
        axis.plot(sizes, [median(each) for each in rows["bound"]], "--", color="#d55e00", label=curve.bound)
        axis.set(xlim=(0, 1.05 * sizes[-1]), xlabel=curve.size, ylabel="ms", title=curve.measured)
        axis.set_ylim(0, 1.1 * max(max(each) for each in rows["measured"] + rows["bound"]))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.locator_params(axis="x", nbins=5)
        axis.legend(fontsize=8, loc="best")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", nargs="*", choices=CURVES, default=list(CURVES), help="which to measure")
    parser.add_argument("--rounds", type=int, default=3, help="times that each size is measured")
    parser.add_argument("--index_rows", type=int, nargs="*", help="sizes of the search index, if not the usual ones")
    parser.add_argument("--redraw", action="store_true", help="only draw again what was measured")
    parser.add_argument("--report", type=Path, default=ROOT / "docs", help="folder of growth.json and of pictures/")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    numbers = arguments.report / "growth.json"
    found = json.loads(numbers.read_text()) if numbers.is_file() else {}
    for name in () if arguments.redraw else arguments.curves:
        curve = CURVES[name]
        if name == "index" and arguments.index_rows:
            curve = Curve(**{**vars(curve), "sizes": tuple(arguments.index_rows)})
        found[name] = rows = measure(curve, arguments.rounds)
        grows = exponent(rows["sizes"], rows["measured"])
        print(f"{name}: {curve.measured}, by {curve.size}: grows as size^{grows:.2f}", flush=True)
        found = {name: found[name] for name in CURVES if name in found}
        write_whole(numbers, json.dumps(found, indent=1) + "\n")
    draw(found, arguments.report / "pictures" / "growth.png")


if __name__ == "__main__":
    main()
