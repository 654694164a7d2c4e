"""Trains MoTE from a CLIP (or further from a MoTE) checkpoint, on one process or many.

    accelerate launch examples/train.py              # the demo: MovingShapes, a tiny CLIP, minutes on two CPU cores
    accelerate launch examples/train.py --config examples/recipes/kinetics400_vitb16.yaml --data_dir /data/kinetics400
    torchrun --nproc_per_node 2 examples/train.py --config my_recipe.yaml --lr 1e-4    # options override the recipe

Shows a progress bar with the loss and the accuracy on the validation clips. Leaves in `--output`: `model/` (model,
processor, card), `best/` (by validation accuracy), `checkpoints/`, `log.jsonl` (a line a step) and `curves.png`.
The same command after an interruption goes on from the last checkpoint, and computes what the first run would have.
"""

import csv
import hashlib
import io
import json
import math
import os
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from huggingface_hub import ModelCard, ModelCardData
from matplotlib.figure import Figure
from safetensors import SafetensorError
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import AutoProcessor, AutoTokenizer, HfArgumentParser

from modeling_mote import MoTEForVideoClassification
from modeling_mote.feature_cache import class_features, frame_features_key, load_with_metadata, write_whole
from modeling_mote.training import freeze, lr_at, parameter_groups, step_generator
from processing import MoTEProcessor, MoTEVideoProcessor
from processing.augmentation import train_transform
from processing.builders import load_videos
from processing.clips import VideoClips, collate_clips

HERE = Path(__file__).resolve().parent
# May differ between a run and its continuation: they change no loss.
NOT_IN_LOSSES = (
    "config",
    "output",
    "num_workers",
    "save_every",
    "keep",
    "tensorboard",
    "push_to_hub",
    "max_steps",
    "cache_dir",
)


def option(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class Arguments:
    config: str | None = option(None, "recipe: a YAML file of these options; what the command line gives wins")
    model: str = option(str(HERE / "moving_shapes_clip"), "CLIP or MoTE checkpoint to start from: folder or Hub id")
    output: str = option("runs/moving_shapes", "folder of this run")

    data: str = option(
        "moving_shapes",
        "moving_shapes, kinetics, ucf101, hmdb51, a CSV (path,label[,start,end]) or a folder with a folder a class",
    )
    data_name: str | None = option(None, "configuration of a benchmark, such as split1 or kinetics400")
    data_dir: str | None = option(None, "folder of the videos")
    train_split: str = option("train", "split to train on")
    validation_data: str | None = option(None, "CSV or folder to validate on, where not a split of --data")
    validation_split: str | None = option(
        "validation", "split to validate on after each epoch; `none` for no validation"
    )
    shots: int | None = option(None, "few-shot: train on so many clips a class, repeated to the full list's length")
    prompts: str = option("mote_28", "prompt set of the class features")
    num_frames: int = option(8, "frames a clip")

    epochs: int = option(30, "epochs of the schedule")
    warmup_epochs: float = option(1.0, "epochs of linear warm-up")
    batch_size: int = option(64, "clips a process and forward")
    gradient_accumulation: int = option(1, "forwards an optimizer step")
    lr: float = option(1e-3, "peak learning rate of the temporal head")
    clip_lr: float = option(0.0, "peak learning rate of the image tower and logit scale; 0 freezes them")
    weight_decay: float = option(0.2, "of every parameter")
    max_grad_norm: float | None = option(None, "gradient clipping")
    label_smoothing: float = option(0.0, "of both cross-entropies")
    ema: float | None = option(
        None, "decay of an exponential moving average of the weights, which is then validated and saved"
    )
    draws: str = option(
        "shared",
        "experts and temperatures: the same on every process, or drawn by each",
        choices=["shared", "per-rank"],
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

    mixed_precision: str | None = option(
        None, "no, bf16 or fp16; accelerate's setting where not given", choices=["no", "bf16", "fp16"]
    )
    activation_checkpointing: bool = option(False, "recompute activations in the backward pass")
    num_workers: int = option(2, "reading processes of each process")
    max_bad_fraction: float = option(0.05, "stop when more than this share of the training clips can't be read")
    save_every: int | None = option(None, "steps between checkpoints; an epoch where not given")
    keep: int = option(2, "checkpoints to keep")
    max_steps: int | None = option(None, "stop after so many steps of the schedule")
    tensorboard: bool = option(False, "also log to tensorboard")
    push_to_hub: str | None = option(None, "repository to push model and processor to")

    def __post_init__(self):
        for name in ("epochs", "batch_size", "gradient_accumulation", "keep", "num_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"--warmup_epochs must be in [0, --epochs), got {self.warmup_epochs} of {self.epochs}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"--ema must be between 0 and 1, got {self.ema}.")
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"--shots must be at least 1, got {self.shots}.")

    @property
    def cached(self) -> bool:
        return self.cache_features and self.clip_lr == 0 and not self.augment and self.sampling == "val"


def parse_arguments() -> Arguments:
    parser = HfArgumentParser(Arguments, description=__doc__.splitlines()[0])
    config = parser.parse_known_args()[0].config
    if config is not None:
        if not Path(config).is_file():
            raise FileNotFoundError(f"--config {config}: no such file.")
        recipe = yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}
        unknown = sorted(set(recipe) - set(Arguments.__dataclass_fields__))
        if unknown:
            raise ValueError(f"--config {config} has no option {', '.join(unknown)}; see --help for those there are.")
        parser.set_defaults(**recipe)
    return parser.parse_args_into_dataclasses()[0]


