"""What a training loop of MoTE is made of: schedules, parameter groups, draws, batches, one step, validation.

`examples/train_minimal.py` puts the parts together in one loop; `training_run.py` is the loop of `mote train`. Sums
over processes go through an `Accelerator`, so that every part works on one process and on many.

Shapes, throughout: b clips, t frames, d = `projection_dim`, L temporal layers, E experts.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler

from .modeling_mote import MoTEForVideoClassification, MoTEModel
from .processing.clip_batches import ClipBatches

# ---------------------------------------------------------------------------------------------------------- optimizer


def lr_at(
    epoch: int,
    iteration: int,
    iterations_per_epoch: int,
    epochs: int = 30,
    warmup_epochs: float = 5,
    lr: float = 5e-5,
) -> float:
    """The authors' schedule: linear warm-up from 0, then cosine to 0, moved on every tenth iteration only.

    Before iteration i of an epoch with i = 0 or (i + 1) % 10 = 0 the progress becomes epoch + i / n, else it stays, as
    in the authors' code. With fewer than ten iterations per epoch, the rate of the whole first epoch is 0.

    Args:
        epoch: from 0.
        iteration: i, from 0, counted in optimizer steps of this epoch.
        iterations_per_epoch: n.
        epochs: length of the whole schedule.
        warmup_epochs: length of the warm-up; may be a fraction.
        lr: peak learning rate; the head's in the paper by default.

    Returns:
        the learning rate before the iteration.

    Raises:
        ValueError: if the iteration lies outside its epoch.
    """
    _check_iteration(iteration, iterations_per_epoch)
    last_moved = (iteration + 1) // 10 * 10 - 1 if iteration >= 9 else 0
    progress = epoch + last_moved / iterations_per_epoch
    if progress < warmup_epochs:
        return lr * progress / warmup_epochs
    return lr * 0.5 * (1 + math.cos(math.pi * (progress - warmup_epochs) / (epochs - warmup_epochs)))


def smooth_lr_at(
    epoch: int,
    iteration: int,
    iterations_per_epoch: int,
    epochs: int = 30,
    warmup_epochs: float = 5,
    lr: float = 5e-5,
) -> float:
    """The same schedule moved on every iteration, so that every step of a small data set trains.

    Arguments, result and error are those of [`lr_at`]. The warm-up ends at the peak, and its first rate is above 0.
    """
    _check_iteration(iteration, iterations_per_epoch)
    step, warmup = epoch * iterations_per_epoch + iteration, warmup_epochs * iterations_per_epoch
    if step < warmup:
        return lr * min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / (epochs * iterations_per_epoch - warmup)
    return lr * 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[..., float]] = {"smooth": smooth_lr_at, "authors": lr_at}


def _check_iteration(iteration: int, iterations_per_epoch: int) -> None:
    if not 0 <= iteration < iterations_per_epoch:
        raise ValueError(f"iteration must be in [0, {iterations_per_epoch}), got {iteration}.")


def freeze(model: MoTEModel, image_tower: bool = False) -> None:
    """Freeze the text tower, as the paper does, and the image tower with the logit scale if asked."""
    frozen: list[nn.Module | nn.Parameter] = [model.text_model, model.text_projection]
    if image_tower:
        frozen += [model.vision_model, model.visual_projection, model.logit_scale]
    for part in frozen:
        part.requires_grad_(False)


def parameter_groups(model: MoTEModel, lr: float, clip_lr: float, weight_decay: float = 0.2) -> list[dict]:
    """The authors' two groups for AdamW: the temporal head at `lr`, the rest at `clip_lr`; decay on every parameter.

    Frozen parameters are in neither. Each group carries its peak rate as `peak_lr`, for the schedules.
    """
    head = [parameter for parameter in model.temporal_model.parameters() if parameter.requires_grad]
    of_head = {id(parameter) for parameter in head}
    clip = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in of_head]
    groups = [
        {"name": "head", "params": head, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay},
        {"name": "clip", "params": clip, "lr": clip_lr, "peak_lr": clip_lr, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


# -------------------------------------------------------------------------------------------------------- order, draws


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The generator of one step's draws: the same on every process for the same rank, and again after a resume."""
    generator = torch.Generator()
    # Odd multipliers keep (seed, step, rank) apart, also in the low 32 bits, all that the CPU generator uses.
    generator.manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63)
    return generator


