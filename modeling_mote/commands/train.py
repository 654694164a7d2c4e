"""Trains MoTE from a CLIP (or further from a MoTE) checkpoint, on one process or many.

    accelerate launch examples/train.py              # the demo: MovingShapes, a tiny CLIP, minutes on two CPU cores
    accelerate launch examples/train.py --config examples/recipes/kinetics400_vitb16.yaml --data_dir /data/kinetics400
    torchrun --nproc_per_node 2 examples/train.py --config my_recipe.yaml --lr 1e-4    # options override the recipe

Shows a progress bar with the loss and the accuracy on the validation clips. Leaves in `--output`: `model/` (model,
processor, card), `best/` (by validation accuracy), `checkpoints/`, `log.jsonl` (a line a step) and `curves.png`.
The same command after an interruption goes on from the last checkpoint, and computes what the first run would have.
"""

import csv
import io
import json
import math
import os
import pickle
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData
from matplotlib.figure import Figure
from safetensors import SafetensorError
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm
from transformers import AutoProcessor, AutoTokenizer, HfArgumentParser

import modeling_mote
from modeling_mote import MoTEForVideoClassification
from modeling_mote.feature_cache import class_features, frame_features_key, load_with_metadata, write_whole
from modeling_mote.processing import MoTEProcessor, MoTEVideoProcessor
from modeling_mote.processing.augmentation import train_transform
from modeling_mote.processing.builders import load_videos
from modeling_mote.processing.clips import VideoClips, collate_clips, list_clips, list_sha256
from modeling_mote.training import freeze, lr_at, parameter_groups, step_generator

HERE = Path(__file__).resolve().parent
SHARD = 64  # clips a file of cached frame features
# Options that change no loss: they may differ between a run and its continuation.
ANY_TIME = {
    *("config", "output", "cache_dir", "num_workers", "activation_checkpointing", "max_bad_fraction", "save_every"),
    *("keep", "max_steps", "tensorboard", "push_to_hub"),
}


