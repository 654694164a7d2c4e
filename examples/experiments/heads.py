"""Temporal heads that the experiments compare, and their training on cached frame features."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap
from worlds import CLIP, Cosines, Data, load_clip

from modeling_mote import MoTEConfig, MoTEForVideoClassification
from modeling_mote.training import freeze, lr_at, parameter_groups, step_generator


@dataclass(frozen=True)
class Variant:
    """A head and its losses; the defaults are MoTE's."""

    title: str
    experts: int = 4
    layers: int = 4
    merging_loss_weight: float = 0.5
    mse_loss_weight: float = 0.1
    merge_temperatures: tuple[float | str, ...] = tuple(MoTEConfig.merge_temperatures)
    routing: str = "multinomial"  # or `random`: experts of equal odds
    feed_forwards: str = "trained"  # or `frozen` as they were drawn, or `none`
    still_penalty: float = 0.0  # weight of the mean square of the temporal part on the clip's mean frame, repeated
    centred: bool = False  # whether the temporal layers read frames less their clip's mean frame
    difference: bool = False  # whether from the temporal part is taken what it is for the clip's mean frame, repeated
    structure: float = 0.0  # weight of the KL divergence between the video's and CLIP's similarities to directions


PLAIN = Variant("plain temporal Transformer", experts=1, merging_loss_weight=0.0, mse_loss_weight=0.0)
CONTROL = Variant("one expert, same losses (control)", experts=1)
MOTE = Variant("MoTE")
ATTENTION = replace(CONTROL, title="attention alone, same losses", feed_forwards="none")
FROZEN = replace(CONTROL, title="one expert, frozen as drawn, same losses", feed_forwards="frozen")
EXPERTS = replace(MOTE, title="experts and routing, no further loss", merging_loss_weight=0.0, mse_loss_weight=0.0)
# AdamW ignores the scale of a loss, not its proportions: the MSE keeps its share beside 1 + 0.5 cross-entropies.
NO_MERGING = replace(MOTE, title="MoTE without its merging loss", merging_loss_weight=0.0, mse_loss_weight=0.1 / 1.5)
# Not of the paper: what a clip shows without moving is CLIP's to judge, so the temporal part should say nothing of it.
STILL = replace(ATTENTION, title="attention alone, still penalty", still_penalty=0.3)
STILL_MOTE = replace(MOTE, title="MoTE, still penalty", still_penalty=0.3)
CENTRED = replace(ATTENTION, title="attention alone, centred frames", centred=True)
# Tried on development worlds (`paired.DEVELOPMENT_WHERE`), whose clips are scored nowhere else: the penalty's weight,
# what it tends to, and TACO's relative structure distillation with its weight and number of directions.
STILL_1 = replace(ATTENTION, title="attention alone, still penalty of 1", still_penalty=1.0)
STILL_10 = replace(ATTENTION, title="attention alone, still penalty of 10", still_penalty=10.0)
DIFFERENCE = replace(ATTENTION, title="attention alone, less its part of the clip held still", difference=True)
STRUCTURE = replace(ATTENTION, title="attention alone, relative structure distillation", structure=0.4)
DIRECTIONS, SHARPNESS = 200, 10.0
# The weight chosen there by the mean trade-off of attention alone: 3, level with 10 and milder.
STILL_STRONG = replace(ATTENTION, title="attention alone, still penalty of 3", still_penalty=3.0)
STILL_STRONG_MOTE = replace(MOTE, title="MoTE, still penalty of 3", still_penalty=3.0)