class Batches(Sampler):
    """This process' share of every batch from step `start` on, as lists of (epoch, index).

    The global batches are the same for any number of processes. Those of an epoch are all full: the rest of its order
    is left out, other clips in each epoch.

    Args:
        num_clips: of the data set.
        batch_size: clips per process and forward.
        epochs: of the schedule.
        seed: of the order.
        accumulation: forwards per step.
        rank: of this process.
        world: processes.
        start: first step, from 0.

    Raises:
        ValueError: if there are fewer clips than one global batch takes.
    """

    def __init__(
        self,
        num_clips: int,
        batch_size: int,
        epochs: int,
        seed: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ):
        self.num_clips, self.batch_size, self.seed, self.accumulation = num_clips, batch_size, seed, accumulation
        self.rank, self.world, self.start = rank, world, start
        self.global_batch = batch_size * world * accumulation
        self.steps_per_epoch = num_clips // self.global_batch
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{num_clips} training clips are fewer than one batch of {self.global_batch}: lower batch_size."
            )
        self.total = self.steps_per_epoch * epochs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.total):
            epoch, i = divmod(step, self.steps_per_epoch)
            if i == 0 or step == self.start:
                order = torch.randperm(self.num_clips, generator=step_generator(self.seed, epoch)).tolist()
            for micro in range(self.accumulation):
                begin = i * self.global_batch + (micro * self.world + self.rank) * self.batch_size
                yield [(epoch, index) for index in order[begin : begin + self.batch_size]]