def option(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class Arguments:
    config: str | None = option(None, "recipe: a YAML file of these options; what the command line gives wins")
    model: str = option(str(HERE / "moving_shapes_clip"), "CLIP or MoTE checkpoint to start from: folder or Hub id")
    output: str = option("runs/moving_shapes", "folder of this run, on a disk that all its machines share")

    data: str = option(
        "moving_shapes",
        "moving_shapes, kinetics, ucf101, hmdb51, a CSV (path,label[,start,end]) or a folder with a folder a class",
    )
    data_name: str | None = option(None, "configuration of a benchmark, such as split1 or kinetics400")
    data_dir: str | None = option(None, "folder of the videos; for a CSV, its own folder where not given")
    train_split: str = option("train", "split to train on")
    validation_data: str | None = option(None, "CSV or folder to validate on, where not a split of --data")
    validation_split: str | None = option("validation", "split to validate on after each epoch; `none` for none")
    shots: int | None = option(None, "few-shot: train on so many clips a class, repeated to the full list's length")
    prompts: str = option("mote_28", "prompt set of the class features")
    num_frames: int = option(8, "frames a clip")

    epochs: int = option(20, "epochs of the schedule")
    warmup_epochs: float = option(1.0, "epochs of linear warm-up")
    batch_size: int = option(64, "clips a process and forward")
    gradient_accumulation: int = option(1, "forwards an optimizer step, each with its own draws")
    lr: float = option(1e-3, "peak learning rate of the temporal head")
    clip_lr: float = option(0.0, "peak learning rate of the image tower and logit scale; 0 freezes them")
    weight_decay: float = option(0.2, "of every parameter")
    max_grad_norm: float | None = option(None, "gradient clipping")
    label_smoothing: float = option(0.0, "of both cross-entropies")
    ema: float | None = option(None, "decay of an average of the weights, which is then validated and saved")
    draws: str = option(
        "shared", "experts and temperatures: one draw for all processes, or one each", choices=["shared", "per-rank"]
    )
    seed: int = option(0, "of weights, order, frames, augmentation and draws")

    augment: bool = option(False, "random resized crop, flip and greyscale, one draw a clip")
    flip: float = option(0.5, "probability of the flip; 0 where labels tell left from right")
    sampling: str = option(
        "val", "frames of a training clip: a random one a segment, or its first", choices=["train", "val"]
    )
    cache_features: bool = option(
        True, "with a frozen image tower, no augmentation and sampling `val`: encode every frame once, to disk"
    )
    cache_dir: str | None = option(None, "folder of cached features; `cache` in the output where not given")

    mixed_precision: str | None = option(None, "accelerate's setting where not given", choices=["no", "bf16", "fp16"])
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass")
    num_workers: int = option(2, "reading processes of each process")
    max_bad_fraction: float = option(0.05, "stop when more than this share of the training clips can't be read")
    save_every: int | None = option(None, "steps between checkpoints; an epoch where not given")
    keep: int = option(2, "checkpoints to keep")
    max_steps: int | None = option(None, "stop after so many steps of the schedule")
    tensorboard: bool = option(False, "also log to tensorboard")
    push_to_hub: str | None = option(None, "repository to push the model folder to")

    def __post_init__(self):
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise ValueError(f"--{each.name} must be {' or '.join(choices)}, got {value!r}.")
        for least, names in {
            1: "epochs batch_size gradient_accumulation keep num_frames shots save_every max_steps",
            0: "num_workers seed lr clip_lr weight_decay max_grad_norm max_bad_fraction label_smoothing",
        }.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not value >= least:
                    raise ValueError(f"--{name} must be at least {least}, got {value}.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"--warmup_epochs must be in [0, --epochs), got {self.warmup_epochs} of {self.epochs}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"--ema must be between 0 and 1, got {self.ema}.")

    @property
    def cached(self) -> bool:
        return self.cache_features and self.clip_lr == 0 and not self.augment and self.sampling == "val"


def parse_arguments(given: list[str] | None = None) -> Arguments:
    """The options of the command line, and before them those of the recipe, written as if they were on it."""
    given = sys.argv[1:] if given is None else given
    parser = HfArgumentParser(Arguments, description=__doc__.splitlines()[0])  # type: ignore[arg-type]
    config = parser.parse_known_args(given)[0].config
    if config is not None:
        if not Path(config).is_file():
            raise FileNotFoundError(f"--config {config}: no such file.")
        try:
            recipe = yaml.load(
                Path(config).read_text(encoding="utf-8"), yaml.BaseLoader
            )  # every value as it is written
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"--config {config} is no YAML file: {' '.join(str(error).split())}") from error
        if not isinstance(recipe, dict):
            raise ValueError(f"--config {config} must hold lines of `option: value`.")
        unknown = sorted(set(recipe) - set(Arguments.__dataclass_fields__))
        if unknown:
            raise ValueError(f"--config {config} has no option {', '.join(unknown)}; see --help for those there are.")
        given = [f"--{name}={value}" for name, value in recipe.items() if value not in ("", "null", "~")] + given
    return parser.parse_args_into_dataclasses(given)[0]


# --------------------------------------------------------------------------------------------------------------- data


def load_split(arguments: Arguments, split: str, data: str | None = None) -> Any:
    """One split as rows of undecoded videos; prepared rows are shared by all runs of one machine."""
    takes_folder = arguments.data_dir is not None and not (data is not None and Path(data).is_dir())
    config: dict[str, Any] = {"data_dir": arguments.data_dir} if takes_folder else {}
    return load_videos(data or arguments.data, split, name=None if data else arguments.data_name, **config)


def load_data(arguments: Arguments) -> tuple[Any, Any]:
    """Rows to train on and, or None, rows to validate on."""
    rows = load_split(arguments, arguments.train_split)
    if arguments.validation_split in (None, "none"):
        return rows, None
    validation_rows = load_split(arguments, str(arguments.validation_split), arguments.validation_data)
    if arguments.validation_data is None and list_clips(rows) == list_clips(validation_rows):
        raise ValueError(
            f"--data {arguments.data} has no split {arguments.validation_split}, so it would be validated on the "
            "training clips: name others with --validation_data, or pass --validation_split none."
        )
    return rows, validation_rows


