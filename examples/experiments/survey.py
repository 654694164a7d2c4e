"""The rows of the ablation's survey: what each choice of the method does alone, in five seeds of 400 steps.

Heads of one seed share the order of the clips and the draws, not the initial weights; what has to be decided between
two heads is in `paired.py`. Also how the world was chosen.
"""

import copy
import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from heads import ATTENTION, CONTROL, EXPERTS, MOTE, PLAIN, Variant, fit, modulated, new_model, temporal_part
from transformers import CLIPModel
from worlds import (
    CLIP,
    NAMES,
    SPLITS,
    UNSEEN,
    Data,
    World,
    encode_world,
    load_world,
    plain_clip,
    probe,
    quiet,
    read_clips,
    score,
    unmodulated,
)

from modeling_mote import modulation_search
from modeling_mote.blending import blend_with_clip
from modeling_mote.processing.builders.moving_shapes import OBJECTS
from modeling_mote.processing.files import write_whole
from modeling_mote.processing.tensor_files import load_tensors, save_tensors
from modeling_mote.training import freeze

STEPS = 400
TUNED_SEEDS, TUNED_STEPS, TUNED_CLIPS = 3, 100, 5
MOST_CLIPS = 4  # per class of the target, to choose on
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the temporal part, to choose from
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
WORLDS = tuple(World(*parts) for parts in itertools.product((6, 12), (2, 4), (0.0, 0.9)))
# The rule, fixed before any of these worlds was scored: of the worlds whose trained classes the plain head learns, the
# one where it loses most against CLIP, in the mean of these columns. No row of MoTE enters it.
LEARNED, LOST_ON = 0.9, (*UNSEEN, *NAMES)
# A second rule, fixed before any of these worlds was scored by a linear classifier of the mean frame: of the worlds
# whose trained classes the plain head learns, the one whose trained classes the mean frame tells apart least. It is
# where a temporal head has most to do; clips of its choice that are scored later are drawn anew.
# The first rule's choice, with more clips to score.
WORLD = World(12, 2, 0.9, eval_videos_per_class=20)


VARIANTS = {
    "plain": PLAIN,
    "control": CONTROL,
    "experts": EXPERTS,
    "merging": Variant("experts, merging loss, no MSE", mse_loss_weight=0.0),
    "mote": MOTE,
    "attention": ATTENTION,
    "experts_mse": Variant("experts, MSE, no merging loss", merging_loss_weight=0.0),
    "random_routing": Variant("random routing", routing="random"),
    "fixed_point": Variant("one merge point (uniform)", merge_temperatures=("inf",)),
    "experts_2": Variant("2 experts", experts=2),
    "experts_6": Variant("6 experts", experts=6),
    **{f"mote_layers_{n}": replace(MOTE, title=f"MoTE, {n} layers", layers=n) for n in (1, 2, 3, 5, 6)},
    **{f"plain_layers_{n}": replace(PLAIN, title=f"plain, {n} layers", layers=n) for n in (1, 2, 3, 5, 6)},
}


def train(variant: Variant, seed: int, data: Data, steps: int) -> Any:
    """A variant's head, drawn from the seed and trained on the cached features."""
    torch.manual_seed(seed)
    model = new_model(variant, data)
    return fit(model, {"frame_embeds": data.frame_embeds["train"]}, data.labels["train"], steps, seed, variant.routing)


# -------------------------------------------------------------------------------------------------------------- search