class Candidate(MoTEForVideoClassification):
    """MoTE with what a variant changes and MoTE has no option for."""

    variant = MOTE

    def get_temporal_features(self, frame_embeds: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.variant.centred:
            frame_embeds = frame_embeds - frame_embeds.mean(-2, keepdim=True)
        found = super().get_temporal_features(frame_embeds, *args, **kwargs)
        if self.variant.difference:
            still = frame_embeds.mean(-2, keepdim=True).expand_as(frame_embeds)
            of_still = super().get_temporal_features(still, *args, **kwargs).last_hidden_state
            found.last_hidden_state = found.last_hidden_state - of_still
        return found

    def _merged_pass_loss(
        self, frame_embeds: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor, mixture: Any, *args: Any
    ) -> torch.Tensor:
        loss = super()._merged_pass_loss(frame_embeds, classes, labels, mixture, *args)
        if not self.variant.structure:
            return loss
        clip = frame_embeds.mean(-2)
        video = clip + self.get_temporal_features(frame_embeds, mixture).last_hidden_state.mean(-2)
        directions = F.normalize(torch.randn(DIRECTIONS, clip.shape[-1]), dim=-1)
        ours, clips = (
            (SHARPNESS * F.normalize(each, dim=-1) @ directions.T).log_softmax(-1) for each in (video, clip)
        )
        return loss + self.variant.structure * (clips.exp() * (clips - ours)).sum(-1).mean()


class NoFeedForward(nn.Module):
    """In the place of a layer's experts: adds nothing."""

    def forward(self, hidden_states: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def new_model(variant: Variant, data: Data, init_scale: float = 1.0) -> MoTEForVideoClassification:
    """The tiny CLIP, a new head drawn from PyTorch's generator, and the training classes; all but the head frozen.

    Args:
        variant: what the head is made of.
        data: of the training classes.
        init_scale: factor of the standard deviation that the paper's rule draws weights with.
    """
    sizes = {"num_hidden_layers": variant.layers, "num_experts": variant.experts}
    if data.width != MoTEConfig.from_pretrained(CLIP).projection_dim:  # the paper's proportions
        sizes |= {"hidden_size": data.width, "intermediate_size": 4 * data.width}
        sizes["num_attention_heads"] = data.width // 64
    model = load_clip(
        Candidate,
        projection_dim=data.width,
        ignore_mismatched_sizes=True,  # of CLIP's projection, which cached features are past
        temporal_config=sizes | {"initializer_range": 0.02 * init_scale},
        merging_loss_weight=variant.merging_loss_weight,
        mse_loss_weight=variant.mse_loss_weight,
        still_penalty_weight=variant.still_penalty,
        merge_temperatures=variant.merge_temperatures,
    )
    model.variant = variant
    names = data.names("train")
    model.set_training_classes(names, data.candidates(names))
    freeze(model, image_tower=True)
    for layer in model.temporal_model.layers:
        if variant.feed_forwards == "none":
            layer.mlp = NoFeedForward()
        elif variant.feed_forwards == "frozen":
            layer.mlp.requires_grad_(False)
    return model


def paired_model(variant: Variant, seed: int, data: Data, init_scale: float = 1.0) -> MoTEForVideoClassification:
    """A head whose first weights are those of MoTE's head of the same seed, wherever it has such weights.

    Drawing four experts moves the random numbers on, so that heads drawn from one seed would differ in their
    attention. One expert is MoTE's first.
    """
    torch.manual_seed(seed)
    drawn = new_model(MOTE, data, init_scale).temporal_model.state_dict()
    model = new_model(variant, data, init_scale)
    own = model.temporal_model.state_dict()
    model.temporal_model.load_state_dict({name: drawn[name][: len(weight)] for name, weight in own.items()})
    return model


def clip_order(clips: int, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices of the clips of each step, [b]: every clip once before any comes again."""
    order, queue = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(clips, generator=order)])
        yield queue[:batch_size]
        queue = queue[batch_size:]


def draws(model: Any, seed: int, step: int, routing: str = "multinomial") -> list[torch.Tensor]:
    """The mixtures of a step's routed and merged pass, [L, E] each."""
    draw = step_generator(seed, step)
    mixture, merge_mixture = model.draw_mixtures(draw)
    if routing == "random":
        mixture = F.one_hot(torch.randint(mixture.shape[1], (len(mixture),), generator=draw), mixture.shape[1])
    return [mixture, merge_mixture]


def take_steps(groups: list[dict[str, Any]], steps: int, loss_of: Callable[[int], torch.Tensor]) -> None:
    """The authors' optimizer and schedule over parameter groups; `loss_of` a step has the gradient."""
    optimizer = torch.optim.AdamW(groups, fused=True)
    torch.manual_seed(0)  # of the directions that a candidate draws
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(0, step, steps, epochs=1, warmup_epochs=0.05, lr=group["peak_lr"])
        loss_of(step).backward()
        optimizer.step()
        optimizer.zero_grad()


def fit(
    model: Any,
    clips: dict[str, torch.Tensor],
    labels: torch.Tensor,
    steps: int,
    seed: int,
    routing: str = "multinomial",
    lr: float = 1e-3,
    clip_lr: float = 0.0,
    batch_size: int = 32,
) -> Any:
    """Trains what takes a gradient, with the authors' optimizer and schedule; the model in evaluation mode.

    Args:
        model: a new head, or one to train further.
        clips: the model's input by its name, of n clips.
        labels: their classes, [n].
        steps: optimizer steps.
        seed: of order and draws.
        routing: `multinomial`, or `random` for experts of equal odds.
        lr: peak learning rate of the head.
        clip_lr: that of the image tower.
        batch_size: clips per step.
    """
    order = clip_order(len(labels), batch_size, seed)

    def loss_of(step: int) -> torch.Tensor:
        batch, (mixture, merge_mixture) = next(order), draws(model, seed, step, routing)
        inputs = {name: tensor[batch] for name, tensor in clips.items()}
        return model(**inputs, labels=labels[batch], mixture=mixture, merge_mixture=merge_mixture).loss

    model.train()
    take_steps(parameter_groups(model, lr, clip_lr), steps, loss_of)
    return model.eval()


def fit_together(
    models: Sequence[Any],
    frame_embeds: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
    seeds: Sequence[int],
    lr: float = 1e-3,
    batch_size: int = 32,
    compiled: bool = False,
) -> Sequence[Any]:
    """As `fit` of each model on cached frame features [n, t, d], in less time: heads of one kind, their weights
    stacked [s, ...], take each step at once; `compiled` in half of that, after a minute or two of `torch.compile`.
    """
    one, orders = models[0].train(), [clip_order(len(labels), batch_size, seed) for seed in seeds]
    heads = [dict(model.temporal_model.named_parameters()) for model in models]
    stacked = {
        name: torch.stack([head[name].detach() for head in heads]).requires_grad_(weight.requires_grad)
        for name, weight in heads[0].items()
    }
    attention = one.config._attn_implementation
    one.set_attn_implementation("eager")  # PyTorch's own has no rule for stacked weights

    def loss(head: dict[str, torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        names = ("frame_embeds", "labels", "mixture", "merge_mixture")
        weights = {f"temporal_model.{name}": weight for name, weight in head.items()}
        return functional_call(one, weights, kwargs=dict(zip(names, inputs, strict=True))).loss

    def losses(heads: dict[str, torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        return vmap(loss, randomness="same")(heads, *inputs).sum()

    sum_of: Callable[..., torch.Tensor] = losses
    if compiled:
        torch.compiler.reset()  # else those of earlier heads count against the limit of what is compiled
        sum_of = torch.compile(losses)

    def loss_of(step: int) -> torch.Tensor:
        batches = torch.stack([next(order) for order in orders])
        mixtures = [torch.stack(each) for each in zip(*(draws(one, seed, step) for seed in seeds), strict=True)]
        return sum_of(stacked, frame_embeds[batches], labels[batches], *mixtures)

    of_head = {id(weight): name for name, weight in heads[0].items()}
    (group,) = parameter_groups(one, lr, 0.0)
    group["params"] = [stacked[of_head[id(weight)]] for weight in group["params"]]
    take_steps([group], steps, loss_of)
    one.set_attn_implementation(attention)
    for place, (model, head) in enumerate(zip(models, heads, strict=True)):
        for name, weight in head.items():
            weight.data.copy_(stacked[name][place].detach())
        model.eval()
    return models


@torch.no_grad()
def temporal_part(model: Any, data: Data, mixture: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """What the head adds to the pooled frame features, [n, d] per split."""
    return {
        split: model.get_temporal_features(frames, mixture).last_hidden_state.mean(1)
        for split, frames in data.frame_embeds.items()
        if split != "train"
    }


def modulated(model: Any, moved: dict[str, torch.Tensor], data: Data, gamma: float, scope: str = "list") -> Cosines:
    """The model's own scores of the temporal part [n, d] per split, modulated by the paper's rule or per label."""

    def scores(split: str, candidates: torch.Tensor) -> torch.Tensor:
        model.config.modulation_scope = scope
        frames = data.frame_embeds[split].mean(1, keepdim=True)
        logits, *_ = model.score_modulated(frames, moved[split][:, None], candidates, gamma)
        return logits

    return scores