def class_indices(rows: Any, classes: list[str]) -> dict[int, int]:
    """Dataset's label → index among the training classes."""
    names = rows.features["label"].names
    labels = sorted(set(rows["label"]))
    strange = [names[label] for label in labels if names[label] not in classes]
    if strange:
        raise ValueError(f"The validation clips are of class {strange[0]!r} too, which has no training clip.")
    return {label: classes.index(names[label]) for label in labels}


def few_shot(rows: Any, shots: int, seed: int) -> tuple[Any, str]:
    """K seeded clips a class, repeated to the length of the full list; and their list, as CSV."""
    names, by_class = rows.features["label"].names, defaultdict(list)
    for index, label in enumerate(rows["label"]):
        by_class[label].append(index)
    for label, clips in sorted(by_class.items()):
        if len(clips) < shots:
            raise ValueError(f"--shots {shots}: class {names[label]!r} has only {len(clips)} training clips.")
    draw = random.Random(seed)
    chosen = sorted(index for _, clips in sorted(by_class.items()) for index in draw.sample(clips, shots))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["path", "label", "start", "end"])
    for path, label, start, end in list_clips(rows.select(chosen)):
        writer.writerow([path, names[label], start, end])
    return rows.select([chosen[index % len(chosen)] for index in range(len(rows))]), table.getvalue()


class Batches(Sampler):
    """This process' share of every batch from step `start` on, as lists of (epoch, index).

    The global batches are the same for any number of processes. Those of an epoch are all full: the rest of its order
    is left out, other clips in each epoch.
    """

    def __init__(self, num_clips: int, arguments: Arguments, accelerator: Accelerator, start: int = 0):
        self.num_clips, self.arguments, self.start = num_clips, arguments, start
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.global_batch = arguments.batch_size * self.world * arguments.gradient_accumulation
        self.steps_per_epoch = num_clips // self.global_batch
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{num_clips} training clips are fewer than one batch of {self.global_batch}: lower --batch_size."
            )
        self.total = self.steps_per_epoch * arguments.epochs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.arguments.batch_size
        for step in range(self.start, self.total):
            epoch, i = divmod(step, self.steps_per_epoch)
            if i == 0 or step == self.start:
                order = torch.randperm(self.num_clips, generator=step_generator(self.arguments.seed, epoch)).tolist()
            for micro in range(self.arguments.gradient_accumulation):
                begin = i * self.global_batch + (micro * self.world + self.rank) * size
                yield [(epoch, index) for index in order[begin : begin + size]]


def share(num_clips: int, accelerator: Accelerator, size: int) -> list[list[int]]:
    """Batches of this process' part of a split: every clip belongs to exactly one process."""
    mine = list(range(accelerator.process_index, num_clips, accelerator.num_processes))
    return [mine[begin : begin + size] for begin in range(0, len(mine), size)]


