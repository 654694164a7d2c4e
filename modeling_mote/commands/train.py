"""Train MoTE from a CLIP, or further from a MoTE, on your own videos or on a benchmark.

    mote train --data my_videos --model openai/clip-vit-base-patch16 --output runs/mine
    accelerate launch -m modeling_mote.commands.train --config kinetics400_vitb16.yaml --data_dir /data/kinetics400

`my_videos` holds one folder per class. A part of the videos is held out to measure the accuracy. The run's folder gets
`model/` (model, processor, card), `best/` (by validation accuracy), `checkpoints/`, `log.jsonl` (one line per step)
and `curves.png`. The same command after an interruption goes on from the last checkpoint, and computes what the first
run would have. Several processes: `accelerate launch` or `torchrun` before it, as above.
"""

import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from .command_line import Parser, add_flag, add_model, check_model, number, run_command
from .recipe import add_recipe

SHARE, ANY = number(0, 1, float), number(0, kind=float)
OPTIONS: dict[str, tuple[Any, Any, str]] = {  # name: (default, kind of value or choices, what it is)
    "data_name": (None, str, "configuration of a benchmark, such as split1 or kinetics400"),
    "data_dir": (None, str, "folder of the videos; of a CSV, its own folder by default"),
    "train_split": ("train", str, "split to train on"),
    "validation_split": (
        None,
        str,
        "split to validate on after each epoch, `none` for none; by default `validation`, and where data has none, "
        "videos held out",
    ),
    "validation_data": (None, str, "CSV or folder to validate on, rather than a split of --data"),
    "hold_out": (0.2, SHARE, "share of each class that is held out to validate on, if there is no such split"),
    "shots": (None, number(1), "few-shot: clips per class, repeated to the full list's length"),
    "prompts": ("mote_28", str, "prompt set of the class features"),
    "num_frames": (8, number(1), "frames per clip"),
    "epochs": (20, number(1), "epochs of the schedule"),
    "warmup_epochs": (None, ANY, "epochs of linear warm-up; by default 1, and none of a single epoch"),
    "schedule": ("smooth", ("smooth", "authors"), "the rate moves at every step, or as the authors' at every tenth"),
    "batch_size": (None, number(1), "clips per process and forward; by default up to 64, ten steps per epoch or more"),
    "gradient_accumulation": (1, number(1), "forwards per optimizer step, each with its own draws"),
    "lr": (1e-3, ANY, "peak learning rate of the temporal head"),
    "clip_lr": (0.0, ANY, "peak learning rate of the image tower and logit scale; 0 freezes them"),
    "weight_decay": (0.2, ANY, "of every parameter"),
    "max_grad_norm": (None, ANY, "gradient clipping"),
    "label_smoothing": (0.0, SHARE, "of both cross-entropies"),
    "ema": (None, SHARE, "decay of an average of the weights, which is then validated and saved"),
    "draws": ("shared", ("shared", "per-rank"), "experts and temperatures: one draw for all processes, or one each"),
    "seed": (0, number(0), "of weights, order, frames, augmentation, draws and what is held out"),
    "augment": (False, bool, "random resized crop, flip and greyscale, one draw per clip"),
    "flip": (0.5, SHARE, "probability of the flip; 0 where labels tell left from right"),
    "sampling": ("val", ("train", "val"), "frames of a training clip: a random one of each segment, or its first"),
    "cache_features": (
        True,
        bool,
        "with a frozen image tower, no augmentation and sampling `val`: encode every frame once, to disk",
    ),
    "cache_dir": (None, str, "folder of cached features; `cache` in the output by default"),
    "mixed_precision": (None, ("no", "bf16", "fp16"), "accelerate's setting by default"),
    "activation_checkpointing": (False, bool, "recompute activations in the backward pass"),
    "num_workers": (2, number(0), "reading processes of each process"),
    "max_bad_fraction": (0.05, SHARE, "stop when more than this share of the training clips can't be read"),
    "save_every": (None, number(1), "steps between checkpoints; an epoch by default"),
    "keep": (2, number(1), "checkpoints to keep"),
    "max_steps": (None, number(1), "stop after so many steps of the schedule"),
    "tensorboard": (False, bool, "also log to tensorboard"),
    "push_to_hub": (None, str, "repository to publish the trained model to, org/name"),
}


def add_options(parser: Parser) -> None:
    parser.add_argument(
        "--data", required=True, help="folder with one folder per class, CSV (path,label[,start,end]), or a benchmark"
    )
    add_model(
        parser, "CLIP or MoTE checkpoint to start from: folder or Hub id", default="openai/clip-vit-base-patch16"
    )
    parser.add_argument("--output", required=True, help="folder of this run, on a disk that all its machines share")
    for name, (default, kind, text) in OPTIONS.items():
        if kind is bool:
            add_flag(parser, name, text, default)
        elif isinstance(kind, tuple):
            parser.add_argument(f"--{name}", choices=kind, default=default, help=text)
        else:
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.complete = add_recipe(parser)


def check(options: Any) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0":  # what is wrong is said by the first process of a machine
        return
    check_model(options.model)
    for name in ("data", "data_dir", "validation_data"):
        given = getattr(options, name)
        is_path = given is not None and (
            name == "data_dir" or given.lower().endswith(".csv") or given != Path(given).name
        )
        if is_path and not Path(given).expanduser().exists():
            raise FileNotFoundError(f"--{name} {given}: there is no such file or folder.")


def run(options: Any) -> None:
    from ..training_run import start_accelerator

    output = Path(options.output)
    accelerator = start_accelerator(options.mixed_precision, output if options.tensorboard else None)
    try:
        _train(options, output, accelerator)
    except (ValueError, FileNotFoundError, KeyboardInterrupt) as error:  # the same in every process: said by one
        if not accelerator.is_local_main_process:
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        raise