# --------------------------------------------------------------------------------------------------------------- data


def load_split(arguments: Arguments, split: str, data: str | None = None) -> Any:
    """One split as rows of undecoded videos; prepared rows are shared by all runs of one machine."""
    config = {} if arguments.data_dir is None or data is not None else {"data_dir": arguments.data_dir}
    return load_videos(data or arguments.data, split, name=None if data else arguments.data_name, **config)


def few_shot(rows: Any, arguments: Arguments) -> Any:
    """K seeded clips a class, repeated to the length of the full list; the list is written beside the result."""
    by_class = defaultdict(list)
    for index, label in enumerate(rows["label"]):
        by_class[label].append(index)
    short = [rows.features["label"].names[label] for label, clips in by_class.items() if len(clips) < arguments.shots]
    if short:
        raise ValueError(f"--shots {arguments.shots}: class {short[0]!r} has fewer training clips than that.")
    drawn = random.Random(arguments.seed)
    chosen = sorted(index for _, clips in sorted(by_class.items()) for index in drawn.sample(clips, arguments.shots))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["path", "label"])
    for row in rows.select(chosen):
        writer.writerow([row.get("path") or row["video"].get("path"), rows.features["label"].names[row["label"]]])
    write_text(Path(arguments.output) / "few_shot.csv", table.getvalue())
    return rows.select([chosen[index % len(chosen)] for index in range(len(rows))])


def identity(row: dict[str, Any]) -> list[Any]:
    """What tells a clip from another, or from an older file of its name."""
    video = row["video"]
    if video.get("bytes") is not None:
        content: Any = hashlib.sha256(video["bytes"]).hexdigest()
    else:
        path = Path(video["path"])
        content = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None
    return [video.get("path"), content, row.get("start"), row.get("end")]