def fitting_batch_size(num_clips: int, parts: int = 1, most: int = 64) -> int:
    """Clips per process and forward that give an epoch ten steps or more, if there are clips enough for it.

    Args:
        num_clips: of the data set.
        parts: into which a step's clips are divided: processes times forwards per step.
        most: the result at most.

    Returns:
        a number from 1 to `most`; 4 or more while the clips suffice for one step.
    """
    return max(1, min(most, max(4, num_clips // (10 * parts)), num_clips // parts))


# ------------------------------------------------------------------------------------------------ one optimizer step


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gave.

    Attributes:
        read: clips of all processes that could be read.
        loss: mean over them; None if there was none, and then nothing moved.
        grad_norm: norm of the gradient before it was clipped; None if it is not.
    """

    read: int
    loss: float | None
    grad_norm: float | None = None


class TrainStep:
    """One optimizer step of MoTE: forwards with their draws, backwards, and the update (Eq. 10).

    A clip that can't be read leaves its batch smaller; weights keep the loss a mean over all clips read, on any number
    of processes and forwards.

    Args:
        model: to train, on the accelerator's device.
        optimizer: of its parameters.
        accelerator: which prepares both.
        seed: of the draws.
        own_draws: whether each process draws experts and temperatures for itself, as the authors' do.
        max_grad_norm: clips the gradient.
        ema: an average of the weights to keep up.
    """

    def __init__(
        self,
        model: MoTEForVideoClassification,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        seed: int = 0,
        own_draws: bool = False,
        max_grad_norm: float | None = None,
        ema: AveragedModel | None = None,
    ):
        self.model, self.accelerator, self.ema = model, accelerator, ema
        self.seed, self.max_grad_norm = seed, max_grad_norm
        self.rank = accelerator.process_index + 1 if own_draws else 0
        self.prepared, self.optimizer = accelerator.prepare(model, optimizer)

    def __call__(self, step: int, micro_batches: Sequence[Mapping[str, Any]], clips: Any) -> StepResult:
        """Take step `step`, from 0.

        Args:
            step: decides the draws.
            micro_batches: batches of this process, one per forward, as [`collate_clips`] makes them.
            clips: their data set, whose `inputs` turns a batch into the model's inputs.

        Raises:
            ValueError: if the loss is not finite.
        """
        accelerator, number = self.accelerator, len(micro_batches)
        here = torch.tensor(sum(len(batch["labels"]) for batch in micro_batches), device=accelerator.device)
        read = accelerator.reduce(here, "sum").item()
        self.prepared.train()
        total = torch.zeros((), device=accelerator.device)
        for micro, batch in enumerate(micro_batches):
            weight = len(batch["labels"]) * accelerator.num_processes / max(read, 1)
            with nullcontext() if micro + 1 == number else accelerator.no_sync(self.prepared):
                loss = self._loss(step * number + micro, batch, clips)
                accelerator.backward(loss * weight)
            total += loss.detach() * weight
        mean = accelerator.reduce(total, "mean").item()
        if not math.isfinite(mean):
            raise ValueError(f"The loss is {mean} at step {step + 1}: lower lr, or set max_grad_norm.")
        norm = self._update() if read else None
        self.optimizer.zero_grad()
        return StepResult(read, mean if read else None, norm)

    def _loss(self, draw: int, batch: Mapping[str, Any], clips: Any) -> torch.Tensor:
        if len(batch["labels"]):
            inputs, labels = clips.inputs(batch, self.accelerator.device), batch["labels"]
        else:  # with weight 0 this process still takes part in the exchange of gradients
            inputs, labels = self._blank(clips), torch.zeros(1, dtype=torch.long)
        if not self.model.config.temporal_config.experts_merged:  # else there is nothing to route
            mixture, merge_mixture = self.model.draw_mixtures(step_generator(self.seed, draw, self.rank))
            inputs |= {"mixture": mixture, "merge_mixture": merge_mixture}
        return self.prepared(**inputs, labels=labels.to(self.accelerator.device, non_blocking=True)).loss

    def _blank(self, clips: Any) -> dict[str, torch.Tensor]:
        config: Any = self.model.config
        side = config.vision_config.image_size
        shape = (config.projection_dim,) if clips.input_name == "frame_embeds" else (3, side, side)
        return {clips.input_name: torch.zeros(1, config.num_frames, *shape, device=self.accelerator.device)}

    def _update(self) -> float | None:
        norm = None
        if self.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.max_grad_norm).item()
        self.optimizer.step()
        if self.ema is not None and not self.accelerator.optimizer_step_was_skipped:
            self.ema.update_parameters(self.model)
        return norm


# ---------------------------------------------------------------------------------------------------------- validation


class ScoredClips(NamedTuple):
    """What a calibration is fitted to, float32 on the CPU.

    Attributes:
        cosines: to all classes, [b, c].
        labels: index of the true class, [b].
        frame_embeds: mean frame features e, [b, d].
        temporal_embeds: mean temporal features h, [b, d].
    """

    cosines: torch.Tensor
    labels: torch.Tensor
    frame_embeds: torch.Tensor
    temporal_embeds: torch.Tensor

    @classmethod
    def of(cls, model: Any, outputs: Any, frames: torch.Tensor, labels: torch.Tensor) -> "ScoredClips":
        """Those of a forward of frame features [b, t, d]."""
        temporal = outputs.temporal_model_output.last_hidden_state
        cosines = outputs.logits.float() / model.logit_scale.float().exp()
        return cls(*(each.cpu() for each in (cosines, labels, frames.float().mean(1), temporal.float().mean(1))))


@torch.no_grad()
def validate(
    model: MoTEForVideoClassification,
    clips: Any,
    accelerator: Accelerator,
    batch_size: int = 64,
    num_workers: int = 0,
    kept: list[ScoredClips] | None = None,
    class_embeds: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Top-1 over the training classes or others; every clip counts once, one that can't be read as wrong.

    Args:
        model: whose training classes are set, if no others are given.
        clips: data set of clips, whose labels are indices of the classes.
        accelerator: divides the clips between the processes.
        batch_size: clips per process and forward.
        num_workers: reading processes of each process.
        kept: takes what a calibration is fitted to, of the clips of all processes, if it is given.
        class_embeds: features of other classes, [c, d].

    Returns:
        `accuracy` from 0 to 1, `listed` and `scored` clips, and `bad_clips`, {name: why it can't be read}.
    """
    model.eval()
    counts = torch.zeros(2, dtype=torch.long, device=accelerator.device)  # right, scored
    unread, scored_here = [], []
    classes = {} if class_embeds is None else {"class_embeds": class_embeds}
    mine = list(range(accelerator.process_index, len(clips), accelerator.num_processes))
    batches = [mine[begin : begin + batch_size] for begin in range(0, len(mine), batch_size)]
    with ClipBatches(clips, batches, num_workers) as read:
        for batch in read:
            unread += [(clips.name(index), message) for index, _, message in batch["errors"]]
            if len(batch["labels"]):
                labels, inputs = batch["labels"].to(accelerator.device), clips.inputs(batch, accelerator.device)
                with accelerator.autocast():
                    frames = inputs.get("frame_embeds")
                    if frames is None:
                        frames = model.get_frame_features(**inputs, return_dict=True).pooler_output
                    outputs = model(frame_embeds=frames, return_dict=True, **classes)
                logits = outputs.logits  # [b, c]
                right = logits.argmax(-1) == labels
                if kept is not None:
                    scored_here.append(ScoredClips.of(model, outputs, frames, labels))
                counts += torch.stack([right.sum(), torch.tensor(len(right), device=right.device)])
    if kept is not None:
        kept += gather_object(scored_here) if accelerator.num_processes > 1 else scored_here
    right, scored = accelerator.reduce(counts, "sum").tolist()
    unread = gather_object(unread) if accelerator.num_processes > 1 else unread
    return {"accuracy": right / len(clips), "scored": scored, "listed": len(clips), "bad_clips": dict(sorted(unread))}


class BadClips:
    """Training clips that can't be read: named once in the log, counted, and too many of them stop the run.

    Args:
        clips: data set of clips.
        max_fraction: share of them above which the run stops.
        known: (index, message) of those that were found before.
    """

    def __init__(self, clips: Any, max_fraction: float, known: Sequence[Sequence[Any]] = ()):
        self.clips, self.limit = clips, max_fraction * len(clips)
        self.messages: dict[int, str] = {index: message for index, message in known}  # noqa: C416  lists, of JSON

    def names(self) -> dict[str, str]:
        """{name: why it can't be read}."""
        return {self.clips.name(index): message for index, message in self.messages.items()}

    def add(self, errors: Sequence[tuple[int, Any, str]]) -> dict[str, str]:
        """Count errors of a batch, (index, label, message).

        Returns:
            those whose names are new, with reasons.

        Raises:
            ValueError: if they are too many.
        """
        known = self.names()
        self.messages.update({index: message for index, _, message in sorted(errors)})
        if len(self.messages) > self.limit:
            raise ValueError(
                f"{len(self.messages)} of {len(self.clips)} training clips can't be read, more than max_bad_fraction "
                f"allows, the last one {list(self.names())[-1]}: run `mote check` on the data."
            )
        return {name: message for name, message in self.names().items() if name not in known}


__all__ = [
    "SCHEDULES",
    "BadClips",
    "Batches",
    "ScoredClips",
    "StepResult",
    "TrainStep",
    "fitting_batch_size",
    "freeze",
    "lr_at",
    "parameter_groups",
    "smooth_lr_at",
    "step_generator",
    "validate",
]
