"""One training from its first step to its last: the loop of `mote train`, and what it leaves in the run's folder.

`log.jsonl` (one line per step), `curves.png`, `checkpoints/`, `best/` (by validation accuracy) and `model/`. A run
that was interrupted goes on from its last checkpoint, and computes what it would have computed without.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object
from matplotlib.figure import Figure
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from . import __version__
from .calibrate import fit_to_clips
from .cards import training_card
from .checkpoints import Checkpoints
from .feature_cache import fingerprint
from .frame_features import clip_identity
from .modeling_mote import MoTEForVideoClassification
from .processing import MoTEProcessor
from .processing.calibration import calibration_of
from .processing.clip_batches import ClipBatches
from .processing.files import whole_file, whole_folder, write_whole
from .training import (
    SCHEDULES,
    BadClips,
    Batches,
    ScoredClips,
    StepResult,
    TrainStep,
    freeze,
    parameter_groups,
    validate,
)

PLOT_SECONDS = 30  # at least, between two drawings of the curves


@dataclass(frozen=True)
class Settings:
    """How a model is trained; together with model, data and random draws it decides every loss.

    Attributes:
        epochs: of the schedule.
        warmup_epochs: of linear warm-up; may be a fraction.
        schedule: name in `SCHEDULES`.
        batch_size: clips per process and forward.
        gradient_accumulation: forwards per optimizer step, each with its own draws.
        lr: peak learning rate of the temporal head.
        clip_lr: peak learning rate of the image tower and logit scale; 0 freezes them.
        weight_decay: of every parameter.
        max_grad_norm: gradient clipping.
        ema: decay of an average of the weights, which is then validated and saved.
        own_draws: each process draws experts and temperatures for itself.
        seed: of order and draws.

    Raises:
        ValueError: naming the setting that can't be.
    """

    epochs: int = 20
    warmup_epochs: float = 1.0
    schedule: str = "smooth"
    batch_size: int = 64
    gradient_accumulation: int = 1
    lr: float = 1e-3
    clip_lr: float = 0.0
    weight_decay: float = 0.2
    max_grad_norm: float | None = None
    ema: float | None = None
    own_draws: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be {' or '.join(SCHEDULES)}, got {self.schedule!r}.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs must be in [0, epochs), got {self.warmup_epochs} of {self.epochs}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, got {self.ema}.")


def start_accelerator(mixed_precision: str | None = None, tensorboard: Path | None = None) -> Accelerator:
    """The accelerator of this process, whether it was started by `accelerate launch`, torchrun or by itself.

    Args:
        mixed_precision: "no", "bf16" or "fp16"; accelerate's own setting by default.
        tensorboard: folder to log to.

    Raises:
        ValueError: for fp16 without a GPU, which accelerate would ignore.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, torchrun's processes would not know of one another
        mixed_precision=mixed_precision,
        log_with=None if tensorboard is None else "tensorboard",
        project_dir=None if tensorboard is None else str(tensorboard),
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU: choose bf16 or no.")
    return accelerator