class FrameFeatures(Dataset):
    """The clips of a split as frame features [t, d] on disk, which the system reads when they are asked for."""

    input_name = "frame_embeds"

    def __init__(self, clips: VideoClips, places: list[int], paths: list[Path]):
        self.clips, self.places = clips, places
        self.labels = [label if clips.labels is None else clips.labels[label] for label in clips.rows["label"]]
        self.shards, self.errors = [], {}
        for path in paths:
            tensors, metadata = load_with_metadata(path)
            self.shards.append(tensors["frame_embeds"])
            self.errors.update({int(place): message for place, message in json.loads(metadata["errors"]).items()})

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        return self.clips.name(index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        place, sample = self.places[index], {"index": index, "label": self.labels[index]}
        if place in self.errors:
            return sample | {"error": self.errors[place]}
        return sample | {"frame_embeds": self.shards[place // SHARD][place % SHARD]}

    def inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        return {"frame_embeds": batch["frame_embeds"].to(device, non_blocking=True)}


def loader(clips: VideoClips | FrameFeatures, batches: Any, arguments: Arguments) -> DataLoader:
    return DataLoader(
        clips,
        batch_sampler=batches,
        collate_fn=partial(collate_clips, input_name=clips.input_name),
        num_workers=arguments.num_workers if isinstance(clips, VideoClips) else 0,
        pin_memory=torch.cuda.is_available(),
    )


def identity(row: dict[str, Any]) -> str:
    """What tells a clip from another, or from an older file of its name."""
    video = row["video"]
    if video.get("bytes") is not None:
        content: Any = sha256(video["bytes"]).hexdigest()
    else:
        path = Path(video["path"])
        content = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None
    return json.dumps([video.get("path"), content, row.get("start"), row.get("end")])


@torch.no_grad()
def encode_frames(model: Any, clips: VideoClips, arguments: Arguments, accelerator: Accelerator) -> FrameFeatures:
    """Frame features of a split, from disk or encoded once, by all processes; a killed run goes on where it was."""
    identities = [identity(row) for row in clips.rows]
    place: dict[str, int] = {}
    first: list[int] = []  # of equal clips, which few-shot lists have: they are encoded once
    for index, each in enumerate(identities):
        if each not in place:
            place[each] = len(first)
            first.append(index)
    sampling = {"mode": clips.sampling, "num_frames": clips.num_frames, "precision": accelerator.mixed_precision}
    key = frame_features_key(model, clips.video_processor, list(place), sampling)
    folder = Path(arguments.cache_dir or Path(arguments.output) / "cache") / f"frames-{key}"
    shards = [first[begin : begin + SHARD] for begin in range(0, len(first), SHARD)]
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(shards))]

    mine = range(accelerator.process_index, len(shards), accelerator.num_processes)
    missing, size = [number for number in mine if not paths[number].is_file()], arguments.batch_size
    batches = [shards[number][begin : begin + size] for number in missing for begin in range(0, SHARD, size)]
    read = iter(loader(clips, [batch for batch in batches if batch], arguments))
    model.eval()
    for number in tqdm(missing, desc="encoding frames", unit="file", disable=not accelerator.is_main_process):
        row = {index: row for row, index in enumerate(shards[number])}
        embeds, errors = torch.zeros(len(row), clips.num_frames, model.config.projection_dim), {}
        for _ in range(0, len(row), size):
            batch = next(read)
            errors.update({number * SHARD + row[index]: message for index, _, message in batch["errors"]})
            if batch["pixel_values_videos"] is not None:
                with accelerator.autocast():
                    encoded = model.get_frame_features(**clips.inputs(batch, accelerator.device))
                embeds[[row[index] for index in batch["indices"].tolist()]] = encoded.pooler_output.float().cpu()
        write_whole({"frame_embeds": embeds}, paths[number], {"errors": json.dumps(errors)})
    accelerator.wait_for_everyone()
    return FrameFeatures(clips, [place[each] for each in identities], paths)


# -------------------------------------------------------------------------------------------------------------- model


def load_model(arguments: Arguments) -> tuple[MoTEForVideoClassification, MoTEProcessor]:
    """The model to train and its processor; a bare CLIP gets a new temporal head and a processor of its size."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # no report on the temporal head, which a bare CLIP has none of
    try:
        model, info = MoTEForVideoClassification.from_pretrained(
            arguments.model, num_frames=arguments.num_frames, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:
        raise ValueError(f"--model {arguments.model}: its weights do not fit its config.json.") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    head = {key for key in model.state_dict() if key.startswith("temporal_model.")}
    missing = set(info["missing_keys"]) - {"seen_classes.weight"}
    lacking = sorted(missing - head if head <= missing else missing)  # a bare CLIP lacks the whole head, no other does
    if lacking:
        raise ValueError(f"--model {arguments.model} lacks {len(lacking)} of its weights, {lacking[0]} to begin with.")
    model.config.label_smoothing = arguments.label_smoothing
    try:
        processor = AutoProcessor.from_pretrained(arguments.model)
    except (OSError, ValueError):  # a tokenizer alone
        processor = None
    if isinstance(processor, MoTEProcessor):
        processor.num_frames = arguments.num_frames
        return model, processor
    side = model.config.vision_config.image_size
    pixels = getattr(processor, "image_processor", MoTEVideoProcessor)
    video_processor = MoTEVideoProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=pixels.image_mean,
        image_std=pixels.image_std,
        num_frames=arguments.num_frames,
        short_video="loop",
    )
    return model, MoTEProcessor(video_processor, AutoTokenizer.from_pretrained(arguments.model))


@torch.no_grad()
def validate(
    model: Any, clips: VideoClips | FrameFeatures, arguments: Arguments, accelerator: Accelerator
) -> dict[str, Any]:
    """Top-1 over the training classes; every clip counts once, one that can't be read as wrong."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.long, device=accelerator.device)  # right, scored
    unread = []
    for batch in loader(clips, share(len(clips), accelerator, arguments.batch_size), arguments):
        unread += [(clips.name(index), message) for index, _, message in batch["errors"]]
        if batch[clips.input_name] is not None:
            labels = batch["labels"].to(accelerator.device)
            with accelerator.autocast():
                right = model(**clips.inputs(batch, accelerator.device)).logits.argmax(-1) == labels
            counts += torch.stack([right.sum(), torch.tensor(len(right), device=right.device)])
    right, scored = accelerator.reduce(counts, "sum").tolist()
    unread = gather_object(unread) if accelerator.num_processes > 1 else unread
    return {"accuracy": right / len(clips), "scored": scored, "listed": len(clips), "bad_clips": dict(sorted(unread))}


# ------------------------------------------------------------------------------------------------------------ writing


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_model(
    model: MoTEForVideoClassification, processor: MoTEProcessor, folder: Path, record: dict[str, Any]
) -> None:
    """Model, processor, card and the record of the run, as one folder that `pipeline` loads."""
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        validation, options = record["validation"], record["arguments"]
        measured = "No validation split was given."
        if validation is not None:
            measured = (
                f"Top-1 {100 * validation['accuracy']:.1f} % on {validation['listed']} validation clips "
                f"({validation['scored']} scored), one view."
            )
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag="video-classification",
            tags=["mote", "zero-shot-video-classification"],
        )
        text = (
            f"# MoTE trained on {options['data']}\n\n"
            f"Started from `{Path(options['model']).name}`, step {record['step']}, {record['classes']} classes. "
            f"{measured}\nAll options: `training.json`. Method: MoTE, arXiv 2410.10589.\n"
        )
        ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(partial / "README.md")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss, learning rates and validation accuracy over the steps."""
    figure = Figure(figsize=(13, 3.5))
    losses, rates, accuracy = figure.subplots(1, 3, gridspec_kw={"left": 0.05, "right": 0.98, "bottom": 0.15})
    steps = [row["step"] for row in rows]
    losses.plot(steps, [row["loss"] for row in rows], linewidth=0.8)
    losses.set(title="training loss", xlabel="step")
    for name in rows[0]["lr"]:
        rates.plot(steps, [row["lr"][name] for row in rows], label=name)
    rates.set(title="learning rate", xlabel="step")
    rates.legend()
    measured = [(row["step"], 100 * row["validation"]["accuracy"]) for row in rows if "validation" in row]
    accuracy.plot(*zip(*measured, strict=True), marker="o", markersize=3)
    accuracy.set(title="validation top-1, %", xlabel="step")
    partial = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(partial, format="png", dpi=100)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_log(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The log up to a step; what a killed run wrote after its last checkpoint is computed again."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines()[:last_step] if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # cut by the kill
    return rows


class Checkpoints:
    """Everything a run needs to go on, in `checkpoints/step-N`; a checkpoint is whole or absent."""

    def __init__(self, arguments: Arguments, accelerator: Accelerator, ema: AveragedModel | None, data_sha256: str):
        self.folder, self.keep = Path(arguments.output) / "checkpoints", arguments.keep
        self.accelerator, self.ema = accelerator, ema
        self.settings = {name: value for name, value in asdict(arguments).items() if name not in ANY_TIME} | {
            "mixed_precision": accelerator.mixed_precision,
            "number of processes": accelerator.num_processes,
            "list of training clips": data_sha256,
        }

    def all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def save(self, step: int, progress: dict[str, Any]) -> None:
        whole, partial = self.folder / f"step-{step:08d}", self.folder / f".step-{step:08d}.partial"
        if self.accelerator.is_main_process:
            self.remove_partial()
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                if self.ema is not None:
                    write_whole(self.ema.state_dict(), partial / "ema.safetensors")
                write_text(
                    partial / "progress.json", json.dumps({"step": step, "settings": self.settings, **progress})
                )
                os.replace(partial, whole)
                for old in self.all()[: -self.keep]:
                    os.replace(old, partial)  # half deleted, it must not look like a checkpoint
                    shutil.rmtree(partial)
        except RuntimeError as error:  # torch.save's way to say that the disk is full
            raise OSError(f"{whole} can't be written: {str(error).splitlines()[0]}") from error
        finally:
            if self.accelerator.is_main_process:
                self.remove_partial()
        self.accelerator.wait_for_everyone()

    def remove_partial(self) -> None:
        for folder in self.folder.glob(".step-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def load_last(self) -> dict[str, Any] | None:
        if not self.all():
            return None
        last = self.all()[-1]
        try:
            progress = json.loads((last / "progress.json").read_text(encoding="utf-8"))
            changed = sorted(key for key in self.settings if self.settings[key] != progress["settings"].get(key))
            if not changed:
                self.accelerator.load_state(str(last))
                if self.ema is not None:
                    self.ema.load_state_dict(load_with_metadata(last / "ema.safetensors")[0])
        except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{last} does not fit the model, or is damaged: choose another --output, or remove it."
            ) from error
        if changed:
            raise ValueError(
                f"{last} was written with another {', '.join(changed)}: go on with the same, or choose another "
                "--output."
            )
        return progress


# ----------------------------------------------------------------------------------------------------------- training


class BadClips:
    """Training clips that can't be read: named once in the log, counted, and too many of them stop the run."""

    def __init__(self, clips: VideoClips | FrameFeatures, limit: float, known: list[list[Any]]):
        self.clips, self.limit, self.messages = clips, limit * len(clips), dict(known)

    def names(self) -> dict[str, str]:
        return {self.clips.name(index): message for index, message in self.messages.items()}

    def add(self, errors: list[tuple[int, Any, str]]) -> dict[str, str]:
        """The names that are new, with reasons."""
        known = self.names()
        self.messages.update({index: message for index, _, message in sorted(errors)})
        if len(self.messages) > self.limit:
            raise ValueError(
                f"{len(self.messages)} of {len(self.clips)} training clips can't be read, more than --max_bad_fraction"
                f" allows, the last one {list(self.names())[-1]}: run `python -m modeling_mote.processing.check_videos` on the data."
            )
        return {name: message for name, message in self.names().items() if name not in known}


