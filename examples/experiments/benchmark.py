"""Measures this package against the authors' way of doing the same, in one run on the machine at hand.

    cd examples/experiments
    python benchmark.py                       # ViT-B/16 sizes, random weights, 8 x 224 frames, 400 classes
    python benchmark.py --rows forward head   # some of them
    python benchmark.py --videos my_videos    # file rows on clips of your own

Prints a table of ratios, each the median of alternated runs, and what was checked to be equal in the same run. The
authors' way is written down here from its description: float32, experts merged on every forward, eager attention,
image-tower blocks checkpointed in training, decord and PIL frame by frame where it can open the file.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast

from modeling_mote import MoTEConfig, MoTEForVideoClassification, MoTEModel, shards
from modeling_mote.engines import instruction_sets, use_engine
from modeling_mote.fastest import candidates
from modeling_mote.nearest_rows import best_of, exact_nearest
from modeling_mote.processing import (
    MoTEProcessor,
    MoTEVideoProcessor,
    ZeroShotVideoClassificationPipeline,
    decode_video,
    sample_indices,
)
from modeling_mote.processing.clips import VideoClips, collate_clips
from modeling_mote.training import freeze, parameter_groups
from modeling_mote.video_index import build_index, open_index

ROWS = ("forward", "engines", "head", "tower", "reading", "folder", "training", "start", "search")
END = 49407  # CLIP's end of text
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def timed(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def alternated(
    calls: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each call; one of each in turn, so that a slow spell of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call, clock))
    return {name: statistics.median(values) for name, values in times.items()}


class Table:
    """What was measured, printed as it comes and kept for the JSON file."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        print(f"{'what':66} | {'measured':>16} | target\n{'-' * 66}-|-{'-' * 16}-|-{'-' * 20}")

    def add(self, what: str, measured: float | str, target: str = "", unit: str = "x") -> None:
        shown = measured if isinstance(measured, str) else f"{measured:.2f} {unit}"
        print(f"{what:66} | {shown:>16} | {target}", flush=True)
        self.rows.append({"what": what, "measured": measured, "unit": unit, "target": target})


# ---------------------------------------------------------------------------------------------- the authors' way


