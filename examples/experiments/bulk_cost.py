"""Measures what embedding many videos costs on the machine at hand, by stage, and what the engines add.

    cd examples/experiments
    python bulk_cost.py                        # ViT-B/16 sizes for the model's stage, clips of 10 s, 340 x 256, H.264
    python bulk_cost.py --videos my_videos     # on clips of your own
    python bulk_cost.py --rows engines ray     # some of it

Prints Markdown tables and writes them to results/bulk_cost.json. CPU-seconds are those of this process and its
children; they do not depend on what else runs. The rows of `engines`, `workers` and `ray` take a small model, so that
reading is what bounds them.
"""

import argparse
import json
import os
import pickle
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from benchmark import as_if_trained, word_tokenizer, write_clip

from modeling_mote import MoTEConfig, MoTEModel
from modeling_mote.bulk import VideoScorer
from modeling_mote.bulk_run import embed_all
from modeling_mote.loading import load_pipeline
from modeling_mote.processing import MoTEProcessor, MoTEVideoProcessor
from modeling_mote.processing.listing import list_items
from modeling_mote.processing.reading import PixelReader, read_in_processes
from modeling_mote.shards import list_shards
from modeling_mote.video_features import embed_videos

ROWS = ("stages", "engines", "workers", "ray", "memory")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="what to measure")
    parser.add_argument("--videos", type=Path, help="folder of clips, in place of drawn ones")
    parser.add_argument(
        "--clips", type=int, default=200, help="clips of the engines' rows; 4 times as many for memory"
    )
    parser.add_argument("--rounds", type=int, default=3, help="alternated runs of what is compared")
    parser.add_argument("--output", type=Path, default=Path("results/bulk_cost.json"))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Work(Path(temporary), arguments.videos, arguments.clips, arguments.rounds)
        for name in arguments.rows:
            found[name] = globals()[f"{name}_rows"](work)
            print(f"\n| {name} ({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}) | |\n|---|---|")
            print("\n".join(f"| {what} | {value:.4g} |" for what, value in found[name].items()), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")


class Work:
    """Clips and checkpoints in a folder for the time of a run."""

    def __init__(self, folder: Path, videos: Path | None, clips: int, rounds: int) -> None:
        self.folder, self.clips, self.rounds = folder, clips, rounds
        if videos is None:
            videos = folder / "own"
            videos.mkdir()
            write_clip(videos / "clip.mp4", 250, "libx264")
        self.own = [Path(path) for path in list_items([str(videos)])["path"].to_pylist()]

    def many(self, count: int) -> Path:
        """A folder of so many clips: the own ones, again and again."""
        folder = self.folder / f"many {count}"
        if not folder.exists():
            folder.mkdir()
            for number in range(count):
                (folder / f"{number:06}.mp4").symlink_to(self.own[number % len(self.own)])
        return folder

    def checkpoint(self, small: bool) -> str:
        """A MoTE of random weights, ViT-B/16's sizes or small ones, on frames of 224 x 224."""
        folder = self.folder / ("small" if small else "vit-b-16")
        if not folder.exists():
            vision = {"patch_size": 32, **SMALL} if small else {"patch_size": 16}
            model = as_if_trained(MoTEModel(MoTEConfig(vision_config=vision, text_config=SMALL if small else {})))
            model.save_pretrained(folder)
            MoTEProcessor(MoTEVideoProcessor(num_frames=8, short_video="loop"), word_tokenizer()).save_pretrained(
                folder
            )
        return str(folder)

    def embed(self, count: int, engine: Any = None, **options: Any) -> None:
        """A run over so many clips, into a new folder."""
        with tempfile.TemporaryDirectory(dir=self.folder) as output:
            scorer = VideoScorer(self.checkpoint(small=True), device="cpu", **options)
            done = embed_all(scorer, list_items([str(self.many(count))]), output, engine=engine)
            assert done.listed == count and not done.failed and not done.before


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU-seconds of one call, those of the processes included that ended meanwhile."""

    def used() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    before = used()
    call()
    return used() - before


def wall_seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternated(calls: dict[str, Callable[[], Any]], rounds: int, measure: Callable[..., float]) -> dict[str, float]:
    """Medians of what is measured, one of each call in turn after one that does not count."""
    values: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            value = measure(call)
            if number:
                values[name].append(value)
    return {name: statistics.median(each) for name, each in values.items()}


def stages_rows(work: Work) -> dict[str, float]:
    """CPU-seconds and bytes of 1,000 videos, by stage."""
    found: dict[str, float] = {}
    classify = load_pipeline(work.checkpoint(small=False), "cpu")
    reader = PixelReader(classify.processor.video_processor, 8)
    files = [str(work.own[number % len(work.own)]) for number in range(24)]
    pixels = reader(files[0]).pixels
    many = work.many(2000)

    found["list: CPU-s"] = cpu_seconds(lambda: list_items([str(many)])) / 2
    found["read (decode, resize): CPU-s"] = cpu_seconds(lambda: [reader(file) for file in files]) / len(files) * 1000
    zeros = Zeros(pixels.shape)
    started = cpu_seconds(lambda: list(read_in_processes(zeros, [0], 1)))
    handed = cpu_seconds(lambda: list(read_in_processes(zeros, range(200), 1)))
    found["hand over between processes: CPU-s"] = (handed - started) / 0.199
    batch = [torch.from_numpy(pixels)] * 4
    embed = lambda: embed_videos(classify.model, classify.processor.video_processor, batch)  # noqa: E731
    embed()
    found["model, ViT-B/16, float32, batch 4: CPU-s"] = cpu_seconds(embed) / len(batch) * 1000

    output, rows = work.folder / "rows", 20_000
    scorer = VideoScorer(work.checkpoint(small=False), device="cpu", num_workers=0)
    scorer.record()
    draw = np.random.default_rng(0).standard_normal((rows, scorer.ready.dim), np.float32)
    paths = [f"/videos/class {number % 400}/clip {number:08}.mp4" for number in range(rows)]
    numbers = pa.array(range(rows), pa.int64())
    nothing = {name: pa.nulls(rows) for name in ("start", "end")}
    items = pa.table({"path": paths, "size": numbers, "mtime": numbers, **nothing})
    embeds = pa.FixedSizeListArray.from_arrays(draw.ravel(), scorer.ready.dim)

    def write(_: VideoScorer, todo: pa.Table) -> Any:
        empty = dict.fromkeys(("scores", "error", "warning"), pa.nulls(rows))
        for name, column in {"embedding": embeds, **empty}.items():
            todo = todo.append_column(name, column)
        yield todo

    found["write shards: CPU-s"] = cpu_seconds(lambda: embed_all(scorer, items, output, engine=write)) / rows * 1000
    again = cpu_seconds(lambda: embed_all(scorer, items, output, engine=lambda *_: iter(())))
    found["go on: see what is done: CPU-s"] = again / rows * 1000
    found["read: MB of files"] = statistics.mean(path.stat().st_size for path in work.own) * 1000 / 1e6
    found["hand over: MB between processes"] = len(pickle.dumps(pixels)) * 1000 / 1e6
    found["write: MB of shards"] = sum(path.stat().st_size for path in list_shards(output)) / rows * 1000 / 1e6
    return found


class Zeros:
    """Pixels that cost nothing to make."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, _: int) -> np.ndarray:
        return np.zeros(self.shape, np.uint8)


def engines_rows(work: Work) -> dict[str, float]:
    """CPU-seconds of the local engine against a plain loop over the same clips."""
    classify = load_pipeline(work.checkpoint(small=True), "cpu")
    processor = classify.processor.video_processor
    reader, files = PixelReader(processor, 8), sorted(map(str, work.many(work.clips).iterdir()))

    def loop() -> None:
        for begin in range(0, len(files), 8):
            pixels = [torch.from_numpy(reader(file).pixels) for file in files[begin : begin + 8]]
            embed_videos(classify.model, processor, pixels)

    calls = {"loop": loop, "here": lambda: work.embed(work.clips, num_workers=0)}
    calls["one process that reads"] = lambda: work.embed(work.clips, num_workers=1)
    seconds = alternated(calls, work.rounds, cpu_seconds)
    return {
        "plain loop: CPU-s per 1,000": seconds["loop"] / work.clips * 1000,
        "mote embed, read in its own process, against the loop": seconds["here"] / seconds["loop"],
        "mote embed, read in another process, against the loop": seconds["one process that reads"] / seconds["loop"],
    }


def workers_rows(work: Work) -> dict[str, float]:
    """How much faster two reading processes are than one."""
    calls = {f"embed {count}": lambda count=count: work.embed(work.clips, num_workers=count) for count in (1, 2)}
    burns = range(20)  # what two cores give to two processes that share nothing, at the same time
    calls |= {f"burn {count}": lambda count=count: list(read_in_processes(burn, burns, count)) for count in (1, 2)}
    seconds = alternated(calls, work.rounds, wall_seconds)
    return {
        "videos per second with one": work.clips / seconds["embed 1"],
        "two against one": seconds["embed 1"] / seconds["embed 2"],
        "two processes that only count against one, meanwhile": seconds["burn 1"] / seconds["burn 2"],
    }


def burn(_: int) -> None:
    """About as much work as reading a clip."""
    for _ in range(3_000_000):
        pass


def ray_rows(work: Work) -> dict[str, float]:
    """What Ray takes to start, and per clip."""
    import ray

    from modeling_mote.bulk_ray import ray_engine

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    calls = {
        f"{engine} {count}": lambda engine=engine, count=count: work.embed(
            count, engine=ray_engine() if engine == "ray" else None, num_workers=2
        )
        for engine in ("here", "ray")
        for count in (work.clips, 3 * work.clips)
    }
    seconds = alternated(calls, work.rounds, wall_seconds)
    ray.shutdown()
    per_clip = {
        engine: (seconds[f"{engine} {3 * work.clips}"] - seconds[f"{engine} {work.clips}"]) / (2 * work.clips)
        for engine in ("here", "ray")
    }
    return {
        "start of the actors, s": seconds[f"ray {work.clips}"] - work.clips * per_clip["ray"],
        "per clip, against the local engine": per_clip["ray"] / per_clip["here"],
    }


def memory_rows(work: Work) -> dict[str, float]:
    """This process' own memory after a run, and after one of four times as many clips, MiB; files are not counted."""

    def own(count: int) -> float:
        work.embed(count, num_workers=1)
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) / 1024

    own(work.clips)
    return {f"MiB after {count} clips": own(count) for count in (work.clips, 4 * work.clips)}


if __name__ == "__main__":
    main()
