"""Exporting a checkpoint out of PyTorch, as ONNX graphs or torch.export programs, checked on real clips.

Three graphs, the experts folded; batch, frames, classes, texts and their length are dynamic. A video is encoded once:
the classifier modulates and scores what the video graph gave, for one list of labels after another.

    video        pixel_values_videos [b, t, 3, h, w]  ->  video_embeds, frame_embeds, temporal_embeds [b, d]
    text         input_ids, attention_mask [n, l]     ->  text_embeds [n, d]
    classifier   frame_embeds, temporal_embeds [b, d],
                 class_embeds [c, d]                  ->  logits [b, c], modulation [b], video_embeds [b, d]

With `config.modulation_scope` "label" modulation is [c], and the classifier's video_embeds are without it.

Shapes: b videos, t frames, n texts, l tokens, c classes, d = `projection_dim`.
"""

import copy
import importlib.util
import io
import itertools
import json
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from . import __version__
from .feature_cache import fingerprint
from .loading import load_checkpoint
from .modeling_mote import MoTEModel
from .processing import MoTEProcessor
from .processing.answers import softmax_scale
from .processing.builders.moving_shapes import encode_mp4, render_clip
from .processing.calibration import calibration_of
from .processing.files import whole_folder
from .processing.prompts import get_prompt_set

FORMATS = {"onnx": ("onnx",), "torch": ("pt2",), "both": ("onnx", "pt2")}  # suffixes of each format's files
QUANTIZED = ("video", "text")  # not the classifier, whose exp(-(1 - m) / 0.05) makes 20 of an error of 1
LEAST_OPSET = 18  # the first that PyTorch writes
ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
Tensors = dict[str, torch.Tensor]
Runner = Callable[[str, Tensors], Tensors]  # (name of a graph, its inputs) -> its outputs


