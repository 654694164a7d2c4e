"""What a training loop of MoTE needs beside the model: the authors' schedule, parameter groups and per-step draws."""

import math

import torch
from torch import nn

from .modeling_mote import MoTEModel


def lr_at(
    epoch: int,
    iteration: int,
    iterations_per_epoch: int,
    epochs: int = 30,
    warmup_epochs: float = 5,
    lr: float = 5e-5,
) -> float:
    """Learning rate before an iteration: linear warm-up from 0, then cosine to 0, moved on every tenth iteration only.

    Before iteration i of an epoch with i = 0 or (i + 1) % 10 = 0 the progress becomes epoch + i / n, else it stays, as
    in the authors' code.

    Args:
        epoch: from 0.
        iteration: i, from 0, counted in optimizer steps of this epoch.
        iterations_per_epoch: n.
        epochs: length of the whole schedule.
        warmup_epochs: length of the warm-up; may be a fraction.
        lr: peak learning rate; the head's in the paper by default.

    Returns:
        the learning rate.

    Raises:
        ValueError: if the iteration lies outside its epoch.
    """
    if not 0 <= iteration < iterations_per_epoch:
        raise ValueError(f"iteration must be in [0, {iterations_per_epoch}), got {iteration}.")
    last_moved = (iteration + 1) // 10 * 10 - 1 if iteration >= 9 else 0
    progress = epoch + last_moved / iterations_per_epoch
    if progress < warmup_epochs:
        return lr * progress / warmup_epochs
    return lr * 0.5 * (1 + math.cos(math.pi * (progress - warmup_epochs) / (epochs - warmup_epochs)))


def freeze(model: MoTEModel, image_tower: bool = False) -> None:
    """Freezes the text tower, as the paper does, and the image tower with the logit scale where asked."""
    frozen: list[nn.Module | nn.Parameter] = [model.text_model, model.text_projection]
    if image_tower:
        frozen += [model.vision_model, model.visual_projection, model.logit_scale]
    for part in frozen:
        part.requires_grad_(False)


def parameter_groups(model: MoTEModel, lr: float, clip_lr: float, weight_decay: float = 0.2) -> list[dict]:
    """The authors' two groups for AdamW: the temporal head at `lr`, the rest at `clip_lr`; decay on every parameter.

    Frozen parameters are in neither. Each group carries its peak rate as `peak_lr`, for [`lr_at`].
    """
    head = [parameter for parameter in model.temporal_model.parameters() if parameter.requires_grad]
    of_head = {id(parameter) for parameter in head}
    clip = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in of_head]
    groups = [
        {"name": "head", "params": head, "lr": lr, "peak_lr": lr, "weight_decay": weight_decay},
        {"name": "clip", "params": clip, "lr": clip_lr, "peak_lr": clip_lr, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The generator of one step's mixtures: the same on every process given a rank, and again after a resume."""
    generator = torch.Generator()
    # Odd multipliers keep (seed, step, rank) apart, also in the low 32 bits, all that the CPU generator uses.
    generator.manual_seed((seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63)
    return generator