class Batches(Sampler):
    """This process' share of every batch from step `start` on, as lists of (epoch, index).

    The global batches are the same for any number of processes.
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


def loader(clips: VideoClips, batches: Any, arguments: Arguments) -> DataLoader:
    return DataLoader(clips, batch_sampler=batches, collate_fn=collate_clips, num_workers=arguments.num_workers)


def feature_batches(
    features: dict[str, torch.Tensor], errors: dict[int, str], batches: Any
) -> Iterator[dict[str, Any]]:
    """Batches like those of `collate_clips`, with cached frame features in place of pixels."""
    for batch in batches:
        keys = [key[1] if isinstance(key, tuple) else key for key in batch]
        read = torch.tensor([index for index in keys if index not in errors], dtype=torch.long)
        yield {
            "frame_embeds": features["frame_embeds"][read] if len(read) else None,
            "labels": features["labels"][read],
            "indices": read,
            "errors": [(index, None, errors[index]) for index in keys if index in errors],
        }


@torch.no_grad()
def encode_frames(
    model: Any, clips: VideoClips, arguments: Arguments, accelerator: Accelerator, title: str
) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
    """Frame features [n, t, d] and labels [n] of a split, from disk or encoded once by all processes; its errors."""
    sampling = {"mode": clips.sampling, "num_frames": clips.num_frames, "precision": accelerator.mixed_precision}
    key = frame_features_key(model, clips.video_processor, [identity(row) for row in clips.rows], sampling)
    folder = Path(arguments.cache_dir or Path(arguments.output) / "cache")
    path = folder / f"frames-{key}.safetensors"
    if not path.is_file():
        model.eval()
        encoded, indices, errors = [], [], {}
        batches = loader(clips, share(len(clips), accelerator, arguments.batch_size), arguments)
        for batch in tqdm(batches, desc=f"encoding {title}", disable=not accelerator.is_main_process):
            errors.update((index, message) for index, _, message in batch["errors"])
            if batch["pixel_values_videos"] is not None:
                with accelerator.autocast():
                    features = model.get_frame_features(
                        batch["pixel_values_videos"].to(accelerator.device)
                    ).pooler_output
                encoded.append(features.float().cpu())
                indices.append(batch["indices"])
        width = model.config.projection_dim
        part = {
            "frame_embeds": torch.cat([*encoded, torch.empty(0, clips.num_frames, width)]),
            "indices": torch.cat([*indices, torch.empty(0, dtype=torch.long)]),
        }
        write_whole(part, path.with_suffix(f".part{accelerator.process_index}"), {"errors": json.dumps(errors)})
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            whole, errors = torch.zeros(len(clips), clips.num_frames, width), {}
            parts = [path.with_suffix(f".part{rank}") for rank in range(accelerator.num_processes)]
            for part_path in parts:
                tensors, metadata = load_with_metadata(part_path)
                whole[tensors["indices"]] = tensors["frame_embeds"]
                errors.update(json.loads(metadata["errors"]))
            write_whole({"frame_embeds": whole}, path, {"errors": json.dumps(errors)})
            for part_path in parts:
                part_path.unlink()
        accelerator.wait_for_everyone()
    tensors, metadata = load_with_metadata(path)
    labels = [label if clips.labels is None else clips.labels[label] for label in clips.rows["label"]]
    tensors["labels"] = torch.tensor(labels, dtype=torch.long)
    return tensors, {int(index): message for index, message in json.loads(metadata["errors"]).items()}


# -------------------------------------------------------------------------------------------------------------- model


def load_model(arguments: Arguments) -> tuple[MoTEForVideoClassification, MoTEProcessor]:
    """The model to train and its processor; a bare CLIP gets a new temporal head and a processor of its size."""
    model = MoTEForVideoClassification.from_pretrained(
        arguments.model, num_frames=arguments.num_frames, dtype=torch.float32
    )
    model.config.label_smoothing = arguments.label_smoothing
    side = model.config.vision_config.image_size
    video_processor = MoTEVideoProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        num_frames=arguments.num_frames,
        short_video="loop",
    )
    try:
        processor = AutoProcessor.from_pretrained(arguments.model)
    except (OSError, ValueError):
        processor = None
    if isinstance(processor, MoTEProcessor):
        processor.num_frames = arguments.num_frames
        return model, processor
    return model, MoTEProcessor(
        video_processor=video_processor, tokenizer=AutoTokenizer.from_pretrained(arguments.model)
    )


@torch.no_grad()
def validate(
    model: Any, batches: Iterator[dict[str, Any]], num_clips: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Top-1 over the training classes; every clip counts once, one that can't be read as wrong."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.long, device=accelerator.device)  # right, scored
    for batch in batches:
        inputs = model_inputs(batch, accelerator)
        if inputs is not None:
            with accelerator.autocast():
                predicted = model(**inputs).logits.argmax(-1)
            counts += torch.stack(
                [
                    (predicted == batch["labels"].to(predicted.device)).sum(),
                    torch.tensor(len(predicted), device=predicted.device),
                ]
            )
    right, scored = accelerator.reduce(counts, "sum").tolist()
    return {"accuracy": right / num_clips, "scored": scored, "listed": num_clips}


def model_inputs(batch: dict[str, Any], accelerator: Accelerator) -> dict[str, torch.Tensor] | None:
    name = "frame_embeds" if "frame_embeds" in batch else "pixel_values_videos"
    return None if batch[name] is None else {name: batch[name].to(accelerator.device, non_blocking=True)}


# ------------------------------------------------------------------------------------------------------------ writing


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def replace_folder(partial: Path, folder: Path) -> None:
    """Puts a finished folder in place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def save_model(
    model: MoTEForVideoClassification, processor: MoTEProcessor, folder: Path, record: dict[str, Any]
) -> None:
    """Model, processor, card and the record of the run, as one folder that `pipeline` loads."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        validation = record["validation"]
        measured = (
            "No validation split was given."
            if validation is None
            else (
                f"Top-1 {100 * validation['accuracy']:.1f} % on {validation['listed']} validation clips "
                f"({validation['scored']} scored), one view."
            )
        )
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag="video-classification",
            tags=["mote", "zero-shot-video-classification"],
        )
        options = record["arguments"]
        text = (
            f"# MoTE trained on {options['data']}\n\n"
            f"Started from `{Path(options['model']).name}`, step {record['step']}, {record['classes']} classes. "
            f"{measured}\nAll options: `training.json`. Method: MoTE, arXiv 2410.10589.\n"
        )
        ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(partial / "README.md")
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss, learning rates and validation accuracy over the steps."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    losses, rates, accuracy = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    losses.plot(steps, [row["loss"] for row in rows], linewidth=0.8)
    losses.set(title="training loss", xlabel="step")
    for name in rows[0]["lr"]:
        rates.plot(steps, [row["lr"][name] for row in rows], label=name)
    rates.set(title="learning rate", xlabel="step")
    rates.legend()
    measured = [row for row in rows if "validation" in row]
    accuracy.plot(
        [row["step"] for row in measured],
        [100 * row["validation"]["accuracy"] for row in measured],
        marker="o",
        markersize=3,
    )
    accuracy.set(title="validation top-1, %", xlabel="step")
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", dpi=100)
    os.replace(partial, path)


def read_log(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The log up to a step; what a killed run wrote after its last checkpoint is computed again."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # cut by the kill
        if row["step"] > last_step:
            break
        rows.append(row)
    return rows


class Checkpoints:
    """Everything a run needs to go on, in `checkpoints/step-N`; a checkpoint is whole or absent."""

    def __init__(self, arguments: Arguments, accelerator: Accelerator, ema: AveragedModel | None):
        self.folder, self.keep, self.accelerator, self.ema = (
            Path(arguments.output) / "checkpoints",
            arguments.keep,
            accelerator,
            ema,
        )
        self.settings = {key: value for key, value in asdict(arguments).items() if key not in NOT_IN_LOSSES}

    def all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def save(self, step: int, progress: dict[str, Any]) -> None:
        partial = self.folder / f".step-{step:08d}.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self.ema is not None:
                write_whole(
                    {key: value.contiguous() for key, value in self.ema.state_dict().items()},
                    partial / "ema.safetensors",
                )
            (partial / "progress.json").write_text(
                json.dumps({"step": step, "settings": self.settings, **progress}), encoding="utf-8"
            )
            os.replace(partial, self.folder / f"step-{step:08d}")
            for old in self.all()[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load_last(self) -> dict[str, Any] | None:
        if not self.all():
            return None
        last = self.all()[-1]
        progress = json.loads((last / "progress.json").read_text(encoding="utf-8"))
        changed = sorted(key for key in self.settings if self.settings[key] != progress["settings"].get(key))
        if changed:
            raise ValueError(
                f"{last} was written with another {', '.join('--' + key for key in changed)}: go on with the "
                "same options, or choose another --output."
            )
        self.accelerator.load_state(str(last))
        if self.ema is not None:
            self.ema.load_state_dict(load_with_metadata(last / "ema.safetensors")[0])
        return progress


# ----------------------------------------------------------------------------------------------------------- training


class BadClips:
    """Training clips that can't be read: named once in the log, counted, and too many of them stop the run."""

    def __init__(self, clips: VideoClips, limit: float, known: dict[str, str]):
        self.clips, self.limit, self.messages = clips, limit * len(clips), dict(known)

    def add(self, errors: list[tuple[int, Any, str]], show: Any) -> None:
        for index, _, message in errors:
            name = self.clips.name(index)
            if name not in self.messages:
                self.messages[name] = message
                show(f"skipped {name}: {message}")
        if len(self.messages) > self.limit:
            raise ValueError(
                f"{len(self.messages)} of {len(self.clips)} training clips can't be read, more than --max_bad_fraction"
                f" allows, the last one {list(self.messages)[-1]}: run `python -m processing.check_videos` on the data."
            )