def export_checkpoint(
    model: str,
    output: str | os.PathLike[str],
    *,
    format: str = "onnx",
    opset: int | None = None,
    quantize: bool = False,
    videos: Sequence[str] = (),
    tolerance: float = 1e-4,
    say: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Write a checkpoint's graphs and everything that a program needs to run them, checked against PyTorch.

    Args:
        model: folder or Hub id of a trained MoTE.
        output: folder to make: `*.onnx` with their weights in `*.onnx.data`, or `*.pt2`; `export.json` (labels,
            prompts, preprocessing, config, differences); `training_class_embeds.npy` [n, d], in the labels' order; the
            tokenizer.
        format: `onnx`, `torch` or `both`.
        opset: of ONNX, 18 or later; PyTorch's default if None.
        quantize: also write `video.int8.onnx` and `text.int8.onnx`.
        videos: clips to check on; by default `example.mp4` beside the checkpoint, or synthetic clips.
        tolerance: largest difference to PyTorch that is accepted, of any output; int8 is not held to it.
        say: is told what was found.

    Returns:
        what `export.json` holds.

    Raises:
        ValueError: if the output exists, a library is missing, the checkpoint or a clip can't be read, or a graph is
            off; nothing was written then.
        OSError: if it can't be written.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} exists: name a folder that doesn't, or remove it.")
    check_format(format, opset, quantize)
    suffixes = FORMATS[format]
    with quiet():
        loaded, processor = load_checkpoint(model)
    checks = make_checks(loaded, processor, model, videos)
    merged = part_of(loaded)
    if not merged.config.temporal_config.experts_merged:
        merged.merge_experts()
    graphs, limits = make_graphs(merged), axis_limits(loaded, processor)
    with whole_folder(output) as folder:
        with quiet():
            written_opset = write_graphs(graphs, limits, folder, suffixes, opset)
            if quantize:
                quantize_graphs(folder)
            results = {
                suffix: compare(run, loaded, checks) for suffix, run in runners(folder, suffixes, graphs, quantize)
            }
        say(f"Checked on {checks.source}; {checks.sizes_in_words()}.")
        say(differences_table(results, graphs))
        _check_tolerance({suffix: results[suffix] for suffix in suffixes}, tolerance)
        record = facts(loaded, processor, model, limits) | {
            **({} if written_opset is None else {"opset": written_opset}),
            "checked_on": {"clips": checks.source, **checks.sizes()},
            "largest_difference": {
                suffix: {f"{graph}.{value}": error for (graph, value), error in result.largest.items()}
                for suffix, result in results.items()
            },
        }
        (folder / "export.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        np.save(folder / "training_class_embeds.npy", loaded.seen_classes.weight.numpy())
        processor.tokenizer.save_pretrained(folder)
    return record


def check_format(format: str, opset: int | None, quantize: bool) -> None:
    """Refuse what makes no sense, or needs a library that is not installed.

    Raises:
        ValueError: naming it.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be {', '.join(FORMATS)}; got {format!r}.")
    for name, given in (("quantize", quantize), ("opset", opset is not None)):
        if given and format == "torch":
            raise ValueError(f"{name} is about ONNX: use it with the format onnx or both.")
    if opset is not None and opset < LEAST_OPSET:
        raise ValueError(f"opset must be at least {LEAST_OPSET}, the first that PyTorch writes; got {opset}.")
    missing = [name for name in ONNX_LIBRARIES if importlib.util.find_spec(name) is None]
    if format != "torch" and missing:
        raise ValueError(f"ONNX needs {' and '.join(missing)}: pip install 'mote-transformers[export]'.")


# -------------------------------------------------------------------------------------------------------------- graphs


class VideoTower(nn.Module):
    """Image tower and temporal layers: features that depend on the video alone."""

    def __init__(self, model: MoTEModel):
        super().__init__()
        self.model = part_of(model, "vision_model", "visual_projection", "temporal_model", "seen_classes")

    def forward(self, pixel_values_videos: torch.Tensor) -> Tensors:
        frames = self.model.get_frame_features(pixel_values_videos).pooler_output  # e, [b, t, d]
        temporal = self.model.get_temporal_features(frames).last_hidden_state  # h(e + pos), [b, t, d]
        video = self.model.get_video_features(frame_embeds=frames).pooler_output
        return {
            "video_embeds": F.normalize(video, dim=-1),
            "frame_embeds": frames.mean(1),
            "temporal_embeds": temporal.mean(1),
        }


class FrameTower(nn.Module):
    """Image tower alone: pooled features of frames, not projected. What an engine runs, see `engines`."""

    def __init__(self, model: MoTEModel):
        super().__init__()
        self.tower = model.vision_model

    def forward(self, pixel_values: torch.Tensor) -> Tensors:
        return {"pooler_output": self.tower(pixel_values=pixel_values).pooler_output}


class TextTower(nn.Module):
    """Text tower: L2-normalised features of texts."""

    def __init__(self, model: MoTEModel):
        super().__init__()
        self.model = part_of(model, "text_model", "text_projection")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tensors:
        features = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return {"text_embeds": F.normalize(features, dim=-1)}


class Classifier(nn.Module):
    """Scores of encoded videos over any classes: temporal feature modulation (Eq. 11), then cosines."""

    def __init__(self, model: MoTEModel):
        super().__init__()
        self.model = part_of(model, "logit_scale", "seen_classes")

    def forward(
        self, frame_embeds: torch.Tensor, temporal_embeds: torch.Tensor, class_embeds: torch.Tensor
    ) -> Tensors:
        # Modulation and the mean over frames commute: a video is its mean frame, [b, 1, d].
        frames, temporal = frame_embeds[:, None], temporal_embeds[:, None]
        classes = self.model.normalize_classes(class_embeds)
        logits, modulation, video = self.model.score_modulated(frames, temporal, classes)
        return {
            "logits": logits,
            "modulation": modulation,
            "video_embeds": F.normalize(video, dim=-1),
        }


def part_of(model: MoTEModel, *names: str) -> MoTEModel:
    """A copy of a model that shares its tensors, without the parts that are not named; all of it if none is.

    Args:
        model: the model.
        names: of its modules and parameters.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    part = copy.deepcopy(model, shared)
    own = [name for name, _ in (*part.named_children(), *part.named_parameters(recurse=False))]
    for name in own if names else ():
        if name not in names:
            delattr(part, name)
    return part


@dataclass
class Graph:
    """A module to export, inputs to trace it with, and the names of their dynamic axes."""

    module: nn.Module
    inputs: Tensors
    axes: dict[str, dict[int, str]]

    def shapes(self) -> dict[str, list[int | str]]:
        """Shapes of the inputs, dynamic axes by name."""
        return {
            name: [self.axes[name].get(axis, size) for axis, size in enumerate(value.shape)]
            for name, value in self.inputs.items()
        }


def make_graphs(model: MoTEModel) -> dict[str, Graph]:
    """The three graphs of a merged model."""
    # No dynamic size is 1 and no tensor is passed twice: torch.export would take either for a rule.
    config: Any = model.config
    side, width = config.vision_config.image_size, config.projection_dim
    ids = torch.full((3, 7), config.text_config.eos_token_id)
    features = {"frame_embeds": torch.randn(2, width), "temporal_embeds": torch.randn(2, width)}
    batch, texts = {0: "batch"}, {0: "texts", 1: "length"}
    return {
        "video": Graph(
            VideoTower(model),
            {"pixel_values_videos": torch.randn(2, 3, 3, side, side)},
            {"pixel_values_videos": batch | {1: "frames"}},
        ),
        "text": Graph(
            TextTower(model),
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            {"input_ids": texts, "attention_mask": texts},
        ),
        "classifier": Graph(
            Classifier(model),
            features | {"class_embeds": torch.randn(config.modulation_top_k + 2, width)},
            dict.fromkeys(features, batch) | {"class_embeds": {0: "classes"}},
        ),
    }


def frames_graph(model: MoTEModel) -> Graph:
    """The graph of the image tower alone: pixels [n, 3, h, w] to pooled features [n, width of the tower]."""
    config: Any = model.config
    side = config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Graph(FrameTower(model), {"pixel_values": pixels}, {"pixel_values": {0: "frames"}})


def axis_limits(model: MoTEModel, processor: MoTEProcessor) -> dict[str, int]:
    """Largest sizes of the axes that have one: frames per clip, and tokens per text."""
    config: Any = model.config
    return {
        "frames": config.temporal_config.max_frames,
        "length": min(config.text_config.max_position_embeddings, processor.tokenizer.model_max_length),
    }


# ------------------------------------------------------------------------------------------------------------- writing


def write_graphs(
    graphs: Mapping[str, Graph],
    limits: Mapping[str, int],
    folder: Path,
    suffixes: Sequence[str],
    opset: int | None = None,
) -> int | None:
    """Write every graph in every format.

    Args:
        graphs: by name.
        limits: largest sizes of axes, by name.
        folder: where to write.
        suffixes: `onnx`, `pt2`.
        opset: of ONNX; PyTorch's default if None.

    Returns:
        the opset that was written, if any.
    """
    written = None
    for name, graph in graphs.items():
        program = export_program(graph, limits)
        if "pt2" in suffixes:
            saved = io.BytesIO()  # torch's own writer aborts the process on a full disk
            torch.export.save(program, saved)
            (folder / f"{name}.pt2").write_bytes(saved.getbuffer())
        if "onnx" in suffixes:
            written = write_onnx(program, graph, folder / f"{name}.onnx", opset)
    return written


@torch.no_grad()
def export_program(graph: Graph, limits: Mapping[str, int]) -> torch.export.ExportedProgram:
    """One graph as a `torch.export` program; `limits` are the largest sizes of the axes that have one."""
    names = {name for axes in graph.axes.values() for name in axes.values()}
    dims = {name: torch.export.Dim(name, min=1, max=limits.get(name)) for name in names}
    program = torch.export.export(
        graph.module,
        (),
        graph.inputs,
        dynamic_shapes={name: {axis: dims[dim] for axis, dim in axes.items()} for name, axes in graph.axes.items()},
        # Modulation takes the nearest min(5, c) classes: a guard would settle on which side of 5 their number c is.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which both formats would publish
    return program


@torch.no_grad()
def write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path, opset: int | None = None) -> int:
    """Write `path`, its weights beside it, and return its opset.

    Raises:
        ValueError: if PyTorch can't write the graph in that opset.
    """
    names = list(graph.module(**graph.inputs))
    exported = torch.onnx.export(
        program, output_names=names, dynamic_shapes=graph.axes, opset_version=opset, verbose=False
    )
    assert exported is not None  # as it is if a path is given
    written = exported.model.opset_imports[""]
    if opset not in (None, written):
        raise ValueError(f"opset {opset}: this PyTorch can't write {path.name} in it; choose a lower one, from 18.")
    exported.save(path, external_data=True)
    return written


def quantize_graphs(folder: Path, names: Sequence[str] = QUANTIZED, output: Path | None = None) -> None:
    """Write `{name}.int8.onnx` of `{name}.onnx`: matrices in int8, one scale per column; not activations.

    Args:
        folder: of the float32 graphs.
        names: of the graphs.
        output: another folder to write to.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in names:
        quantize_dynamic(
            folder / f"{name}.onnx",
            (output or folder) / f"{name}.int8.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        # ONNX Runtime writes it for its owner alone.
        shutil.copymode(folder / f"{name}.onnx.data", (output or folder) / f"{name}.int8.onnx.data")


def facts(model: MoTEModel, processor: MoTEProcessor, name: str, limits: Mapping[str, int]) -> dict[str, Any]:
    """What a program that runs the graphs has to know."""
    config, video_processor = model.config, processor.video_processor
    scale = model.logit_scale.exp().item()
    return {
        "labels": list(config.id2label.values()) if config.training_classes_set else [],
        "prompts": list(get_prompt_set("mote_28")),
        "logit_scale": scale,
        "softmax_scale": softmax_scale(scale, calibration_of(config)),
        "num_frames": config.num_frames,
        "max_frames": limits["frames"],
        "image_size": config.vision_config.image_size,
        "image_mean": list(video_processor.image_mean),
        "image_std": list(video_processor.image_std),
        "max_text_length": limits["length"],
        "pad_token_id": processor.tokenizer.pad_token_id,
        "preprocessor": {key: value for key, value in video_processor.to_dict().items() if key != "auto_map"},
        "config": {key: value for key, value in config.to_dict().items() if key != "auto_map"},
        "checkpoint": name,
        "checkpoint_sha256": fingerprint(model),
        "versions": {"mote": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


# -------------------------------------------------------------------------------------------------------------- checks


@dataclass
class Checks:
    """What graphs are compared on.

    Attributes:
        source: where the clips come from, in words.
        videos: batches of pixels, each [b, t, 3, h, w].
        classes: lists of class features, each [c, d]; the last one tells a video's best class.
        texts: batches of tokens, each [n, l].
    """

    source: str
    videos: list[torch.Tensor]
    classes: list[torch.Tensor]
    texts: list[Tensors]

    def sizes(self) -> dict[str, list[str]]:
        """The sizes of all batches."""
        return {
            "videos x frames": [f"{len(pixels)} x {pixels.shape[1]}" for pixels in self.videos],
            "classes": [str(len(class_embeds)) for class_embeds in self.classes],
            "texts x tokens": ["{} x {}".format(*tokens["input_ids"].shape) for tokens in self.texts],
        }

    def sizes_in_words(self) -> str:
        """The sizes on one line."""
        return "; ".join(f"{name} {', '.join(each)}" for name, each in self.sizes().items())


def make_checks(model: MoTEModel, processor: MoTEProcessor, name: str, videos: Sequence[str]) -> Checks:
    """Batches of every kind of size, from real clips.

    Args:
        model: the checkpoint.
        processor: its processor.
        name: the checkpoint's folder or Hub id, beside which an `example.mp4` may lie.
        videos: the clips, if there are any.

    Raises:
        ValueError, OSError: if a clip can't be read.
    """
    config: Any = model.config
    limits, names = axis_limits(model, processor), list(config.id2label.values())
    with tempfile.TemporaryDirectory() as folder:
        clips, source = find_clips(videos, name, config.vision_config.image_size, Path(folder))
        batches = list(video_batches(processor, clips, config.num_frames, limits["frames"]))
    return Checks(source, batches, class_lists(model), text_batches(processor, names, limits["length"]))


def find_clips(videos: Sequence[str], model: str, side: int, folder: Path) -> tuple[list[str], str]:
    """The clips to check on, and what they are, in words; synthetic ones are written to `folder`."""
    if videos:
        return list(videos), f"the {len(videos)} clips given"
    example = Path(model).absolute().parent / "example.mp4"
    if example.is_file():
        return [str(example)], f"{example} (no clip was given)"
    for index, motion in enumerate(("moving left", "growing", "spinning")):
        frames = render_clip("red", "star", motion, np.random.default_rng(index), image_size=2 * side)
        (folder / f"{index}.mp4").write_bytes(encode_mp4(frames, fps=8))
    return [str(folder / f"{index}.mp4") for index in range(3)], "3 synthetic clips (none was given, no example.mp4)"


def video_batches(
    processor: MoTEProcessor, clips: Sequence[str], num_frames: int, max_frames: int
) -> Iterator[torch.Tensor]:
    """Pixels [b, t, 3, h, w]: every clip at `num_frames`, and some at other b and t, up to `max_frames`."""
    whole = [(min(4, len(clips) - begin), num_frames) for begin in range(0, len(clips), 4)]
    turns = itertools.count()
    for size, frames in (*whole, (1, 1), (2, num_frames), (3, min(3, max_frames)), (1, max_frames)):
        rows = []
        for turn in itertools.islice(turns, size):
            video = clips[turn % len(clips)]
            pixels = processor.video_processor(video, num_frames=frames, short_video="loop", return_tensors="pt")
            # A clip that comes again is moved sideways: no two rows of a batch are alike.
            rows.append(pixels["pixel_values_videos"][0].roll(turn // len(clips), dims=-1))
        yield torch.stack(rows)


def class_lists(model: MoTEModel) -> list[torch.Tensor]:
    """Class features [c, d] near the training classes', c = 1 to 400 and around top-k; then the training classes."""
    seen, k = model.seen_classes.weight, model.config.modulation_top_k
    draw = torch.Generator().manual_seed(0)
    lists = []
    for count in sorted({1, max(k - 1, 1), k, k + 1, 400}):
        noise = F.normalize(torch.randn(count, seen.shape[1], generator=draw), dim=-1)
        lists.append(F.normalize(seen[torch.arange(count) % len(seen)] + 0.3 * noise, dim=-1))
    return [*lists, seen]


def text_batches(processor: MoTEProcessor, names: Sequence[str], max_length: int) -> list[Tensors]:
    """Tokens [n, l] of prompts: one, as long as it is; those of one class; six, padded to `max_length`."""
    prompts = [template.replace("{}", name) for name in names for template in get_prompt_set("mote_28")]
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": True, "return_tensors": "pt"}
    batches = [
        processor.tokenizer(texts, padding=padding, **options)
        for texts, padding in ((prompts[:1], "longest"), (prompts[:28], "longest"), (prompts[-6:], "max_length"))
    ]
    return [{name: tokens[name] for name in ("input_ids", "attention_mask")} for tokens in batches]


def onnx_runner(files: Mapping[str, Path]) -> Runner:
    """Runs graphs, {name: file}, with ONNX Runtime."""
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for name, file in files.items()
    }

    def run(name: str, inputs: Tensors) -> Tensors:
        outputs = sessions[name].run(None, {key: value.numpy() for key, value in inputs.items()})
        names = [output.name for output in sessions[name].get_outputs()]
        return {key: torch.from_numpy(value) for key, value in zip(names, outputs, strict=True)}

    return run


def torch_runner(files: Mapping[str, Path]) -> Runner:
    """Runs programs, {name: file}, with PyTorch."""
    programs = {name: torch.export.load(file).module() for name, file in files.items()}
    return lambda name, inputs: programs[name](**inputs)


def runners(
    folder: Path, suffixes: Sequence[str], names: Iterable[str], quantized: bool = False
) -> Iterator[tuple[str, Runner]]:
    """What was written, a set of graphs after another: the suffix of its files (`int8` for those) and its runner."""
    names = list(names)
    for suffix in suffixes:
        runner = onnx_runner if suffix == "onnx" else torch_runner
        yield suffix, runner({name: folder / f"{name}.{suffix}" for name in names})
    if quantized:
        files = {name: folder / f"{name}{'.int8' if name in QUANTIZED else ''}.onnx" for name in names}
        yield "int8", onnx_runner(files)


@dataclass
class Differences:
    """Largest absolute difference of each (graph, output), and how many videos keep their best class."""

    largest: dict[tuple[str, str], float] = field(default_factory=dict)
    same_best: int = 0
    videos: int = 0

    def note(self, graph: str, found: Tensors, expected: Tensors) -> None:
        """Compare the outputs of one run."""
        for name, value in expected.items():
            same_shape = found[name].shape == value.shape
            difference = (found[name] - value).abs().max().item() if same_shape else math.inf
            difference = math.inf if math.isnan(difference) else difference
            self.largest[graph, name] = max(difference, self.largest.get((graph, name), 0.0))


@torch.no_grad()
def compare(run: Runner, model: MoTEModel, checks: Checks) -> Differences:
    """How far exported graphs are from a checkpoint.

    Args:
        run: runs a graph; the classifier gets what the exported video graph gave.
        model: the checkpoint, with its experts as they were loaded.
        checks: what to compare on.
    """
    differences = Differences()
    for pixels in checks.videos:
        frames = model.get_frame_features(pixels).pooler_output  # [b, t, d]
        video = model.get_video_features(frame_embeds=frames)
        encoded = run("video", {"pixel_values_videos": pixels})
        expected = {
            "video_embeds": F.normalize(video.pooler_output, dim=-1),
            "frame_embeds": frames.mean(1),
            "temporal_embeds": video.temporal_model_output.last_hidden_state.mean(1),
        }
        differences.note("video", encoded, expected)
        parts = {name: encoded[name] for name in ("frame_embeds", "temporal_embeds")}
        for class_embeds in checks.classes:
            scored = model(frame_embeds=frames, class_embeds=class_embeds)
            found = run("classifier", {**parts, "class_embeds": class_embeds})
            expected = {
                "logits": scored.logits_per_video,
                "modulation": scored.modulation,
                "video_embeds": scored.video_embeds,
            }
            differences.note("classifier", found, expected)
        differences.same_best += int((found["logits"].argmax(-1) == scored.logits_per_video.argmax(-1)).sum())
        differences.videos += len(pixels)
    for tokens in checks.texts:
        text_embeds = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        differences.note("text", run("text", tokens), {"text_embeds": text_embeds})
    return differences


def differences_table(results: Mapping[str, Differences], graphs: Mapping[str, Graph]) -> str:
    """A markdown table: graph, its inputs, the largest difference of each output; and a line on int8."""
    lines = ["| graph | inputs | largest difference to PyTorch |", "|---|---|---|"]
    for suffix in (suffix for suffix in results if suffix != "int8"):
        for name, graph in graphs.items():
            inputs = ", ".join(f"{key} [{', '.join(map(str, shape))}]" for key, shape in graph.shapes().items())
            found = [f"{value} {error:.1e}" for (of, value), error in results[suffix].largest.items() if of == name]
            lines.append(f"| {name}.{suffix} | {inputs} | {', '.join(found)} |")
    if "int8" in results:
        int8 = results["int8"]
        errors = ", ".join(f"{name} {value} {error:.1e}" for (name, value), error in int8.largest.items())
        best = f"the best of the training classes is PyTorch's for {int8.same_best} of {int8.videos} videos"
        lines.append(f"In int8, which is not held to the tolerance: {errors}; {best}.")
    return "\n".join(lines)


def _check_tolerance(results: Mapping[str, Differences], tolerance: float) -> None:
    for suffix, result in results.items():
        for (name, value), difference in result.largest.items():
            if difference > tolerance:
                raise ValueError(
                    f"{name}.{suffix}: {value} differs from PyTorch by {difference:.1e}, more than the tolerance "
                    f"{tolerance:g}; nothing was written."
                )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the chatter of exporters, and the warning that 77 frames are more than were trained."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


__all__ = [
    "FORMATS",
    "check_format",
    "export_checkpoint",
    "export_program",
    "frames_graph",
    "make_graphs",
    "part_of",
    "write_onnx",
]
