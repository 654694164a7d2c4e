"""The options of `mote train`, and what is found wrong with them before PyTorch is loaded."""

import os
from pathlib import Path
from typing import Any

from .command_line import Parser, add_flag, add_model, check_data, check_model, number
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
    "still_penalty": (
        0.0,
        ANY,
        "weight of what the temporal layers add to clips held still, as a loss; 3 was measured (docs/ablation.md)",
    ),
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
    check_data(options.data, "data")
    if Path(options.output).exists() and not Path(options.output).is_dir():
        raise FileExistsError(f"--output {options.output} is a file: name a folder, which is made if it is not there.")
    for name in ("data_dir", "validation_data"):
        given = getattr(options, name)
        if given is not None and not Path(given).expanduser().exists():
            raise FileNotFoundError(f"--{name} {given}: there is no such file or folder.")


__all__ = ["OPTIONS", "add_options", "check"]