def train(arguments: Arguments) -> None:
    output = Path(arguments.output)
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with="tensorboard" if arguments.tensorboard else None,
        project_dir=str(output) if arguments.tensorboard else None,
    )
    main_process, world = accelerator.is_main_process, accelerator.num_processes
    if not main_process:
        transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    set_seed(arguments.seed)

    with accelerator.main_process_first():
        rows = load_split(arguments, arguments.train_split)
        validation_rows = None
        if arguments.validation_split not in (None, "none"):
            validation_rows = load_split(arguments, arguments.validation_split, arguments.validation_data)
    # The classes are those with training clips, in the dataset's order: MovingShapes names its unseen ones too.
    names = rows.features["label"].names
    trained = sorted(set(rows["label"]))
    labels = {label: index for index, label in enumerate(trained)}
    validation_labels = labels
    if validation_rows is not None:
        validation_names = validation_rows.features["label"].names
        by_name = {names[label]: index for label, index in labels.items()}
        strange = [
            validation_names[label]
            for label in sorted(set(validation_rows["label"]))
            if validation_names[label] not in by_name
        ]
        if strange:
            raise ValueError(
                f"Split {arguments.validation_split} has class {strange[0]!r}, which has no training clip."
            )
        validation_labels = {label: by_name[name] for label, name in enumerate(validation_names) if name in by_name}
    if arguments.shots is not None:
        with accelerator.main_process_first():
            rows = few_shot(rows, arguments)

    model, processor = load_model(arguments)
    freeze(model, image_tower=arguments.clip_lr == 0)
    with accelerator.main_process_first():
        cache_dir = arguments.cache_dir or output / "cache"
        features = class_features(model, processor, [names[label] for label in trained], arguments.prompts, cache_dir)
    model.set_training_classes([names[label] for label in trained], features)
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable()
    model.to(accelerator.device)

    side = model.config.vision_config.image_size
    transform = train_transform(side, flip=arguments.flip) if arguments.augment else None
    clips = VideoClips(
        rows,
        processor.video_processor,
        arguments.num_frames,
        arguments.sampling,
        transform=transform,
        labels=labels,
        seed=arguments.seed,
    )
    validation = (
        None
        if validation_rows is None
        else VideoClips(
            validation_rows, processor.video_processor, arguments.num_frames, "val", labels=validation_labels
        )
    )
    if arguments.cached:
        cached = encode_frames(model, clips, arguments, accelerator, arguments.train_split)
        cached_validation = (
            None
            if validation is None
            else encode_frames(model, validation, arguments, accelerator, str(arguments.validation_split))
        )

    optimizer = torch.optim.AdamW(
        parameter_groups(model, arguments.lr, arguments.clip_lr, arguments.weight_decay), betas=(0.9, 0.999), eps=1e-8
    )
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(arguments.ema)) if arguments.ema else None
    prepared, optimizer = accelerator.prepare(model, optimizer)
    checkpoints = Checkpoints(arguments, accelerator, ema)
    progress = checkpoints.load_last() or {"step": 0, "best": -1.0, "bad": {}}
    step, best = progress["step"], progress["best"]
    bad = BadClips(clips, arguments.max_bad_fraction, progress["bad"])
    batches = Batches(len(clips), arguments, accelerator, start=step)
    last_step = min(batches.total, arguments.max_steps or batches.total)
    log = read_log(output / "log.jsonl", step)
    if main_process:
        write_text(output / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log))
    if arguments.tensorboard:
        accelerator.init_trackers("tensorboard", config={key: str(value) for key, value in asdict(arguments).items()})
    per_epoch = batches.steps_per_epoch
    save_every = arguments.save_every or per_epoch
    accelerator.print(
        f"{len(clips)} clips of {len(trained)} classes, {batches.total} steps of {batches.global_batch} clips, "
        f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} trained parameters, from step {step}"
        f"{', on cached frame features' if arguments.cached else ''}"
    )
    bar = tqdm(total=last_step, initial=step, desc="training", disable=not main_process)
    stream = iter(feature_batches(*cached, batches) if arguments.cached else loader(clips, batches, arguments))
    measured = next((row["validation"] for row in reversed(log) if "validation" in row), None)
    weights = model if ema is None else ema.module

    def record(step: int) -> dict[str, Any]:
        return {
            "arguments": asdict(arguments),
            "step": step,
            "classes": len(trained),
            "clips": len(clips),
            "bad_clips": bad.messages,
            "validation": measured,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    while step < last_step:
        epoch, i = divmod(step, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(epoch, i, per_epoch, arguments.epochs, arguments.warmup_epochs, group["peak_lr"])
        prepared.train()
        loss_sum = torch.zeros((), device=accelerator.device)
        skipped = 0
        for micro in range(arguments.gradient_accumulation):
            batch = next(stream)
            # A clip that can't be read leaves its batch smaller: the weight keeps the loss a mean over all clips read.
            read = accelerator.reduce(torch.tensor(len(batch["labels"]), device=accelerator.device), "sum").item()
            if read < arguments.batch_size * world:
                skipped += arguments.batch_size * world - read
                bad.add(
                    gather_object(batch["errors"]) if world > 1 else batch["errors"],
                    bar.write if main_process else lambda text: None,
                )
            weight = len(batch["labels"]) * world / max(read, 1)
            inputs, targets = model_inputs(batch, accelerator), batch["labels"].to(accelerator.device)
            if (
                inputs is None
            ):  # nothing of this process: it still takes part in the exchange of gradients, with weight 0
                shape = (model.config.projection_dim,) if arguments.cached else (3, side, side)
                blank = torch.zeros(1, arguments.num_frames, *shape, device=accelerator.device)
                inputs = {"frame_embeds" if arguments.cached else "pixel_values_videos": blank}
                targets = torch.zeros(1, dtype=torch.long, device=accelerator.device)
            rank = accelerator.process_index + 1 if arguments.draws == "per-rank" else 0
            generator = step_generator(arguments.seed + 1, step * arguments.gradient_accumulation + micro, rank)
            mixture, merge_mixture = model.draw_mixtures(generator)
            last = micro + 1 == arguments.gradient_accumulation
            with nullcontext() if last else accelerator.no_sync(prepared):
                loss = prepared(**inputs, labels=targets, mixture=mixture, merge_mixture=merge_mixture).loss * weight
                accelerator.backward(loss / arguments.gradient_accumulation)
            loss_sum += loss.detach() / arguments.gradient_accumulation
        norm = None
        if arguments.max_grad_norm is not None:
            norm = accelerator.clip_grad_norm_(prepared.parameters(), arguments.max_grad_norm).item()
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None and not accelerator.optimizer_step_was_skipped:
            ema.update_parameters(model)
        step += 1

        row: dict[str, Any] = {"step": step, "epoch": epoch, "loss": accelerator.reduce(loss_sum, "mean").item()}
        row |= {
            "lr": {group["name"]: group["lr"] for group in optimizer.param_groups},
            "grad_norm": norm,
            "skipped": skipped,
        }
        if not math.isfinite(row["loss"]) and accelerator.mixed_precision != "fp16":
            raise ValueError(f"The loss is {row['loss']} at step {step}: lower --lr, or set --max_grad_norm.")
        ended = step % per_epoch == 0 or step == last_step
        if validation is not None and ended:
            shares = share(len(validation), accelerator, arguments.batch_size)
            scored = (
                feature_batches(*cached_validation, shares)
                if arguments.cached
                else loader(validation, shares, arguments)
            )
            measured = row["validation"] = validate(weights, iter(scored), len(validation), accelerator)
        log.append(row)
        bar.update()
        bar.set_postfix(
            loss=f"{row['loss']:.3f}", **({} if measured is None else {"top1": f"{measured['accuracy']:.3f}"})
        )
        if arguments.tensorboard:
            values = {"loss": row["loss"], **{f"lr/{name}": value for name, value in row["lr"].items()}}
            accelerator.log(
                values | ({"validation/top1": measured["accuracy"]} if "validation" in row else {}), step=step
            )
        if main_process:
            with open(output / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if "validation" in row and row["validation"]["accuracy"] > best:
                save_model(weights, processor, output / "best", record(step))
        best = max(best, row.get("validation", {}).get("accuracy", best))
        if step % save_every == 0 or step == last_step:
            checkpoints.save(step, {"best": best, "bad": bad.messages})

    bar.close()
    if main_process and log:
        plot_curves(log, output / "curves.png")
        save_model(weights, processor, output / "model", record(step))
        said = (
            ""
            if measured is None
            else f", top-1 {100 * measured['accuracy']:.1f} % on {measured['listed']} validation clips"
        )
        print(f"{output / 'model'}: step {step}{said}; {len(bad.messages)} clips could not be read")
        if arguments.push_to_hub is not None:
            weights.push_to_hub(arguments.push_to_hub)
            processor.push_to_hub(arguments.push_to_hub)
    if arguments.tensorboard:
        accelerator.end_training()
    accelerator.wait_for_everyone()


def main() -> None:
    try:
        train(parse_arguments())
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