class TrainingRun:
    """A training and its folder; [`train`] is its loop.

    Args:
        model: its training classes set, on the accelerator's device.
        processor: saved with it.
        clips: to train on, pixels or frame features, whose labels are indices of training classes.
        validation: to validate on after each epoch, likewise.
        output: folder of the run, on a disk that all its processes share.
        settings: see [`Settings`].
        accelerator: of this process.
        common: what a continuation must have in common with the run beside `settings`, by name; JSON values.
        record: what goes into `training.json` beside what the run knows; its `arguments` name `data` and `model`.
        num_workers: reading processes of each process.
        max_bad_fraction: share of the clips that may be unreadable.
        save_every: steps between checkpoints; an epoch by default.
        keep: checkpoints that stay.
        max_steps: stop after so many steps of the schedule.
    """

    def __init__(
        self,
        model: MoTEForVideoClassification,
        processor: MoTEProcessor,
        clips: Any,
        validation: Any | None,
        output: Path,
        settings: Settings,
        accelerator: Accelerator,
        *,
        common: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        num_workers: int = 0,
        max_bad_fraction: float = 0.05,
        save_every: int | None = None,
        keep: int = 2,
        max_steps: int | None = None,
    ):
        self.processor, self.clips, self.validation, self.output = processor, clips, validation, output
        self.settings, self.accelerator, self.num_workers = settings, accelerator, num_workers
        self.given_record, self.plotted = dict(record or {}), time.monotonic()
        shared = {**asdict(settings), **(common or {}), "weights to start from": _starting_weights(model)}
        shared |= {"mixed_precision": accelerator.mixed_precision, "number of processes": accelerator.num_processes}
        ema = self._prepare(model)
        self.checkpoints = Checkpoints(output / "checkpoints", accelerator, shared, keep, ema)
        self.files = _files_sha256(clips) if accelerator.is_main_process else None
        self.batches = Batches(
            len(clips),
            settings.batch_size,
            settings.epochs,
            settings.seed,
            settings.gradient_accumulation,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self._go_on(max_bad_fraction)
        self.last_step = min(self.batches.total, max_steps or self.batches.total)
        self.save_every = save_every or self.batches.steps_per_epoch
        self._check_schedule()

    def _prepare(self, model: MoTEForVideoClassification) -> AveragedModel | None:
        """Freeze, and make what takes the steps; returns the average of the weights, if there is to be one."""
        settings = self.settings
        freeze(model, image_tower=settings.clip_lr == 0)
        groups = parameter_groups(model, settings.lr, settings.clip_lr, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)) if settings.ema else None
        self.weights: Any = model if ema is None else ema.module  # what is validated and saved
        self.take_step = TrainStep(
            model, optimizer, self.accelerator, settings.seed + 1, settings.own_draws, settings.max_grad_norm, ema
        )
        return ema

    def _check_schedule(self) -> None:
        per_epoch = self.batches.steps_per_epoch
        if self.settings.warmup_epochs and not any(self.rates(per_epoch - 1).values()):
            warnings.warn(
                f"With {per_epoch} steps per epoch, the {self.settings.schedule} schedule leaves the learning rate of "
                "the whole first epoch at 0.",
                stacklevel=3,
            )

    def _go_on(self, max_bad_fraction: float) -> None:
        """Take up where the last checkpoint was left, or begin."""
        progress = self.checkpoints.load_newest() or {"step": 0, "best": -1.0, "bad": [], "log": []}
        self.step, self.best, self.log = progress["step"], progress["best"], progress["log"]
        self.batches.start = self.step
        self.weights.config.calibration = progress.get("calibration")  # not that of the weights it started from
        self.bad = BadClips(self.clips, max_bad_fraction, progress["bad"])
        self.measured = next((row["validation"] for row in reversed(self.log) if "validation" in row), None)
        if self.accelerator.is_main_process:
            if progress.get("files", self.files) != self.files:
                warnings.warn(
                    f"Files of training clips have changed since step {self.step}, by size or time of change: the run "
                    "goes on with those that are there now.",
                    stacklevel=2,
                )
            # What a killed run wrote after its last checkpoint is computed again.
            write_whole(self.output / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.log))

    def describe(self) -> str:
        """One line on what will be done."""
        trained = sum(each.numel() for each in self.take_step.model.parameters() if each.requires_grad)
        on = self.given_record.get("validated_on", "")
        validated = f"{len(self.validation)} clips {on} to validate on" if self.validation else "no validation"
        cached = ", on cached frame features" if self.clips.input_name == "frame_embeds" else ""
        if self.weights.config.temporal_config.experts_merged:
            cached += "; the experts were merged, so each layer trains its one feed-forward by the cross-entropy alone"
        return (
            f"{len(self.clips)} clips of {self.weights.config.num_labels} classes, {validated}; {self.batches.total} "
            f"steps of {self.batches.global_batch} clips from step {self.step}, {trained:,} trained parameters{cached}"
        )

    def describe_end(self) -> str:
        """One line on what came out."""
        found = self.measured
        said = f", top-1 {100 * found['accuracy']:.1f} % on {found['listed']} clips" if found else ""
        if found and self.best > found["accuracy"]:
            said += f" ({100 * self.best:.1f} % at its best, kept in {self.output / 'best'})"
        unread = f"{len(self.bad.names())} training clips could not be read"
        return f"{self.output / 'model'}: step {self.step}{said}; {unread}"

    def rates(self, step: int) -> dict[str, float]:
        """Learning rates of the groups at a step, {name of the group: rate}."""
        epoch, i = divmod(step, self.batches.steps_per_epoch)
        settings, per_epoch = self.settings, self.batches.steps_per_epoch
        at = SCHEDULES[settings.schedule]
        return {
            group["name"]: at(epoch, i, per_epoch, settings.epochs, settings.warmup_epochs, group["peak_lr"])
            for group in self.take_step.optimizer.param_groups
        }

    def advance(self, stream: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """Take one optimizer step; returns its line of the log."""
        rates = self.rates(self.step)
        for group in self.take_step.optimizer.param_groups:
            group["lr"] = rates[group["name"]]
        micro_batches = [next(stream) for _ in range(self.settings.gradient_accumulation)]
        result = self.take_step(self.step, micro_batches, self.clips)
        row = {"step": self.step + 1, "epoch": self.step // self.batches.steps_per_epoch}
        row |= self._skipped(result, micro_batches) | {"loss": result.loss, "lr": rates}
        if result.grad_norm is not None:
            row["grad_norm"] = result.grad_norm
        self.step += 1
        return row

    def _skipped(self, result: StepResult, micro_batches: list[dict[str, Any]]) -> dict[str, Any]:
        skipped = self.batches.global_batch - result.read
        if not skipped:
            return {"skipped": 0}
        errors = [error for batch in micro_batches for error in batch["errors"]]
        new = self.bad.add(gather_object(errors) if self.accelerator.num_processes > 1 else errors)
        if self.accelerator.is_main_process:
            for name, message in new.items():
                tqdm.write(f"skipped {name}: {message}")
        return {"skipped": skipped, "bad_clips": new}

    @property
    def validates_now(self) -> bool:
        """Whether the step that was taken last is one to validate after."""
        at_end = self.step % self.batches.steps_per_epoch == 0 or self.step == self.last_step
        return self.validation is not None and at_end

    def measure(self) -> dict[str, Any]:
        """Validate, fit what scores mean to the same clips, and save the model if it is the best so far."""
        kept: list[ScoredClips] = []
        self.measured = validate(
            self.weights, self.validation, self.accelerator, self.settings.batch_size, self.num_workers, kept
        )
        self.weights.config.calibration = _calibration(self.weights, kept)
        if self.measured["accuracy"] > self.best:
            self.best = self.measured["accuracy"]
            self.save_model(self.output / "best")
        return self.measured

    def write_log(self, row: dict[str, Any]) -> None:
        """Add a line to the log and the tracker; draw the plot at the end, and now and then on the way."""
        self.log.append(row)
        values = {"loss": row["loss"], **{f"lr/{name}": rate for name, rate in row["lr"].items()}}
        if "validation" in row:
            values["validation/top1"] = row["validation"]["accuracy"]
        self.accelerator.log(values, step=row["step"])
        if self.accelerator.is_main_process:
            with open(self.output / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            since = time.monotonic() - self.plotted  # to draw takes longer than a small epoch
            if self.step == self.last_step or ("validation" in row and since > PLOT_SECONDS):
                plot_curves(self.log, self.output / "curves.png")
                self.plotted = time.monotonic()

    def save_checkpoint(self) -> None:
        """Write everything that the run needs to go on."""
        progress = {"best": self.best, "bad": list(self.bad.messages.items()), "log": self.log, "files": self.files}
        progress["calibration"] = self.weights.config.calibration
        self.checkpoints.save(self.step, progress)

    def save_model(self, folder: Path) -> None:
        """Write model, processor, card and the record of the run as one folder that pipelines load."""
        if self.accelerator.is_main_process:
            with whole_folder(folder) as partial:
                self.weights.save_pretrained(partial)
                self.processor.save_pretrained(partial)
                write_whole(partial / "training.json", json.dumps(self.record(), indent=2) + "\n")
                write_whole(partial / "README.md", self._card())

    def _card(self) -> str:
        config, arguments = self.weights.config, self.given_record.get("arguments", {})
        return training_card(
            [config.id2label[index] for index in sorted(config.id2label)],
            data=arguments.get("data", "clips"),
            base=arguments.get("model", "a CLIP"),
            num_frames=config.num_frames,
            step=self.step,
            validation=self.measured,
            calibration=calibration_of(config),
        )

    def record(self) -> dict[str, Any]:
        """What `training.json` says of the run."""
        return self.given_record | {
            "step": self.step,
            "steps": self.batches.total,
            "settings": asdict(self.settings),
            "classes": self.weights.config.num_labels,
            "clips": len(self.clips),
            "bad_clips": self.bad.names(),
            "validation": self.measured,
            "num_processes": self.accelerator.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
            "versions": {
                "mote": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }


def train(run: TrainingRun) -> dict[str, Any]:
    """Train from where the run is to its last step, and save the model.

    Args:
        run: all that it takes; see [`TrainingRun`].

    Returns:
        the record of the run, as in `model/training.json`.

    Raises:
        ValueError: if the loss is not finite, or too many clips can't be read.
        OSError: if something can't be written, or a reading process dies.
    """
    hidden = not run.accelerator.is_main_process
    bar = tqdm(total=run.last_step, initial=run.step, desc="training", disable=hidden)
    with bar, ClipBatches(run.clips, run.batches, run.num_workers) as read:
        stream = iter(read)
        while run.step < run.last_step:
            row = run.advance(stream)
            if run.validates_now:
                row["validation"] = run.measure()
            run.write_log(row)
            if run.step % run.save_every == 0 or run.step == run.last_step:
                run.save_checkpoint()
            bar.update()
            bar.set_postfix(loss=row["loss"], **({"top1": run.measured["accuracy"]} if run.measured else {}))
    run.save_model(run.output / "model")
    return run.record()


def _calibration(model: MoTEForVideoClassification, kept: list[ScoredClips]) -> dict[str, Any] | None:
    """What scores over the training classes mean by validation clips; None if they are too few to tell."""
    if not kept:
        return None
    try:
        return fit_to_clips(model, kept, model.seen_classes.weight).to_dict()
    except ValueError:
        return None


def _starting_weights(model: MoTEForVideoClassification) -> str:
    """Fingerprint of what was loaded; new temporal layers are the seed's."""
    clip = (model.text_model, model.text_projection, model.vision_model, model.visual_projection, model.logit_scale)
    return fingerprint(*clip, *((model.temporal_model,) if model.temporal_layers_trained else ()))


def _files_sha256(clips: Any) -> str:
    """Fingerprint of the sizes and times of change of the files, wherever they lie."""
    rows = clips.clips.rows if hasattr(clips, "clips") else clips.rows
    digest = hashlib.sha256()
    for row in rows:
        digest.update(clip_identity(row, with_path=False).encode())
    return digest.hexdigest()


def plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, learning rates and, if there are any, validation accuracies over the steps, as a PNG.

    Args:
        rows: lines of the log.
        path: of the picture.
    """
    measured = [(row["step"], 100 * row["validation"]["accuracy"]) for row in rows if "validation" in row]
    panels = 3 if measured else 2
    figure = Figure(figsize=(4.4 * panels, 3.5))
    edges = {"left": 0.15 / panels, "right": 1 - 0.06 / panels, "bottom": 0.15, "top": 0.9, "wspace": 0.25}
    losses, rates, *accuracy = figure.subplots(1, panels, gridspec_kw=edges)
    steps = [row["step"] for row in rows]
    losses.plot(steps, [row["loss"] for row in rows], linewidth=0.8)
    losses.set(title="training loss", xlabel="step")
    for name in rows[0]["lr"]:
        rates.plot(steps, [row["lr"][name] for row in rows], label=name)
    rates.set(title="learning rate", xlabel="step", ylim=(0, None))
    rates.legend()
    for axes in accuracy:
        axes.plot(*zip(*measured, strict=True), marker="o", markersize=3)
        step, best = max(measured, key=lambda point: point[1])
        axes.set(title=f"validation top-1: best {best:.1f} % at step {step}", xlabel="step", ylabel="%", ylim=(0, 100))
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


__all__ = ["Settings", "TrainingRun", "plot_curves", "start_accelerator", "train"]
