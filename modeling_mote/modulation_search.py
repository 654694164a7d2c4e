"""Choosing how far a trained MoTE trusts its temporal layers on a target, from a few clips of it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .modeling_mote import MoTEModel

# From CLIP's features, all but alone, to the unmodulated model's.
TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 100.0)


@torch.no_grad()
def choose_modulation_temperature(
    model: MoTEModel,
    frame_embeds: torch.Tensor,
    class_embeds: torch.Tensor,
    labels: torch.Tensor,
    temperatures: Sequence[float] = TEMPERATURES,
) -> float:
    """Choose gamma of temporal feature modulation (Eq. 11) on a few labelled clips of the target.

    The paper fixes gamma = 0.05 for every target. One clip for each of half the target's classes is enough to tell
    whether the temporal layers help there; `model.config.modulation_temperature = ...` puts the answer to use.

    Args:
        model: in evaluation mode, with its training classes set.
        frame_embeds: frame features of b labelled clips, [b, t, d] or [b, v, t, d].
        class_embeds: features of the target's candidate classes, [c, d].
        labels: class of each clip, [b].
        temperatures: values of gamma to choose from.

    Returns:
        the one of least cross-entropy.

    Raises:
        ValueError: if the model has no training classes or is in training mode, where nothing is modulated.

    Shapes: b videos, v views, t frames, c candidate classes, d = `projection_dim`.
    """
    if model.training or not model.config.training_classes_set:
        raise ValueError(
            "Modulation needs a model in evaluation mode whose training classes are set: call eval() and "
            "set_training_classes(names, embeds)."
        )
    classes = model.normalize_classes(class_embeds)
    temporal_embeds = model.get_temporal_features(frame_embeds).last_hidden_state
    losses = {}
    for temperature in temperatures:
        logits, *_ = model.score_modulated(frame_embeds, temporal_embeds, classes, temperature)
        losses[temperature] = F.cross_entropy(logits, labels.to(classes.device)).item()
    return min(losses, key=losses.__getitem__)


__all__ = ["TEMPERATURES", "choose_modulation_temperature"]
