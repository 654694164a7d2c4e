"""Train MoTE from a CLIP, or further from a MoTE, on your own videos or on a benchmark.

    mote train --data my_videos --model openai/clip-vit-base-patch16 --output runs/mine
    accelerate launch -m modeling_mote.commands.train --config kinetics400_vitb16.yaml --data_dir /data/kinetics400

`my_videos` holds one folder per class. A part of the videos is held out to measure the accuracy. The run's folder gets
`model/` (model, processor, card), `best/` (by validation accuracy), `checkpoints/`, `log.jsonl` (one line per step)
and `curves.png`. The same command after an interruption goes on from the last checkpoint, and computes what the first
run would have. Several processes: `accelerate launch` or `torchrun` before it, as above.
"""

import sys
import warnings
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from .command_line import run_command
from .train_options import add_options, check

__all__ = ["add_options", "check", "run"]


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
    model, processor = load_to_train(options.model, options.num_frames, options.label_smoothing, options.still_penalty)
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
        "still_penalty": options.still_penalty or None,  # as in runs that began before there was one
        "cache_features": _caches(options),
        "list of training clips": list_sha256(rows),
        "list of validation clips": None if validation_rows is None else list_sha256(validation_rows),
    }


def _record(options: Any, rows: Any, validated_on: str) -> dict[str, Any]:
    """What `training.json` says beside what the run knows."""
    from ..processing.builders import list_sha256
    from ..training_data import clip_seconds

    return {
        "arguments": vars(options),
        "clips_sha256": list_sha256(rows),
        "clip_seconds": clip_seconds(rows),
        "validated_on": validated_on,
        "class_names": rows.info.description,
    }


if __name__ == "__main__":
    sys.exit(run_command("train"))