def _train(options: Any, output: Path, accelerator: Any) -> None:
    from accelerate.utils import set_seed

    from ..loading import load_to_train
    from ..processing.files import only_run
    from ..publish import prepare_repository, publish_checkpoint
    from ..training_run import train

    main = accelerator.is_main_process
    if not main:
        warnings.simplefilter("ignore")
    elif options.push_to_hub is not None:  # whatever is wrong with it shows before the training
        prepare_repository(options.push_to_hub)
    set_seed(options.seed)
    model, processor = load_to_train(options.model, options.num_frames, options.label_smoothing)
    rows = _load_rows(options, accelerator)
    with only_run(output) if main else nullcontext():
        training = _prepare(options, output, accelerator, model.to(accelerator.device), processor, *rows)
        if options.tensorboard:
            accelerator.init_trackers("tensorboard", config={name: str(each) for name, each in vars(options).items()})
        accelerator.print(training.describe())
        train(training)
        accelerator.print(training.describe_end())
        if main and options.push_to_hub is not None:
            message = f"MoTE, step {training.step}"
            publish_checkpoint(output / "model", options.push_to_hub, commit_message=message, say=print)
    accelerator.end_training()


def _prepare(
    options: Any, output: Path, accelerator: Any, model: Any, processor: Any, rows: Any, validation_rows: Any, on: str
) -> Any:
    """Everything between the data and the first step."""
    from ..feature_cache import class_features
    from ..processing.files import write_whole
    from ..training_data import few_shot, training_classes
    from ..training_run import TrainingRun

    classes, cache = training_classes(rows), Path(options.cache_dir or output / "cache")
    if options.shots is not None:
        rows, chosen = few_shot(rows, options.shots, options.seed)
        if accelerator.is_main_process:
            write_whole(output / "few_shot.csv", chosen)
    settings = _settings(options, len(rows), accelerator.num_processes)
    with accelerator.main_process_first():
        model.set_training_classes(classes, class_features(model, processor, classes, options.prompts, cache))
    size = settings.batch_size
    clips = _clips(options, rows, model, processor, accelerator, cache, size, trains=True)
    validation = _clips(options, validation_rows, model, processor, accelerator, cache, size)
    if options.activation_checkpointing:
        model.activation_checkpointing_enable()
    return TrainingRun(
        model,
        processor,
        clips,
        validation,
        output,
        settings,
        accelerator,
        common=_common(options, rows, validation_rows),
        record=_record(options, rows, on),
        num_workers=options.num_workers if clips.input_name == "pixel_values_videos" else 0,
        max_bad_fraction=options.max_bad_fraction,
        save_every=options.save_every,
        keep=options.keep,
        max_steps=options.max_steps,
    )


def _load_rows(options: Any, accelerator: Any) -> tuple[Any, Any, str]:
    from ..training_data import load_train_and_validation

    with accelerator.main_process_first():
        return load_train_and_validation(
            options.data,
            name=options.data_name,
            data_dir=options.data_dir,
            train_split=options.train_split,
            validation_split=options.validation_split,
            validation_data=options.validation_data,
            hold_out_share=options.hold_out,
            seed=options.seed,
        )


def _settings(options: Any, num_clips: int, world: int) -> Any:
    from ..training import Batches, fitting_batch_size
    from ..training_run import Settings

    given = {each.name: getattr(options, each.name) for each in fields(Settings) if hasattr(options, each.name)}
    given["batch_size"] = options.batch_size or fitting_batch_size(num_clips, world * options.gradient_accumulation)
    if options.warmup_epochs is None:
        given["warmup_epochs"] = float(options.epochs > 1)
    settings = Settings(**given | {"own_draws": options.draws == "per-rank"})
    # Too large a batch shows before frames are encoded.
    Batches(num_clips, settings.batch_size, settings.epochs, accumulation=settings.gradient_accumulation, world=world)
    return settings


def _clips(
    options: Any, rows: Any, model: Any, processor: Any, accelerator: Any, cache: Path, size: int, trains: bool = False
) -> Any:
    """Pixels of the rows, or their frame features; None for no rows."""
    from ..frame_features import encode_frames
    from ..training_data import training_pixels

    if rows is None:
        return None
    sampling, augment, flip = (options.sampling, options.augment, options.flip) if trains else ("val", False, 0)
    classes, frames, seed = list(model.config.id2label.values()), options.num_frames, options.seed
    pixels = training_pixels(rows, classes, processor.video_processor, frames, sampling, augment, flip, seed)
    if not _caches(options):
        return pixels
    return encode_frames(model, pixels, cache, accelerator, size, options.num_workers)


def _caches(options: Any) -> bool:
    return options.cache_features and options.clip_lr == 0 and not options.augment and options.sampling == "val"


def _common(options: Any, rows: Any, validation_rows: Any) -> dict[str, Any]:
    """What a continuation must have in common with the run beside its settings."""
    from ..processing.builders import list_sha256

    return {
        **{
            name: getattr(options, name)
            for name in ("num_frames", "label_smoothing", "prompts", "sampling", "augment")
        },
        "flip": options.flip if options.augment else None,
        "cache_features": _caches(options),
        "list of training clips": list_sha256(rows),
        "list of validation clips": None if validation_rows is None else list_sha256(validation_rows),
    }


def _record(options: Any, rows: Any, validated_on: str) -> dict[str, Any]:
    """What `training.json` says beside what the run knows."""
    from ..processing.builders import list_sha256

    return {
        "arguments": vars(options),
        "clips_sha256": list_sha256(rows),
        "validated_on": validated_on,
        "class_names": rows.info.description,
    }


if __name__ == "__main__":
    sys.exit(run_command("train"))