def push(folder: Path, repo: str, message: str) -> None:
    """Uploads a folder as one commit: a cut upload leaves the repository as it was, and the folder here."""
    operations = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
    try:
        HfApi().create_commit(repo, operations, commit_message=message)
    except Exception as error:  # of many kinds: the Hub's, the network library's, those of the transfer
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder} is saved, but --push_to_hub {repo} failed ({why}).") from error


def train(arguments: Arguments) -> None:
    output = Path(arguments.output)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, torchrun's processes would not know of one another
        mixed_precision=arguments.mixed_precision,
        log_with="tensorboard" if arguments.tensorboard else None,
        project_dir=str(output) if arguments.tensorboard else None,
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # which accelerate would ignore
        raise ValueError("--mixed_precision fp16 needs a GPU: pass bf16 or no.")
    main_process, world, device = accelerator.is_main_process, accelerator.num_processes, accelerator.device
    if not main_process:
        transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    set_seed(arguments.seed)
    if arguments.push_to_hub is not None and main_process:  # whatever is wrong with it shows before the training
        HfApi().create_repo(arguments.push_to_hub, exist_ok=True)

    with accelerator.main_process_first():
        rows, validation_rows = load_data(arguments)
    # The classes are those with training clips, in the dataset's order: MovingShapes names its unseen ones too.
    classes = [rows.features["label"].names[label] for label in sorted(set(rows["label"]))]
    if arguments.shots is not None:
        rows, chosen = few_shot(rows, arguments.shots, arguments.seed)
        if main_process:
            write_text(output / "few_shot.csv", chosen)

    model, processor = load_model(arguments)
    model.to(device)
    freeze(model, image_tower=arguments.clip_lr == 0)
    with accelerator.main_process_first():
        cache_dir = arguments.cache_dir or output / "cache"
        model.set_training_classes(classes, class_features(model, processor, classes, arguments.prompts, cache_dir))
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable()

    side: Any = model.config.vision_config.image_size
    frames = arguments.num_frames
    videos = VideoClips(
        rows,
        processor.video_processor,
        frames,
        arguments.sampling,
        transform=train_transform(side, flip=arguments.flip) if arguments.augment else None,
        labels=class_indices(rows, classes),
        seed=arguments.seed,
    )
    clips: VideoClips | FrameFeatures = videos
    blank: tuple[int, ...] = (3, side, side)
    if arguments.cached:
        clips = encode_frames(model, videos, arguments, accelerator)
        blank = (model.seen_classes.weight.shape[1],)
    validation: VideoClips | FrameFeatures | None = None
    if validation_rows is not None:
        labels = class_indices(validation_rows, classes)
        videos = VideoClips(validation_rows, processor.video_processor, frames, "val", labels=labels)
        validation = encode_frames(model, videos, arguments, accelerator) if arguments.cached else videos

    optimizer = torch.optim.AdamW(
        parameter_groups(model, arguments.lr, arguments.clip_lr, arguments.weight_decay), betas=(0.9, 0.999), eps=1e-8
    )
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(arguments.ema)) if arguments.ema else None
    weights: Any = model if ema is None else ema.module
    prepared, optimizer = accelerator.prepare(model, optimizer)
    data_sha256 = list_sha256(rows)
    checkpoints = Checkpoints(arguments, accelerator, ema, data_sha256)
    progress = checkpoints.load_last() or {"step": 0, "best": -1.0, "bad": []}
    step, best = progress["step"], progress["best"]
    bad = BadClips(clips, arguments.max_bad_fraction, progress["bad"])
    batches = Batches(len(clips), arguments, accelerator, start=step)
    per_epoch = batches.steps_per_epoch
    last_step = min(batches.total, arguments.max_steps or batches.total)
    save_every = arguments.save_every or per_epoch
    log = read_log(output / "log.jsonl", step)
    measured = next((row["validation"] for row in reversed(log) if "validation" in row), None)
    if main_process:
        write_text(output / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
    if arguments.tensorboard:
        accelerator.init_trackers("tensorboard", config={key: str(value) for key, value in asdict(arguments).items()})
    accelerator.print(
        f"{len(clips)} clips of {len(classes)} classes, {batches.total} steps of {batches.global_batch} clips, "
        f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} trained parameters, from step {step}"
        f"{', on cached frame features' if arguments.cached else ''}"
    )

    def record() -> dict[str, Any]:
        return {
            "arguments": asdict(arguments),
            "step": step,
            "classes": len(classes),
            "clips": len(clips),
            "clips_sha256": data_sha256,
            "bad_clips": bad.names(),
            "validation": measured,
            "num_processes": world,
            "mixed_precision": accelerator.mixed_precision,
            "versions": {
                "mote": modeling_mote.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    stream = iter(loader(clips, batches, arguments))
    bar = tqdm(total=last_step, initial=step, desc="training", disable=not main_process)
    while step < last_step:
        epoch, i = divmod(step, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(epoch, i, per_epoch, arguments.epochs, arguments.warmup_epochs, group["peak_lr"])
        prepared.train()
        micro_batches = [next(stream) for _ in range(arguments.gradient_accumulation)]
        # A clip that can't be read leaves its batch smaller: the weights keep the loss a mean over all clips read.
        here = sum(len(batch["labels"]) for batch in micro_batches)
        read = accelerator.reduce(torch.tensor(here, device=device), "sum").item()
        row: dict[str, Any] = {"step": step + 1, "epoch": epoch, "skipped": batches.global_batch - read}
        if row["skipped"]:
            errors = [error for batch in micro_batches for error in batch["errors"]]
            new = bad.add(gather_object(errors) if world > 1 else errors)
            row["bad_clips"] = new
            for name, message in new.items() if main_process else ():
                bar.write(f"skipped {name}: {message}")
        loss_sum = torch.zeros((), device=device)
        for micro, batch in enumerate(micro_batches):
            weight = len(batch["labels"]) * world / max(read, 1)
            if len(batch["labels"]):
                inputs, targets = clips.inputs(batch, device), batch["labels"]
            else:  # with weight 0 this process still takes part in the exchange of gradients
                inputs, targets = (
                    {clips.input_name: torch.zeros(1, frames, *blank, device=device)},
                    torch.zeros(1, dtype=torch.long),
                )
            rank = accelerator.process_index + 1 if arguments.draws == "per-rank" else 0
            draw = step_generator(arguments.seed + 1, step * arguments.gradient_accumulation + micro, rank)
            mixture, merge_mixture = model.draw_mixtures(draw)
            last = micro + 1 == arguments.gradient_accumulation
            with nullcontext() if last else accelerator.no_sync(prepared):
                outputs = prepared(
                    **inputs,
                    labels=targets.to(device, non_blocking=True),
                    mixture=mixture,
                    merge_mixture=merge_mixture,
                )
                accelerator.backward(outputs.loss * weight)
            loss_sum += outputs.loss.detach() * weight
        loss = accelerator.reduce(loss_sum, "mean").item()
        if not math.isfinite(loss):
            raise ValueError(f"The loss is {loss} at step {step + 1}: lower --lr, or set --max_grad_norm.")
        row["loss"] = loss if read else None
        row["lr"] = {group["name"]: group["lr"] for group in optimizer.param_groups}
        if read and arguments.max_grad_norm is not None:
            row["grad_norm"] = accelerator.clip_grad_norm_(prepared.parameters(), arguments.max_grad_norm).item()
        if read:
            optimizer.step()
            if ema is not None and not accelerator.optimizer_step_was_skipped:
                ema.update_parameters(model)
        optimizer.zero_grad()
        step += 1

        if validation is not None and (step % per_epoch == 0 or step == last_step):
            measured = row["validation"] = validate(weights, validation, arguments, accelerator)
            if measured["accuracy"] > best:
                best = measured["accuracy"]
                if main_process:
                    save_model(weights, processor, output / "best", record())
        log.append(row)
        if main_process and ("validation" in row or step == last_step):
            plot_curves(log, output / "curves.png")
        bar.update()
        bar.set_postfix(loss=row["loss"], **({} if measured is None else {"top1": measured["accuracy"]}))
        if arguments.tensorboard:
            values = {"loss": row["loss"], **{f"lr/{name}": value for name, value in row["lr"].items()}}
            if "validation" in row:
                values["validation/top1"] = row["validation"]["accuracy"]
            accelerator.log(values, step=step)
        if main_process:
            with open(output / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if step % save_every == 0 or step == last_step:
            checkpoints.save(step, {"best": best, "bad": list(bad.messages.items())})

    bar.close()
    if main_process:
        save_model(weights, processor, output / "model", record())
        said = "" if measured is None else f", top-1 {100 * measured['accuracy']:.1f} % on {measured['listed']} clips"
        print(f"{output / 'model'}: step {step}{said}; {len(bad.names())} training clips could not be read")
        if arguments.push_to_hub is not None:
            push(output / "model", arguments.push_to_hub, f"MoTE, step {step}")
    accelerator.end_training()


def main() -> None:
    try:
        train(parse_arguments())
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