def objective(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """What choosing lowers: cross-entropy, or without labels the clips' entropy, or that less their mean's."""
    if kind == "labels":
        return F.cross_entropy(logits, labels)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    if kind == "entropy":
        return entropy
    return entropy - torch.distributions.Categorical(probs=logits.softmax(-1).mean(0)).entropy()


def choose_merge_weights(
    model: Any, frames: torch.Tensor, candidates: torch.Tensor, labels: torch.Tensor, kind: str, steps: int = 40
) -> torch.Tensor:
    """Merge weights [L, E] that lower the objective on a few clips, from the uniform ones on, by gradient descent."""
    config = model.config.temporal_config
    scores = torch.zeros(config.num_hidden_layers, config.num_experts, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(steps):
        videos = model.get_video_features(frame_embeds=frames, mixture=scores.softmax(-1)).pooler_output
        logits = model.logit_scale.exp() * F.normalize(videos, dim=-1) @ candidates.T
        optimizer.zero_grad()
        objective(logits, labels, kind).backward(inputs=[scores])
        optimizer.step()
    return scores.softmax(-1).detach()


def numbered(labels: torch.Tensor) -> torch.Tensor:
    """Number of each clip within its class, [n]."""
    return (F.one_hot(labels).cumsum(0).gather(1, labels[:, None]) - 1).squeeze(1)


def search(model: Any, data: Data, seed: int, target: str) -> list[dict[str, Any]]:
    """What is chosen on a few clips of half a target's classes, scored on all its other clips.

    Returns:
        for each method and number of clips a class: top-1 on other clips of the same classes (`same`) and of the other
        half (`other`).
    """
    split = dict(zip(UNSEEN, SPLITS[2:], strict=True))[target.removeprefix("names_")]
    frames, own = data.frame_embeds[split], data.labels[split]
    names, labels = data.names(split), own
    if target.startswith("names_"):
        names = [" ".join(thing) for thing in OBJECTS]
        labels = torch.tensor([names.index(f"{color} {shape}") for color, shape, _ in data.classes[split]])[own]
    candidates = data.candidates(names)
    number = numbered(own)
    most = min(MOST_CLIPS, int(number.max()))
    shuffled = torch.randperm(len(data.classes[split]), generator=torch.Generator().manual_seed(seed))
    ours, held_out = torch.isin(own, shuffled[: len(shuffled) // 2]), number >= most
    still, scale = frames.mean(1), model.logit_scale.exp().detach()
    found: list[dict[str, Any]] = []

    @torch.no_grad()
    def temporal(mixture: torch.Tensor | None = None) -> torch.Tensor:
        return model.get_temporal_features(frames, mixture).last_hidden_state.mean(1)

    def logits_of(moved: torch.Tensor) -> torch.Tensor:
        return scale * F.normalize(still + moved, dim=-1) @ candidates.T

    def note(method: str, clips: int, moved: torch.Tensor, choice: Any = None) -> None:
        right = (logits_of(moved).argmax(-1) == labels).double()
        same, other = (right[held_out & half].mean().item() for half in (ours, ~ours))
        found.append(
            {"target": target, "method": method, "clips": clips, "same": same, "other": other, "choice": choice}
        )

    uniform = temporal()
    modulated = {}
    for gamma in modulation_search.TEMPERATURES:
        rho = model.get_modulation(frames, candidates, gamma)
        modulated[gamma] = rho[:, None] * uniform
    scaled = {factor: factor * uniform for factor in SCALES}
    note("off", 0, uniform)
    note("clip", 0, scaled[0.0])
    note("gamma 0.05", 0, modulated[0.05])
    for clips, kind in ((1, "labels"), (most, "labels"), (most, "entropy"), (most, "diversity")):
        few = ours & (number < clips)
        mixture = choose_merge_weights(model, frames[few], candidates, labels[few], kind)
        note(f"merge weights, {kind}", clips, temporal(mixture), mixture.tolist())
        for name, options in (("gamma", modulated), ("scale", scaled)):
            losses = {
                value: objective(logits_of(moved)[few], labels[few], kind).item() for value, moved in options.items()
            }
            best = min(losses, key=losses.__getitem__)
            note(f"{name}, {kind}", clips, options[best], best)
    return found


# --------------------------------------------------------------------------------------------------------- tuned tower

TUNED = {"tuned_plain": "plain", "tuned_control": "control", "tuned_mote": "mote"}


def tune(name: str, seed: int, world: World, steps: int, output: Path) -> dict[str, Any]:
    """Trains a finished head further together with the image tower, then blends the tower with CLIP's.

    Scored on the first clips of each class, since each alpha has frames of its own: `before`, and for each alpha.
    """
    builder, data = encode_world(world, output), load_world(world, output)
    model = trained_head(TUNED[name], seed, data, world, steps, output)
    pixels: dict[str, torch.Tensor] = {}
    for split in SPLITS:
        first = None if split == "train" else TUNED_CLIPS
        pixels[split] = torch.cat([batch["pixel_values_videos"] for batch in read_clips(builder, split, first)])
        if first is not None:
            kept = numbered(data.labels[split]) < first
            data.frame_embeds[split], data.labels[split] = data.frame_embeds[split][kept], data.labels[split][kept]
    before = score(unmodulated(temporal_part(model, data), data), data)

    @torch.no_grad()
    def scored() -> dict[str, float]:
        for split in SPLITS[1:]:
            parts = [model.get_frame_features(part).pooler_output for part in pixels[split].split(64)]
            data.frame_embeds[split] = torch.cat(parts)
        return score(unmodulated(temporal_part(model, data), data), data)

    clips = {"pixel_values_videos": pixels["train"]}
    freeze(model.requires_grad_(True))
    fit(model, clips, data.labels["train"], min(steps, TUNED_STEPS), seed, lr=1e-4, clip_lr=1e-4)
    tuned = copy.deepcopy(model.state_dict())
    clip = CLIPModel.from_pretrained(CLIP)
    blends = []
    for alpha in ALPHAS:
        model.load_state_dict(tuned)
        blend_with_clip(model, clip, alpha)
        blends.append(scored())
    return {"before": before, "blends": blends, "clips": {split: len(data.labels[split]) for split in SPLITS[1:]}}


# ---------------------------------------------------------------------------------------------------------------- rows


def settings(world: World, steps: int) -> dict[str, Any]:
    return {"world": asdict(world), "steps": steps}


def trained_head(name: str, seed: int, data: Data, world: World, steps: int, output: Path) -> Any:
    """The model of a variant and seed, from disk or trained."""
    path = output / "heads" / f"{name}-{seed}.safetensors"
    made_with = {"settings": json.dumps(settings(world, steps))}
    if path.is_file():
        weights, metadata = load_tensors(path)
        if metadata == made_with:
            model = new_model(VARIANTS[name], data)
            model.temporal_model.load_state_dict(weights)
            return model.eval()
    model = train(VARIANTS[name], seed, data, steps)
    save_tensors(model.temporal_model.state_dict(), path, made_with)
    return model


@torch.no_grad()
def evaluate(model: Any, data: Data, name: str, seed: int) -> dict[str, Any]:
    """What is measured of a variant's trained model; of some variants more than of others."""
    layers, experts = model.config.temporal_config.num_hidden_layers, model.config.temporal_config.num_experts
    merged = temporal_part(model, data)
    measured: dict[str, Any] = {
        "off": score(unmodulated(merged, data), data),
        "modulated": score(modulated(model, merged, data, 0.05), data),
        "modulated_wide": score(modulated(model, merged, data, 0.5), data),
    }
    if "layers" in name:
        return measured
    without = temporal_part(model, data, torch.zeros(layers, experts))
    measured["dropped"] = score(unmodulated(without, data), data)
    if experts == 1:
        return measured
    # Expert k in every layer.
    alone = [
        temporal_part(model, data, F.one_hot(torch.tensor([k]), experts).float().expand(layers, -1))
        for k in range(experts)
    ]

    def ensemble(split: str, candidates: torch.Tensor) -> torch.Tensor:
        cosines = [unmodulated(moved, data)(split, candidates) for moved in alone]
        return torch.stack(cosines).mean(0)

    # One expert per layer for each batch of 16 clips, as training routes it but drawn uniformly.
    draw, routed = torch.Generator().manual_seed(seed), {}
    for split in merged:
        parts = []
        for frames in data.frame_embeds[split].split(16):
            mixture = F.one_hot(torch.randint(experts, (layers,), generator=draw), experts).float()
            parts.append(model.get_temporal_features(frames, mixture).last_hidden_state.mean(1))
        routed[split] = torch.cat(parts)
    pairs = list(itertools.combinations(range(experts), 2))
    stacked = [
        torch.cat([weight.flatten(1) for weight in layer.mlp.parameters()], 1) for layer in model.temporal_model.layers
    ]
    measured |= {
        "alone": [score(unmodulated(moved, data), data) for moved in alone],
        "logits": score(ensemble, data),
        "routed": score(unmodulated(routed, data), data),
        "weights_cosine": mean(
            F.cosine_similarity(weights[i], weights[j], dim=0).item() for weights in stacked for i, j in pairs
        ),
        "features_cosine": mean(
            F.cosine_similarity(alone[i][split], alone[j][split]).mean().item() for split in merged for i, j in pairs
        ),
    }
    return measured


def run_row(name: str, seed: int, world: World, steps: int, output: Path) -> dict[str, Any]:
    """Scores of a variant and seed, from disk or computed."""
    path = output / "rows" / f"{name}-{seed}.json"
    if path.is_file():
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["settings"] != settings(world, steps):
            raise ValueError(f"{path} was computed with other settings: choose another --output, or remove it.")
        return row
    torch.set_num_threads(1)
    quiet()
    data = load_world(world, output)
    measured: dict[str, Any]
    if name == "clip":
        measured = {"off": plain_clip(data)}
    elif name in TUNED:
        measured = tune(name, seed, world, steps, output)
    else:
        model = trained_head(name, seed, data, world, steps, output)
        measured = evaluate(model, data, name, seed)
        if name == "mote":
            measured["search"] = list(
                itertools.chain(*(search(model, data, seed, target) for target in (*UNSEEN, *NAMES)))
            )
    row = {"variant": name, "seed": seed, "settings": settings(world, steps), **measured}
    write_whole(path, json.dumps(row, indent=1))
    return row


# ----------------------------------------------------------------------------------------------------------- the world


def score_world(world: World, seeds: int, steps: int, output: Path) -> dict[str, Any]:
    """CLIP's and the plain head's row in a world, from disk or computed."""
    path = output / "worlds" / f"{world.name}.json"
    if path.is_file():
        row = json.loads(path.read_text(encoding="utf-8"))
        if (row["seeds"], row["steps"]) != (seeds, steps):
            raise ValueError(f"{path} was computed with other settings: choose another --output, or remove it.")
        return row
    torch.set_num_threads(1)
    quiet()
    encode_world(world, output)
    data = load_world(world, output)
    parts = [temporal_part(train(PLAIN, seed, data, steps), data) for seed in range(seeds)]
    rows = [score(unmodulated(part, data), data) for part in parts]
    plain = {column: mean(row[column] for row in rows) for column in rows[0]}
    clip = plain_clip(data)
    lost = mean(clip[column] - plain[column] for column in LOST_ON)
    row = {"world": asdict(world), "seeds": seeds, "steps": steps, "clip": clip, "plain": plain, "lost": lost}
    row["probe"] = probe(data)
    write_whole(path, json.dumps(row, indent=1))
    return row


def ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of worlds, the one that the rule chooses first."""
    return sorted(rows, key=lambda row: (row["plain"]["trained"] < LEARNED, -row["lost"]))


def hardest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the world that the second rule chooses."""
    return min(rows, key=lambda row: (row["plain"]["trained"] < LEARNED, row["probe"]))
