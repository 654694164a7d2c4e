"""Exports a MoTE checkpoint out of PyTorch, as ONNX graphs or torch.export programs, and checks them on real clips.

    python examples/export.py --checkpoint runs/moving_shapes/model --output mote-onnx
    python examples/export.py --checkpoint mote-vitb16 --output mote-b16 --format both --quantize --videos *.mp4

Three graphs, the experts folded; batch, frames (1 to 77), classes, texts and their length are dynamic:

    video        pixel_values_videos [b, t, 3, h, w]  ->  video_embeds, frame_embeds, temporal_embeds [b, d]
    text         input_ids, attention_mask [n, l]     ->  text_embeds [n, d]
    classifier   frame_embeds, temporal_embeds [b, d],
                 class_embeds [c, d]                  ->  logits [b, c], modulation [b], video_embeds [b, d]

A video is encoded once. Search takes the `video_embeds` of the first graph, which depend on the video alone; the last
graph modulates and scores what the first gave, for one list of labels after another. `docs/export.md` has the numpy.

Prints a table: graph, inputs, largest difference of each output to the checkpoint in PyTorch. Where one exceeds 1e-4,
the command exits with 1 and leaves nothing. Leaves in `--output`: `*.onnx` with their weights in `*.onnx.data`, or
`*.pt2`; `export.json` (labels, prompts, preprocessing, config, differences); `training_class_embeds.npy` [n, d], in
the order of the labels; the tokenizer. ONNX needs `mote-transformers[export]`.
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
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoProcessor, HfArgumentParser

import modeling_mote
from modeling_mote import MoTEModel
from modeling_mote.feature_cache import fingerprint
from modeling_mote.modeling_mote import temporal_feature_modulation
from modeling_mote.processing.builders.moving_shapes import encode_mp4, render_clip
from modeling_mote.processing.prompts import get_prompt_set

FORMATS = {"onnx": ("onnx",), "torch": ("pt2",), "both": ("onnx", "pt2")}  # files of each --format
QUANTIZED = ("video", "text")  # not the classifier, whose exp(-(1 - m) / 0.05) makes 20 of an error of 1
Tensors = dict[str, torch.Tensor]
Runner = Callable[[str, Tensors], Tensors]  # (name of a graph, its inputs) -> its outputs


def option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Arguments:
    checkpoint: str = field(metadata={"help": "MoTE checkpoint: folder or Hub id"})
    output: str = field(metadata={"help": "folder to make"})
    format: str = option("onnx", "onnx, torch (.pt2 of torch.export) or both")
    opset: int | None = option(None, "ONNX opset, 18 or later; PyTorch's default where not given")
    quantize: bool = option(False, "also write video.int8.onnx and text.int8.onnx, and print how far off they are")
    videos: list[str] = field(
        default_factory=list,
        metadata={"help": "clips to check on; where not given, example.mp4 beside the checkpoint, or synthetic clips"},
    )
    tolerance: float = option(1e-4, "largest difference to PyTorch that is accepted, of any output")

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"--format must be {', '.join(FORMATS)}; got {self.format!r}.")
        for name, given in (("quantize", self.quantize), ("opset", self.opset is not None)):
            if given and self.format == "torch":
                raise ValueError(f"--{name} is about ONNX: use it with --format onnx or both.")
        if self.opset is not None and self.opset < 18:
            raise ValueError(f"--opset must be at least 18, which is the first that PyTorch writes; got {self.opset}.")
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if self.format != "torch" and missing:
            raise ValueError(f"ONNX needs {' and '.join(missing)}: pip install 'mote-transformers[export]'.")
        if not self.tolerance >= 0:
            raise ValueError(f"--tolerance must be a number from 0 on, got {self.tolerance}.")


# -------------------------------------------------------------------------------------------------------------- graphs


class VideoTower(nn.Module):
    """Image tower and temporal layers: features that depend on the video alone."""

    def __init__(self, model: MoTEModel):
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection
        self.temporal_model = model.temporal_model

    def forward(self, pixel_values_videos: torch.Tensor) -> Tensors:
        images = self.vision_model(pixel_values_videos.flatten(0, 1)).pooler_output
        frames = self.visual_projection(images).unflatten(0, pixel_values_videos.shape[:2])  # e, [b, t, d]
        frame_embeds = frames.mean(1)
        temporal_embeds = self.temporal_model(frames).last_hidden_state.mean(1)  # mean of h(e + pos)
        video_embeds = F.normalize(temporal_embeds + frame_embeds, dim=-1)
        return {"video_embeds": video_embeds, "frame_embeds": frame_embeds, "temporal_embeds": temporal_embeds}


class TextTower(nn.Module):
    """Text tower: L2-normalised features of texts."""

    def __init__(self, model: MoTEModel):
        super().__init__()
        self.text_model, self.text_projection = model.text_model, model.text_projection

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tensors:
        pooled = self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return {"text_embeds": F.normalize(self.text_projection(pooled), dim=-1)}


class Classifier(nn.Module):
    """Scores of encoded videos over any classes: temporal feature modulation (Eq. 11), then cosines."""

    def __init__(self, model: MoTEModel):
        super().__init__()
        self.config, self.logit_scale, self.seen_classes = model.config, model.logit_scale, model.seen_classes

    def forward(
        self, frame_embeds: torch.Tensor, temporal_embeds: torch.Tensor, class_embeds: torch.Tensor
    ) -> Tensors:
        class_embeds = F.normalize(class_embeds, dim=-1)
        modulation = torch.ones_like(frame_embeds[:, 0])
        if self.config.training_classes_set:
            modulation = temporal_feature_modulation(
                frame_embeds[:, None],
                class_embeds,
                self.seen_classes.weight,
                self.config.modulation_top_k,
                self.config.modulation_temperature,
            )
        video_embeds = F.normalize(modulation[:, None] * temporal_embeds + frame_embeds, dim=-1)
        logits = self.logit_scale.exp() * video_embeds @ class_embeds.T
        return {"logits": logits, "modulation": modulation, "video_embeds": video_embeds}


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


@torch.no_grad()
def export_program(graph: Graph, limits: dict[str, int]) -> torch.export.ExportedProgram:
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
def write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path, opset: int | None) -> int:
    """Writes `path`, its weights beside it, and returns its opset.

    Raises:
        ValueError: if PyTorch can't write the graph in that opset.
    """
    names = list(graph.module(**graph.inputs))
    exported = torch.onnx.export(
        program, output_names=names, dynamic_shapes=graph.axes, opset_version=opset, verbose=False
    )
    assert exported is not None  # as it is where a path is given
    written = exported.model.opset_imports[""]
    if opset not in (None, written):
        raise ValueError(f"--opset {opset}: this PyTorch can't write {path.name} in it; choose a lower one, from 18.")
    exported.save(path, external_data=True)
    return written


def quantize(folder: Path) -> None:
    """Writes `{name}.int8.onnx` beside `{name}.onnx`: matrices in int8, a scale a column; activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for name in QUANTIZED:
        quantize_dynamic(
            folder / f"{name}.onnx",
            folder / f"{name}.int8.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        # ONNX Runtime writes it for its owner alone.
        shutil.copymode(folder / f"{name}.onnx.data", folder / f"{name}.int8.onnx.data")


# -------------------------------------------------------------------------------------------------------------- checks


def onnx_runner(files: dict[str, Path]) -> Runner:
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


def torch_runner(files: dict[str, Path]) -> Runner:
    """Runs programs, {name: file}, with PyTorch."""
    programs = {name: torch.export.load(file).module() for name, file in files.items()}
    return lambda name, inputs: programs[name](**inputs)


RUNNERS = {"onnx": onnx_runner, "pt2": torch_runner}


@dataclass
class Differences:
    """Largest absolute difference of each (graph, output), and how many videos keep their best class."""

    largest: dict[tuple[str, str], float] = field(default_factory=dict)
    same_best: int = 0
    videos: int = 0

    def note(self, graph: str, found: Tensors, expected: Tensors) -> None:
        for name, value in expected.items():
            same_shape = found[name].shape == value.shape
            difference = (found[name] - value).abs().max().item() if same_shape else math.inf
            difference = math.inf if math.isnan(difference) else difference
            self.largest[graph, name] = max(difference, self.largest.get((graph, name), 0.0))


@torch.no_grad()
def compare(
    run: Runner, model: MoTEModel, videos: list[torch.Tensor], classes: list[torch.Tensor], texts: list[Tensors]
) -> Differences:
    """How far exported graphs are from a checkpoint.

    Args:
        run: runs a graph; the classifier gets what the exported video graph gave.
        model: the checkpoint, with its experts as they were loaded.
        videos: batches of pixels, each [b, t, 3, h, w].
        classes: lists of class features, each [c, d]; the last one tells a video's best class.
        texts: batches of tokens, each [n, l].
    """
    differences = Differences()
    for pixels in videos:
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
        for class_embeds in classes:
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
    for tokens in texts:
        text_embeds = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        differences.note("text", run("text", tokens), {"text_embeds": text_embeds})
    return differences


def find_clips(arguments: Arguments, side: int, folder: Path) -> tuple[list[str], str]:
    """The clips to check on, and what they are, in words; synthetic ones are written to `folder`."""
    if arguments.videos:
        return arguments.videos, f"the {len(arguments.videos)} clips given"
    example = Path(arguments.checkpoint).absolute().parent / "example.mp4"
    if example.is_file():
        return [str(example)], f"{example} (no --videos)"
    for index, motion in enumerate(("moving left", "growing", "spinning")):
        frames = render_clip("red", "star", motion, np.random.default_rng(index), image_size=2 * side)
        (folder / f"{index}.mp4").write_bytes(encode_mp4(frames, fps=8))
    return [str(folder / f"{index}.mp4") for index in range(3)], "3 synthetic clips (no --videos, no example.mp4)"


def video_batches(processor: Any, clips: list[str], num_frames: int, max_frames: int) -> Iterator[torch.Tensor]:
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


def text_batches(processor: Any, names: list[str], max_length: int) -> list[Tensors]:
    """Tokens [n, l] of prompts: one, as long as it is; those of one class; six, padded to `max_length`."""
    prompts = [template.replace("{}", name) for name in names for template in get_prompt_set("mote_28")]
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": True, "return_tensors": "pt"}
    batches = [
        processor.tokenizer(texts, padding=padding, **options)
        for texts, padding in ((prompts[:1], "longest"), (prompts[:28], "longest"), (prompts[-6:], "max_length"))
    ]
    return [{name: tokens[name] for name in ("input_ids", "attention_mask")} for tokens in batches]


# -------------------------------------------------------------------------------------------------------------- export


def load(checkpoint: str) -> tuple[MoTEModel, Any]:
    """The model in float32, and its processor.

    Raises:
        ValueError: if they are not those of a trained MoTE.
    """
    try:
        loaded: Any = MoTEModel.from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
        model, info = loaded
        if any(key.startswith("temporal_model.") for key in info["missing_keys"]):
            raise ValueError("it has no temporal layers; train a MoTE from this CLIP first.")
        processor = AutoProcessor.from_pretrained(checkpoint)
        if getattr(processor, "video_processor", None) is None:
            raise ValueError("it has no video processor; save a MoTEProcessor with it.")
    except RuntimeError as error:
        raise ValueError(f"--checkpoint {checkpoint}: its weights do not fit its config.json.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"--checkpoint {checkpoint} can't be loaded: {error}") from error
    return model.eval(), processor


def facts(model: MoTEModel, processor: Any, arguments: Arguments, limits: dict[str, int]) -> dict[str, Any]:
    """What a program that runs the graphs has to know."""
    config, video_processor = model.config, processor.video_processor
    return {
        "labels": list(config.id2label.values()) if config.training_classes_set else [],
        "prompts": list(get_prompt_set("mote_28")),
        "logit_scale": model.logit_scale.exp().item(),
        "num_frames": config.num_frames,
        "max_frames": limits["frames"],
        "image_size": config.vision_config.image_size,
        "image_mean": list(video_processor.image_mean),
        "image_std": list(video_processor.image_std),
        "max_text_length": limits["length"],
        "pad_token_id": processor.tokenizer.pad_token_id,
        "preprocessor": {key: value for key, value in video_processor.to_dict().items() if key != "auto_map"},
        "config": {key: value for key, value in config.to_dict().items() if key != "auto_map"},
        "checkpoint": arguments.checkpoint,
        "checkpoint_sha256": fingerprint(model),
        "versions": {
            "mote": modeling_mote.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def report(results: dict[str, Differences], graphs: dict[str, Graph]) -> str:
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


def export(arguments: Arguments) -> None:
    output = Path(arguments.output)
    if output.exists():
        raise ValueError(f"--output {output} exists: name a folder that doesn't, or remove it.")
    transformers.logging.disable_progress_bar()
    with quiet():
        model, processor = load(arguments.checkpoint)
    config: Any = model.config
    suffixes = FORMATS[arguments.format]
    limits = {
        "frames": config.temporal_config.max_frames,
        "length": min(config.text_config.max_position_embeddings, processor.tokenizer.model_max_length),
    }
    with tempfile.TemporaryDirectory() as folder:
        clips, source = find_clips(arguments, config.vision_config.image_size, Path(folder))
        videos = list(video_batches(processor, clips, config.num_frames, limits["frames"]))
    classes, texts = class_lists(model), text_batches(processor, list(config.id2label.values()), limits["length"])
    merged = copy.deepcopy(model)
    if not config.temporal_config.experts_merged:
        merged.merge_experts()
    graphs = make_graphs(merged)

    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        record = facts(model, processor, arguments, limits)
        with quiet():
            for name, graph in graphs.items():
                program = export_program(graph, limits)
                if "pt2" in suffixes:
                    saved = io.BytesIO()  # torch's own writer aborts the process on a full disk
                    torch.export.save(program, saved)
                    (partial / f"{name}.pt2").write_bytes(saved.getbuffer())
                if "onnx" in suffixes:
                    record["opset"] = write_onnx(program, graph, partial / f"{name}.onnx", arguments.opset)
            results = {}
            for suffix in suffixes:
                run = RUNNERS[suffix]({name: partial / f"{name}.{suffix}" for name in graphs})
                results[suffix] = compare(run, model, videos, classes, texts)
            if arguments.quantize:
                quantize(partial)
                files = {name: partial / f"{name}{'.int8' if name in QUANTIZED else ''}.onnx" for name in graphs}
                results["int8"] = compare(onnx_runner(files), model, videos, classes, texts)

        sizes = {
            "videos x frames": [f"{len(pixels)} x {pixels.shape[1]}" for pixels in videos],
            "classes": [str(len(class_embeds)) for class_embeds in classes],
            "texts x tokens": ["{} x {}".format(*tokens["input_ids"].shape) for tokens in texts],
        }
        print(f"Checked on {source}; " + "; ".join(f"{name} {', '.join(each)}" for name, each in sizes.items()) + ".")
        print(report(results, graphs))
        for suffix in suffixes:
            for (name, value), difference in results[suffix].largest.items():
                if difference > arguments.tolerance:
                    raise ValueError(
                        f"{name}.{suffix}: {value} differs from PyTorch by {difference:.1e}, more than --tolerance "
                        f"{arguments.tolerance:g}; nothing was written."
                    )

        record["checked_on"] = {"clips": source, **sizes}
        record["largest_difference"] = {
            suffix: {f"{name}.{value}": error for (name, value), error in result.largest.items()}
            for suffix, result in results.items()
        }
        (partial / "export.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        np.save(partial / "training_class_embeds.npy", model.seen_classes.weight.numpy())
        processor.tokenizer.save_pretrained(partial)
        os.replace(partial, output)
        for file in sorted(output.iterdir()):
            print(f"{file.stat().st_size / 2**20:8.1f} MiB  {file}")
    except OSError as error:
        raise OSError(f"--output {output} can't be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main() -> None:
    try:
        parser = HfArgumentParser(Arguments, description=__doc__.splitlines()[0])  # type: ignore[arg-type]
        export(parser.parse_args_into_dataclasses()[0])
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