class AuthorsMoTE(nn.Module):
    """A classifier computed as the authors compute it, on the weights of one of ours: for timing, never for use."""

    def __init__(self, model: MoTEForVideoClassification):
        super().__init__()
        self.model = model  # float32, eager attention

    def merged(self, layer: Any, mixture: torch.Tensor) -> list[torch.Tensor]:
        merged = []
        for weight in layer.mlp.parameters():  # a sum over experts, one after another, on every forward
            total = torch.zeros_like(weight[0])
            for share, expert in zip(mixture, weight, strict=True):
                total = total + share * expert
            merged.append(total)
        return merged

    def head(self, frames: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
        temporal: Any = self.model.temporal_model
        hidden = frames + temporal.position_embedding.weight[: frames.shape[1]]
        for index, layer in enumerate(temporal.layers):
            hidden = hidden + layer.self_attn(layer.layer_norm1(hidden))[0]
            up, up_bias, down, down_bias = self.merged(layer, mixture[index])
            inner = F.linear(layer.layer_norm2(hidden), up, up_bias)
            hidden = hidden + F.linear(inner * torch.sigmoid(1.702 * inner), down, down_bias)
        return hidden + frames

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        model, config = self.model, self.model.config.temporal_config
        frames = model.get_frame_features(pixels).pooler_output
        uniform = torch.full(
            (config.num_hidden_layers, config.num_experts), 1 / config.num_experts, device=pixels.device
        )
        if labels is None:
            return 100 * F.normalize(self.head(frames, uniform).mean(1), dim=-1) @ model.seen_classes.weight.T
        routed, merging = (
            mixture.to(pixels.device) for mixture in model.draw_mixtures(torch.Generator().manual_seed(0))
        )
        scale, classes = model.logit_scale.exp(), model.seen_classes.weight
        first, second = self.head(frames, routed), self.head(frames, merging)
        losses = [F.cross_entropy(scale * F.normalize(z.mean(1), dim=-1) @ classes.T, labels) for z in (first, second)]
        return losses[0] + 0.5 * losses[1] + 0.1 * F.mse_loss(second, frames)


def build(dtype: torch.dtype, attention: str, classes: int = 400, **temporal: Any) -> MoTEForVideoClassification:
    """A randomly initialised MoTE of ViT-B/16's sizes; the same weights for every dtype."""
    torch.manual_seed(0)
    config = MoTEConfig(vision_config={"patch_size": 16}, temporal_config=temporal or None, training_classes_set=True)
    config.num_labels = classes
    config._attn_implementation = attention
    model: Any = MoTEForVideoClassification(config)
    model.seen_classes.weight = F.normalize(torch.randn(classes, config.projection_dim), dim=-1)
    with torch.no_grad():  # CLIP's towers tell videos apart; random ones hardly do, which would make every top-1 a tie
        model.vision_model.embeddings.patch_embedding.weight.mul_(10)
    return model.to(DEVICE, dtype).eval()


def pixels_of(videos: int, frames: int = 8, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(videos * frames, 3, 14, 14, generator=generator)
    return F.interpolate(coarse, size=224, mode="bilinear").unflatten(0, (videos, frames)).to(DEVICE)


# ------------------------------------------------------------------------------------------------------ the rows


@torch.no_grad()
def forward_rows(table: Table, rounds: int) -> None:
    authors, video = AuthorsMoTE(build(torch.float32, "eager")), pixels_of(1)
    low, (products, flops, whole) = video.bfloat16(), tower_products(torch.bfloat16)
    ours = {
        (name, attention): build(dtype, attention)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        for attention in ("sdpa", "eager")
    }
    calls: dict[str, Callable] = {"authors": partial(authors, video), "products": products}
    calls |= {", ".join(key): partial(model, video if key[0] == "float32" else low) for key, model in ours.items()}
    found = alternated(calls, rounds)
    table.add("classifier, seconds per video, the authors' way", found["authors"], unit="s")
    for key in ours:
        target = ">= 4 x, the fastest" if key[0] == "bfloat16" else ""
        name = ", ".join(key)
        table.add(f"classifier, {name} attention, against it", found["authors"] / found[name], target)
    bound = found["authors"] / (found["products"] * whole / flops)
    table.add("... were the tower all bfloat16 GEMM and the rest free: the bound", bound)
    reference, fast_model = ours["float32", "sdpa"], ours["bfloat16", "sdpa"]
    clips = pixels_of(32, seed=2)
    exact = torch.cat([reference(clip[None]).logits for clip in clips])
    fast = torch.cat([fast_model(clip[None].bfloat16()).logits for clip in clips])
    difference = (exact - fast).abs().max().item()
    first, second = exact.topk(2, dim=-1).values.unbind(-1)
    clear = (first - second) > 2 * difference
    same = (exact.argmax(-1) == fast.argmax(-1))[clear]
    table.add("largest difference of a logit, bfloat16 to float32", difference, unit="")
    table.add("clips whose first two classes lie further apart than twice that", f"{int(clear.sum())} of {len(clips)}")
    table.add("... of which top-1 is the same", f"{int(same.sum())} of {int(clear.sum())}", "all")
    agree = F.cosine_similarity(authors(video), reference(video).logits, dim=-1).item()
    table.add("cosine of the authors' way's logits and float32 ones", agree, unit="")


@torch.no_grad()
def engines_rows(table: Table, rounds: int) -> None:
    """Whole forwards of two videos, the image tower by every engine that is installed, against the authors' way.

    In processor time, which other work on the machine disturbs less; with OMP_NUM_THREADS=1 no waiting is in it.
    """
    videos, calls = pixels_of(2), {}
    calls["authors"] = partial(AuthorsMoTE(build(torch.float32, "eager")), videos)
    plain = build(torch.float32, "sdpa")
    plain.merge_experts()  # as the commands do
    exact = plain(videos).logits
    engines = candidates()
    with tempfile.TemporaryDirectory() as folder:
        for name in engines:
            model = deepcopy(plain)
            calls[name] = partial(model, videos)
            used = use_engine(model, name, folder)
            ready = timed(partial(use_engine, model, name, folder))
            found = model(videos).logits
            if name != "torch":
                table.add(f"engine {name}: its graph made and loaded, once (0: another's)", used.seconds, unit="s")
                table.add("... loaded from the cache", ready, unit="s")
                table.add("... largest difference of a logit", f"{(found - exact).abs().max().item():.1e}")
                same = int((found.argmax(-1) == exact.argmax(-1)).sum())
                table.add("... top-1 is the same", f"{same} of {len(videos)}")
        found = alternated(calls, rounds, time.process_time)
    table.add("classifier, processor seconds for 2 videos, the authors' way", found["authors"], unit="s")
    for name in engines:
        ratio = found["authors"] / found[name]
        table.add(f"classifier, engine {name}, against the authors' way", ratio, ">= 5 x on AMX, the fastest")
        if name != "torch":
            table.add("... against torch in float32", found["torch"] / found[name])


@torch.no_grad()
def head_rows(table: Table, rounds: int) -> None:
    model, video = build(torch.bfloat16, "sdpa"), pixels_of(1).bfloat16()
    d = model.config.projection_dim
    candidates = {count: F.normalize(torch.randn(count, d, device=DEVICE), dim=-1) for count in (1, 100, 10_000)}
    folded = build(torch.bfloat16, "sdpa")
    folded.merge_experts()
    embeds = model.get_frame_features(video).pooler_output
    calls: dict[str, Callable] = {
        "tower": partial(model.get_frame_features, video),
        "400 training classes": partial(model, frame_embeds=embeds),
        "400 training classes, experts folded": partial(folded, frame_embeds=embeds),
    }
    for count, classes in candidates.items():
        calls[f"{count:,} candidates"] = partial(model, frame_embeds=embeds, class_embeds=classes)
    found = alternated(calls, 3 * rounds)
    for name in list(calls)[1:]:
        share = 100 * found[name] / found["tower"]
        table.add(f"head, modulation and scoring of {name}, share of the tower's time", share, "<= 2 %", "%")


def tower_products(dtype: torch.dtype) -> tuple[Callable[[], None], float, float]:
    """The matrix products of ViT-B/16's tower on 8 frames, their FLOPs, and those of the whole tower."""
    frames, width = 8, 768
    tokens = 197 * frames
    shapes = [(196 * frames, width, width)]  # rows, inner, columns
    for _ in range(12):
        shapes += [(tokens, width, width)] * 4 + [(tokens, width, 4 * width), (tokens, 4 * width, width)]
    operands = {
        (m, k, n): [torch.randn(size, device=DEVICE).to(dtype) for size in ((m, k), (n, k))] for m, k, n in set(shapes)
    }

    def products() -> None:
        for shape in shapes:
            F.linear(*operands[shape])

    flops = sum(2 * m * k * n for m, k, n in shapes)
    return products, flops, flops + 12 * 2 * 2 * frames * 197 * 197 * width


@torch.no_grad()
def tower_rows(table: Table, rounds: int) -> None:
    products, flops, whole = tower_products(torch.bfloat16)
    single, _, _ = tower_products(torch.float32)
    video = pixels_of(1).bfloat16()
    calls: dict[str, Callable] = {"products": products, "float32": single}
    for attention in ("sdpa", "eager"):
        model = build(torch.bfloat16, attention)
        calls[attention] = partial(model.get_frame_features, video)
        if DEVICE == "cuda" or _has_compiler():
            calls[f"{attention}, compiled"] = partial(torch.compile(model.vision_model), video[0])
    found = alternated(calls, rounds)
    roof = flops / found["products"]
    table.add("this machine's bfloat16 GEMM, the tower's own shapes", roof / 1e9, unit="GFLOP/s")
    table.add("... against its float32 GEMM", found["float32"] / found["products"])
    for name in list(calls)[2:]:
        share = 100 * whole / found[name] / roof
        table.add(f"image tower, {name}: share of that GEMM, same FLOPs", share, ">= 85 %", "%")


def _has_compiler() -> bool:
    return any((Path(folder) / "g++").exists() for folder in os.environ.get("PATH", "").split(os.pathsep))


def write_clip(path: Path, gop: int, codec: str, frames: int = 250) -> None:
    """A clip of moving noise, 340 x 256, as real encoders write them."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (64, 85, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={"g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for index in range(frames):
            image = np.roll(background, 2 * index, axis=1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def authors_reading(path: Path) -> torch.Tensor | None:
    """decord's frames one at a time, each through PIL: resize, centre crop, to a float tensor. None where it can't."""
    import decord  # Linux and Windows on x86-64 only

    reader = decord.VideoReader(str(path), num_threads=1)
    images = []
    for index in sample_indices(len(reader), 8):
        image = Image.fromarray(reader[int(index)].asnumpy())
        scale = 224 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
        images.append(
            torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1) / 255
        )
    return (torch.stack(images) - 0.45) / 0.27


def sequential(path: Path, convert: bool = True) -> list[np.ndarray]:
    """Every frame in order by one thread; without conversion, the floor of exact reading from the first frame on."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream) if convert]


def uniform_frames(metadata: Any) -> np.ndarray:
    """Eight frames spread over a video."""
    return sample_indices(metadata.total_num_frames, 8)


def reading_rows(table: Table, rounds: int, folder: Path | None) -> None:
    torch.set_num_threads(1)
    processor = MoTEVideoProcessor(num_frames=8, short_video="loop")
    with tempfile.TemporaryDirectory() as temporary:
        paths: dict[str, Path] = {}
        if folder is None:
            for name, gop, codec in (
                ("GOP 250", 250, "libx264"),
                ("GOP 12", 12, "libx264"),
                ("MPEG-4 AVI", 12, "mpeg4"),
            ):
                paths[name] = Path(temporary) / f"{name.replace(' ', '_')}.{'avi' if codec == 'mpeg4' else 'mp4'}"
                write_clip(paths[name], gop, codec)
        else:
            paths = {
                path.name: path for path in sorted(folder.iterdir()) if path.suffix in (".mp4", ".avi", ".mov", ".mkv")
            }
        for name, path in paths.items():
            try:
                every = sequential(path)
                wanted = sample_indices(len(every), 8)
                frames, _ = decode_video(path, wanted)
                equal = len(every) > 0 and all(
                    np.array_equal(a, every[i]) for a, i in zip(frames, wanted, strict=True)
                )
            except (av.FFmpegError, ValueError, IndexError) as error:
                table.add(f"{name}: not readable in order", type(error).__name__)
                continue
            calls: dict[str, Callable] = {
                "ours": lambda path=path: processor(str(path), return_tensors="pt"),
                "frames": lambda path=path: decode_video(path, uniform_frames),
                "floor": lambda path=path: sequential(path, convert=False),
                "twelve": lambda path=path: processor(str(path), num_clips=4, num_crops=3, return_tensors="pt"),
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    authors_reading(path)
                    calls["authors"] = lambda path=path: authors_reading(path)
                except Exception:  # noqa: S110, BLE001  decord is absent, or can't open the file: there is no ratio
                    pass
                found = alternated(calls, rounds, time.process_time)
            table.add(f"{name}: file to pixels, videos/s per core", 1 / found["ours"], unit="/s")
            table.add(
                f"{name}: file to 8 frames, share of the decode-only floor",
                *(100 * found["floor"] / found["frames"], ">= 85 %", "%"),
            )
            table.add(f"{name}: share of the decode-only floor", 100 * found["floor"] / found["ours"], ">= 85 %", "%")
            if "authors" in found:
                target = ">= 3 x" if "12" in name else ""
                table.add(f"{name}: against the authors' path", found["authors"] / found["ours"], target)
            table.add(f"{name}: 12 views against one, time", found["twelve"] / found["ours"])
            table.add(
                f"{name}: 12 views against one view's decoding in order", found["twelve"] / found["floor"], "<= 1.5 x"
            )
            table.add(f"{name}: frames equal to a sequential decode", str(bool(equal)), "True")
            command = [sys.executable, __file__, "--peak", str(path)]
            peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
            table.add(f"{name}: peak memory less one frame, in outputs", peak, "<= 3 x")
    torch.set_num_threads(os.cpu_count() or 1)


def clips_of(folder: Path, count: int) -> VideoClips:
    """Clips of so many video files."""
    paths = [folder / f"{index}.mp4" for index in range(count)]
    write_clip(paths[0], 250, "libx264")
    for path in paths[1:]:
        path.symlink_to(paths[0])
    rows = [{"video": {"path": str(path), "bytes": None}, "label": 0} for path in paths]
    return VideoClips(rows, MoTEVideoProcessor(num_frames=8, short_video="loop"), 8, "uniform")


@torch.no_grad()
def folder_rows(table: Table, rounds: int) -> None:
    """A folder of files end to end: reading in workers while the model computes."""
    model = build(torch.bfloat16, "sdpa")
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        clips = clips_of(Path(temporary), 16)

        def end_to_end() -> None:
            loader = torch.utils.data.DataLoader(clips, batch_size=1, num_workers=1, collate_fn=collate_clips)
            for batch in loader:
                model(clips.inputs(batch, DEVICE)["pixel_values_videos"].bfloat16())

        def cpu_seconds(call: Callable) -> float:
            start = time.process_time()
            call()
            return time.process_time() - start

        tokenizer = word_tokenizer()
        processor = MoTEProcessor(clips.video_processor, tokenizer)
        classify = ZeroShotVideoClassificationPipeline(
            model=model, processor=processor, tokenizer=tokenizer, candidate_labels=["one", "other"]
        )
        files = [row["video"]["path"] for row in clips.rows]
        clips[0], classify(files[0])
        reading = statistics.median(cpu_seconds(lambda index=index: clips[index]) for index in range(len(clips)))
        pixels = clips.inputs(collate_clips([clips[0]]), DEVICE)["pixel_values_videos"].bfloat16()
        model(pixels)
        computing = statistics.median(cpu_seconds(lambda: model(pixels)) for _ in range(5))
        found = alternated(
            {"DataLoader": end_to_end, "pipeline": lambda: classify(files, batch_size=2, num_workers=1)},
            max(1, rounds // 2),
        )
        bound = cores / (reading + computing)
        for name, seconds in found.items():
            rate = len(files) / seconds
            table.add(f"folder of files by {name}, videos/s end to end", rate, unit="/s")
            table.add("... against cores / (reading + model CPU-seconds per video)", rate / bound, ">= 0.9 x")


def training_rows(table: Table, rounds: int) -> None:
    videos, labels = pixels_of(2), torch.tensor([3, 5], device=DEVICE)
    ours, theirs = build(torch.float32, "sdpa"), AuthorsMoTE(build(torch.float32, "eager"))
    for model in (ours, theirs.model):
        freeze(model)
        model.train()
        model.vision_model.activation_checkpointing_enable()
    mixture, merge_mixture = ours.draw_mixtures(torch.Generator().manual_seed(0))
    optimizers = [
        torch.optim.AdamW(parameter_groups(model, 5e-5, 3.5e-6), fused=index == 0)
        for index, model in enumerate((ours, theirs.model))
    ]

    def our_loss(labels: torch.Tensor = labels, **inputs: Any) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16):
            return ours(labels=labels, mixture=mixture, merge_mixture=merge_mixture, **inputs).loss

    def step(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def run() -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    our_loss(pixel_values_videos=videos).backward()
    theirs(videos, labels).backward()
    other = dict(theirs.model.named_parameters())
    pairs = [
        (p.grad.flatten(), other[name].grad.flatten()) for name, p in ours.named_parameters() if p.grad is not None
    ]
    mine, other_side = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    cosine = F.cosine_similarity(mine, other_side, dim=0).item()
    for optimizer in optimizers:
        optimizer.zero_grad()
    frame_embeds = ours.get_frame_features(videos).pooler_output.detach()
    head = torch.optim.AdamW(ours.temporal_model.parameters(), lr=1e-9, fused=True)

    def one_pass() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            features = ours.get_video_features(frame_embeds=frame_embeds, mixture=merge_mixture)
            (features.pooler_output.float().square().mean()).backward()
        ours.zero_grad()

    found = alternated(
        {
            "ours": step(lambda: our_loss(pixel_values_videos=videos), optimizers[0]),
            "authors": step(lambda: theirs(videos, labels), optimizers[1]),
            "head": one_pass,
        },
        rounds,
    )
    many, classes = pixels_of(8), torch.arange(8, device=DEVICE)
    embeds = ours.get_frame_features(many).pooler_output.detach()
    cached = alternated(
        {
            "full": step(lambda: our_loss(classes, pixel_values_videos=many), optimizers[0]),
            "cached": step(lambda: our_loss(classes, frame_embeds=embeds), head),
        },
        max(1, rounds // 2),
    )
    table.add("training step, time against the authors' way", found["ours"] / found["authors"], "<= 0.5 x")
    table.add("... cosine of the gradients", cosine, unit="")
    table.add("second head pass, share of a step", 100 * found["head"] / found["ours"], "<= 3 %", "%")
    table.add(
        "step on 8 videos' cached features, speed against a full step", cached["full"] / cached["cached"], ">= 100 x"
    )
    for name in ("ours", "authors"):
        command = [sys.executable, __file__, "--peak", name]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        table.add(f"peak memory of a training step, {name}", peak, "ours <= authors" if name == "ours" else "", "MiB")


def memory(name: str) -> float:
    """A line of Linux's /proc/self/status in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def reading_peak(path: str) -> None:
    """Peak resident memory of reading a video in a process of its own, less one frame, as a share of the pixels."""
    torch.set_num_threads(1)
    processor = MoTEVideoProcessor(num_frames=8, short_video="loop")
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first.mp4"
        write_clip(first, 12, "mpeg4", 8)
        processor(str(first), return_tensors="pt")  # libraries are loaded
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    pixels = processor(path, return_tensors="pt")["pixel_values_videos"]
    peak = (memory("VmHWM") - before) * 2**20
    frames, _ = decode_video(path, [0])
    print((peak - frames.nbytes) / pixels.nbytes)


def peak_memory(which: str) -> None:
    """Peak resident memory of a training step in a process of its own, MiB above what the model takes."""
    videos, labels = pixels_of(4), torch.tensor([3, 5, 7, 9], device=DEVICE)
    model = build(torch.float32, "sdpa" if which == "ours" else "eager")
    freeze(model)
    model.train()
    model.vision_model.activation_checkpointing_enable()
    context = torch.autocast(DEVICE, torch.bfloat16) if which == "ours" else nullcontext()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of building the model
    with context:
        loss = model(videos, labels=labels).loss if which == "ours" else AuthorsMoTE(model)(videos, labels)
    loss.backward()
    print(memory("VmHWM") - before)


def processor_seconds(*command: str) -> float:
    """Processor seconds of a process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_rows(table: Table, rounds: int) -> None:
    """What a command takes before it answers, beside the imports that no command can do without."""
    with tempfile.TemporaryDirectory() as temporary:
        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = MoTEForVideoClassification(MoTEConfig(vision_config=small | {"patch_size": 32}, text_config=small))
        as_if_trained(model).save_pretrained(temporary)
        video_processor = MoTEVideoProcessor(num_frames=8, short_video="loop")
        MoTEProcessor(video_processor, word_tokenizer()).save_pretrained(temporary)
        write_clip(Path(temporary) / "clip.mp4", 250, "libx264")
        labels = ("--labels", "word", "--model", temporary)
        calls = {
            "imports": ("-c", "import torch; from transformers import CLIPModel, CLIPProcessor"),
            "package": ("-c", "import torch, modeling_mote; from transformers import CLIPModel, CLIPProcessor"),
            "answer": ("-m", "modeling_mote", "classify", f"{temporary}/clip.mp4", *labels),
            "help": ("-m", "modeling_mote", "classify", "--help"),
        }
        times: dict[str, list[float]] = {name: [processor_seconds(*call)] for name, call in calls.items()}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(processor_seconds(*call))
    found = {name: statistics.median(values[1:]) for name, values in times.items()}
    imports = found["imports"]
    table.add("importing torch and transformers' CLIP, processor time", imports, unit="s")
    table.add("import modeling_mote beyond these", found["package"] - imports, "<= 0.2 s", "s")
    table.add("mote classify of one clip, small model, against these imports", found["answer"] / imports, "<= 2.5 x")
    table.add("mote classify --help", found["help"], "<= 0.3 s", "s")


@torch.no_grad()
def as_if_trained(model: MoTEModel) -> MoTEModel:
    """The model with temporal layers that count as trained, so that commands and pipelines take it."""
    for layer in model.temporal_model.layers:
        layer.layer_norm1.bias.fill_(0.01)
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows "word", "word1" to "word99": towers of random weights need no more."""
    known = {"word": 0, "<end>": END} | {f"word{number}": number for number in range(1, 100)}
    words = Tokenizer(WordLevel(known, unk_token="word"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", END)])
    ends = {"pad_token": "<end>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=77, **ends)


def made_up_features(rows: int, seed: int, subjects: int, off: float = 0.0) -> np.ndarray:
    """Vectors much as towers give them, float32 [rows, 512], L2-normalised: a cone, topics, subjects, noise.

    Sizes of subjects are uneven, and so are the 512 numbers: a few vary most. A row has about cosine 0.93 to the
    nearest of 100,000, and 0.62 to another one.

    Args:
        rows: How many.
        seed: Of the rows; the cone, topics and subjects are always the same.
        subjects: How many.
        off: How far they lie off the cone, as texts lie off videos.
    """
    world, draw = np.random.default_rng(0), np.random.default_rng(seed)
    cone, topics, centres, other = (
        world.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(512))
        for shape in (512, (200, 512), (subjects, 512), 512)
    )
    spread = np.arange(1, 513, dtype=np.float32) ** -0.5
    spread /= np.sqrt((spread**2).mean())
    sizes = np.arange(1, subjects + 1) ** -0.7
    subject = draw.choice(subjects, rows, p=sizes / sizes.sum())
    noise = draw.standard_normal((rows, 512), dtype=np.float32) / np.float32(np.sqrt(512))
    varying = 0.5 * topics[subject % 200] + 0.5 * centres[subject] + 0.4 * noise
    vectors = cone + np.float32(off) * other + spread * varying
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_made_up_shards(folder: Path, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Shards as `mote embed` writes them, of made-up features; gives each one's first row and its vectors."""
    each = 50_000
    record = {
        **dict.fromkeys(("model", "key"), "made up"),
        **dict.fromkeys(("labels", "prompts", "window", "stride")),
        **{"format": shards.RECORD_FORMAT, "dim": 512, "descriptions": {}, "reading": {}, "versions": {}},
    }
    schema = shards.shard_schema(record)
    shards.write_record(folder, record)
    for number, first in enumerate(range(0, rows, each)):
        vectors = made_up_features(min(each, rows - first), number, max(rows // 25, 1))
        columns = {name: pa.nulls(len(vectors), schema.field(name).type) for name in schema.names}
        columns["path"] = pa.array([f"/videos/{first + row:08}.mp4" for row in range(len(vectors))])
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), 512)
        shards.write_shard(shards.shard_path(folder, number), pa.table(columns, schema=schema))
        yield first, vectors


def made_up_queries(rows: int) -> dict[str, np.ndarray]:
    """200 queries that lie among the rows' features, as videos do, and 200 off them, as texts do: [200, 512] each."""
    make = partial(made_up_features, 200, subjects=max(rows // 25, 1))
    return {"like videos": make(10**6), "like texts": make(10**6 + 1, off=1.5)}


def search_rows(table: Table, rounds: int, rows: int) -> None:
    """An index over made-up shards: what it takes to make, to open and to ask, and what it misses."""
    with tempfile.TemporaryDirectory() as temporary:
        features, place = Path(temporary) / "features", Path(temporary) / "my.index"
        queries = made_up_queries(rows)
        exact = {kind: (np.empty((200, 0), np.float32), np.empty((200, 0), np.int64)) for kind in queries}
        for first, vectors in write_made_up_shards(features, rows):
            for kind, vector in queries.items():
                scores, found = exact_nearest(vector, vectors, 10)
                pair = zip(exact[kind], (scores, found + first), strict=True)
                exact[kind] = best_of(*(np.hstack(both) for both in pair), 10)
        made: list[Any] = []
        seconds = timed(lambda: made.append(build_index(place, [features])))
        lists = made[0].contents.lists
        name = f"index of {rows:,} x 512"
        table.add(f"{name}: making it", seconds, unit="s")
        if lists:
            table.add("... kind; lists looked at", f"{lists['kind']}; {lists['probes']}")
            for kind, share in made[0].recall._asdict().items():
                table.add(f"... recall@10 as it was measured when it was made, {kind}", 100 * share, unit="%")
        size = sum(file.stat().st_size for file in place.iterdir()) / 1e9
        table.add("... on disk", size, "<= 0.7 GB at 1,000,000", "GB")
        opening = statistics.median(timed(lambda: open_index(place)) for _ in range(max(3, rounds)))
        table.add("... opening it, checksums compared", opening, "<= 1 s", "s")
        index = open_index(place)
        for kind, vectors in queries.items():
            times, shares, before = [], [], time.process_time()
            for query, right in zip(vectors, exact[kind][1], strict=True):
                hits: list[Any] = []
                times.append(1000 * timed(lambda query=query, hits=hits: hits.extend(index.search(query, 10))))
                shares.append(len(set(right) & {int(Path(hit.path).stem) for hit in hits}) / 10)
            processor = time.process_time() - before
            table.add(f"... a query {kind}, median of 200", statistics.median(times), "<= 5 ms", "ms")
            table.add("... the 95th percentile", float(np.percentile(times, 95)), unit="ms")
            table.add("... processor time per query", 1000 * processor / len(vectors), unit="ms")
            table.add("... recall@10 against exact search", 100 * statistics.mean(shares), ">= 98 %", "%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="which rows to measure")
    parser.add_argument("--rounds", type=int, default=5, help="alternated runs of each call")
    parser.add_argument("--videos", type=Path, help="folder of clips for the reading rows, in place of synthetic ones")
    parser.add_argument("--index_rows", type=int, default=100_000, help="size of the index of the row search")
    parser.add_argument("--output", type=Path, default=Path("results/benchmark"), help="folder of benchmark.json")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.peak in ("ours", "authors"):
        return peak_memory(arguments.peak)
    if arguments.peak:
        return reading_peak(arguments.peak)
    arguments.output.mkdir(parents=True, exist_ok=True)
    machine = f"{DEVICE}, {os.cpu_count()} cores ({', '.join(instruction_sets())})"
    print(f"{machine}, torch {torch.__version__}, {arguments.rounds} rounds; ViT-B/16 sizes")
    table = Table()
    extra = {"reading": (arguments.videos,), "search": (arguments.index_rows,)}
    for name in arguments.rows:
        globals()[f"{name}_rows"](table, arguments.rounds, *extra.get(name, ()))
    rows = [{**row, "measured": None if row["measured"] != row["measured"] else row["measured"]} for row in table.rows]
    (arguments.output / "benchmark.json").write_text(json.dumps(rows, indent=2) + "\n")
    assert all(not isinstance(row["measured"], float) or math.isfinite(row["measured"]) for row in table.rows)
    return None


if __name__ == "__main__":
    main()
