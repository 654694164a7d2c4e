"""Ablates MoTE on MovingShapes: what experts, merging, MSE and modulation do to trained and to unseen classes.

    python examples/ablation.py --choose_world   # how hard a world: scores CLIP and the plain head in each of a grid
    python examples/ablation.py                  # every row, five seeds; a cut run goes on where it was
    python examples/ablation.py --quick          # the same with few steps and seeds, to see it work
    python examples/ablation.py --only mote --seed 3    # one training and its scores

All rows start from `examples/moving_shapes_clip`, whose image tower stays frozen: every frame is encoded once. Prints
the tables. Leaves in `--output` a JSON file a row and seed, and in `--report` `ablation.json`, the tables of
`ablation.md` and two plots.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any

import datasets
import torch
import torch.nn.functional as F
import transformers
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoTokenizer, CLIPImageProcessor

from modeling_mote import MoTEForVideoClassification
from modeling_mote.feature_cache import class_features, load_with_metadata, write_whole
from modeling_mote.modeling_mote import merging_weights, temporal_feature_modulation
from modeling_mote.training import freeze, lr_at, parameter_groups, step_generator
from processing import MoTEVideoProcessor
from processing.builders import MovingShapes
from processing.builders.moving_shapes import MOTIONS, OBJECTS, class_name
from processing.clips import VideoClips, collate_clips

HERE = Path(__file__).resolve().parent
CLIP = HERE / "moving_shapes_clip"
NUM_FRAMES = 8
DIAL = (-0.6, -1.2, -2.4, -4.8, -9.6, "inf", 9.6, 4.8, 2.4, 1.2, 0.6)
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SPLITS = ("train", "test", "test_compositions", "test_objects", "test_motions")
TEMPERATURES = (-9.6, -4.8, -2.4, -1.2, -0.6, 0.6, 1.2, 2.4, 4.8, 9.6, "inf")


@dataclass(frozen=True)
class World:
    """Options of `MovingShapesConfig`."""

    train_objects: int
    motions_per_object: int
    static_cue: float
    train_videos_per_class: int = 20
    eval_videos_per_class: int = 5

    @property
    def name(self) -> str:
        return (
            f"{self.train_objects}objects_{self.motions_per_object}motions_cue{self.static_cue}"
            f"_{self.train_videos_per_class}train_{self.eval_videos_per_class}eval"
        )


WORLDS = [World(*parts) for parts in itertools.product((6, 12), (2, 4), (0.0, 0.9))]
# The rule, fixed before any of these worlds was scored: of the worlds whose trained classes the plain head learns, the
# one where it loses most against CLIP, in the mean of these columns. No row of MoTE enters it.
LEARNED = 0.9
LOST_ON = ("compositions", "objects", "motions", "names_objects", "names_motions")


@dataclass(frozen=True)
class Variant:
    """A head and its losses; the defaults are MoTE's."""

    title: str
    experts: int = 4
    layers: int = 4
    merging_loss_weight: float = 0.5
    mse_loss_weight: float = 0.1
    merge_temperatures: tuple[float | str, ...] = TEMPERATURES
    routing: str = "multinomial"


PLAIN = Variant("plain temporal Transformer", experts=1, merging_loss_weight=0.0, mse_loss_weight=0.0)
MOTE = Variant("+ MSE (MoTE, modulation off)")
VARIANTS = {
    "plain": PLAIN,
    "control": Variant("one expert, same extra losses (control)", experts=1),
    "experts": Variant("experts, multinomial routing", merging_loss_weight=0.0, mse_loss_weight=0.0),
    "merging": Variant("+ merging loss", mse_loss_weight=0.0),
    "mote": MOTE,
    "random_routing": Variant("random routing", routing="random"),
    "fixed_point": Variant("one merge point (uniform)", merge_temperatures=("inf",)),
    "experts_2": Variant("2 experts", experts=2),
    "experts_6": Variant("6 experts", experts=6),
    **{f"mote_layers_{n}": replace(MOTE, title=f"MoTE, {n} layers", layers=n) for n in (1, 2, 3, 5, 6)},
    **{f"plain_layers_{n}": replace(PLAIN, title=f"plain, {n} layers", layers=n) for n in (1, 2, 3, 5, 6)},
}


# --------------------------------------------------------------------------------------------------------------- world


@dataclass
class Data:
    """A world as features: frame_embeds [n, t, d] and class indices [n] a split; class features by their names."""

    classes: dict[str, list[tuple[str, str, str]]]
    frame_embeds: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    text_embeds: dict[str, torch.Tensor]

    def names(self, split: str) -> list[str]:
        return [class_name(*parts) for parts in self.classes[split]]

    def candidates(self, names: Iterable[str]) -> torch.Tensor:
        return torch.stack([self.text_embeds[name] for name in names])


def load_clip(**config: Any) -> MoTEForVideoClassification:
    """The tiny CLIP with a new head, drawn from PyTorch's generator."""
    return MoTEForVideoClassification.from_pretrained(CLIP, num_frames=NUM_FRAMES, dtype=torch.float32, **config)


@torch.no_grad()
def encode_world(world: World, output: Path) -> None:
    """Writes a world's videos, encodes every frame once, and keeps the features."""
    path = output / "worlds" / f"{world.name}.safetensors"
    if path.is_file():
        return
    builder = MovingShapes(cache_dir=str(output / "data"), **asdict(world))
    builder.download_and_prepare()
    model, pixels = load_clip().eval(), CLIPImageProcessor.from_pretrained(CLIP)
    side = model.config.vision_config.image_size
    video_processor = MoTEVideoProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=pixels.image_mean,
        image_std=pixels.image_std,
    )
    tensors = {}
    for split in SPLITS:
        rows = builder.as_dataset(split)
        places = {rows.features["label"].str2int(name): k for k, name in enumerate(builder.class_names(split))}
        clips = VideoClips(rows, video_processor, NUM_FRAMES, "uniform", labels=places)
        batches = list(DataLoader(clips, batch_size=64, collate_fn=collate_clips))
        tensors[f"{split}.frame_embeds"] = torch.cat(
            [model.get_frame_features(batch["pixel_values_videos"]).pooler_output for batch in batches]
        )
        tensors[f"{split}.labels"] = torch.cat([batch["labels"] for batch in batches])
    write_whole(tensors, path)


def load_world(world: World, output: Path) -> Data:
    tensors, _ = load_with_metadata(output / "worlds" / f"{world.name}.safetensors")
    config = MovingShapes.BUILDER_CONFIG_CLASS(**asdict(world))
    things = [" ".join(thing) for thing in OBJECTS]
    names = things + [f"{thing} {motion}" for thing in things for motion in MOTIONS]
    embeds = class_features(load_clip(), AutoTokenizer.from_pretrained(CLIP), names, cache_dir=output)
    return Data(
        classes={split: config.classes(split) for split in SPLITS},
        frame_embeds={split: tensors[f"{split}.frame_embeds"] for split in SPLITS},
        labels={split: tensors[f"{split}.labels"] for split in SPLITS},
        text_embeds=dict(zip(names, embeds, strict=True)),
    )


# ------------------------------------------------------------------------------------------------------------ training


def new_model(variant: Variant, data: Data) -> MoTEForVideoClassification:
    """The tiny CLIP, a new head drawn from PyTorch's generator, and the training classes."""
    model = load_clip(
        temporal_config={"num_hidden_layers": variant.layers, "num_experts": variant.experts},
        merging_loss_weight=variant.merging_loss_weight,
        mse_loss_weight=variant.mse_loss_weight,
        merge_temperatures=variant.merge_temperatures,
    )
    names = data.names("train")
    model.set_training_classes(names, data.candidates(names))
    return model


def train(variant: Variant, seed: int, data: Data, steps: int, batch_size: int = 64, lr: float = 1e-3) -> Any:
    """A head trained on the cached features with the authors' schedule: the model, in evaluation mode."""
    torch.manual_seed(seed)
    model = new_model(variant, data)
    freeze(model, image_tower=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, lr, 0.0))
    frames, labels = data.frame_embeds["train"], data.labels["train"]
    order = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.long)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(0, step, steps, epochs=1, warmup_epochs=0.05, lr=group["peak_lr"])
        while len(queue) < batch_size:
            queue = torch.cat([queue, torch.randperm(len(labels), generator=order)])
        batch, queue = queue[:batch_size], queue[batch_size:]
        draw = step_generator(seed, step)
        mixture, merge_mixture = model.draw_mixtures(draw)
        if variant.routing == "random":
            chosen = torch.randint(variant.experts, (variant.layers,), generator=draw)
            mixture = F.one_hot(chosen, variant.experts).float()
        model(
            frame_embeds=frames[batch], labels=labels[batch], mixture=mixture, merge_mixture=merge_mixture
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


# ------------------------------------------------------------------------------------------------------------- scoring

# Pooled video features, not normalised [n, d], of a split under candidate classes.
Features = Callable[[str, torch.Tensor], torch.Tensor]
UNSEEN = ("compositions", "objects", "motions")


def score(features: Features, data: Data) -> dict[str, float]:
    """Top-1 of every column."""
    everything = [name for split in SPLITS[1:] for name in data.names(split)]
    things = [" ".join(thing) for thing in OBJECTS]
    columns = {}

    def top1(split: str, names: list[str], truth: list[str]) -> float:
        candidates = data.candidates(names)
        found = (F.normalize(features(split, candidates), dim=-1) @ candidates.T).argmax(-1)
        targets = torch.tensor([names.index(name) for name in truth])[data.labels[split]]
        return (found == targets).double().mean().item()

    for split, column in zip(SPLITS[1:], ("trained", *UNSEEN), strict=True):
        names = data.names(split)
        columns[column] = top1(split, names, names)
        columns[f"one_list_{column}"] = top1(split, everything, names)
        columns[f"names_{column}"] = top1(
            split, things, [f"{color} {shape}" for color, shape, _ in data.classes[split]]
        )
    columns["one_list_unseen"] = mean(columns[f"one_list_{column}"] for column in UNSEEN)
    # As the paper's table 4: over the unseen sets, then with the trained one.
    unseen = harmonic_mean([columns[column] for column in UNSEEN])
    columns["trade_off"] = harmonic_mean([columns["trained"], unseen])
    return columns


@torch.no_grad()
def temporal_part(model: Any, data: Data, mixture: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """What the head adds to the pooled frame features, [n, d] a split."""
    return {
        split: model.get_video_features(frame_embeds=frames, mixture=mixture).pooler_output - frames.mean(1)
        for split, frames in data.frame_embeds.items()
        if split != "train"
    }


def plain_clip(data: Data) -> dict[str, float]:
    return score(lambda split, _: data.frame_embeds[split].mean(1), data)


def unmodulated(moved: dict[str, torch.Tensor], data: Data, scale: float = 1.0) -> dict[str, float]:
    return score(lambda split, _: data.frame_embeds[split].mean(1) + scale * moved[split], data)


# ---------------------------------------------------------------------------------------------------------------- rows


def settings(world: World, steps: int) -> dict[str, Any]:
    return {"world": asdict(world), "steps": steps}


def trained_head(name: str, seed: int, data: Data, steps: int, output: Path) -> Any:
    """The model of a variant and seed, from disk or trained."""
    path = output / "heads" / f"{name}-{seed}.safetensors"
    variant = VARIANTS[name]
    if not path.is_file():
        model = train(variant, seed, data, steps)
        write_whole(model.temporal_model.state_dict(), path)
        return model
    model = new_model(variant, data)
    model.temporal_model.load_state_dict(load_with_metadata(path)[0])
    return model.eval()


@torch.no_grad()
def evaluate(model: Any, data: Data, seed: int) -> dict[str, Any]:
    """Everything that is measured of one trained model."""
    layers, experts = model.config.temporal_config.num_hidden_layers, model.config.temporal_config.num_experts
    still = {split: frames.mean(1) for split, frames in data.frame_embeds.items()}
    merged = temporal_part(model, data)

    def modulated(temperature: float) -> dict[str, float]:
        def features(split: str, candidates: torch.Tensor) -> torch.Tensor:
            rho = temporal_feature_modulation(
                data.frame_embeds[split], candidates, model.seen_classes.weight, temperature=temperature
            )
            return still[split] + rho[:, None] * merged[split]

        return score(features, data)

    measured: dict[str, Any] = {
        "off": unmodulated(merged, data),
        "modulated": modulated(0.05),
        "modulated_wide": modulated(0.5),
        "scale": [unmodulated(merged, data, scale) for scale in SCALES],
    }
    if experts == 1:
        return measured
    # Expert k in every layer.
    alone = [
        temporal_part(model, data, F.one_hot(torch.tensor([k]), experts).float().expand(layers, -1))
        for k in range(experts)
    ]
    ensemble = {
        split: torch.stack([F.normalize(still[split] + moved[split], dim=-1) for moved in alone]).mean(0)
        for split in merged
    }
    # One expert a layer for each batch of 16 clips, as training routes it but drawn uniformly.
    draw, routed = torch.Generator().manual_seed(seed), {}
    for split in merged:
        parts = []
        for frames in data.frame_embeds[split].split(16):
            mixture = F.one_hot(torch.randint(experts, (layers,), generator=draw), experts).float()
            parts.append(model.get_video_features(frame_embeds=frames, mixture=mixture).pooler_output)
        routed[split] = torch.cat(parts) - still[split]
    pairs = list(itertools.combinations(range(experts), 2))
    stacked = [
        torch.cat([weight.flatten(1) for weight in layer.mlp.weights()], 1) for layer in model.temporal_model.layers
    ]
    measured |= {
        "alone": [unmodulated(moved, data) for moved in alone],
        # The mean of unit vectors ranks classes as the mean of their logits does.
        "logits": score(lambda split, _: ensemble[split], data),
        "routed": unmodulated(routed, data),
        "dial": [
            unmodulated(temporal_part(model, data, merging_weights(experts, tau).expand(layers, -1)), data)
            for tau in DIAL
        ],
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
    measured = (
        {"clip": plain_clip(data)}
        if name == "clip"
        else evaluate(trained_head(name, seed, data, steps, output), data, seed)
    )
    row = {"variant": name, "seed": seed, "settings": settings(world, steps), **measured}
    write_text(path, json.dumps(row, indent=1))
    return row


# ---------------------------------------------------------------------------------------------------------- the world


def score_world(world: World, seeds: int, steps: int, output: Path) -> dict[str, Any]:
    """CLIP's and the plain head's row in a world, from disk or computed."""
    path = output / "worlds" / f"{world.name}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    quiet()
    encode_world(world, output)
    data = load_world(world, output)
    rows = [unmodulated(temporal_part(train(PLAIN, seed, data, steps), data), data) for seed in range(seeds)]
    plain = {column: mean(row[column] for row in rows) for column in rows[0]}
    clip = plain_clip(data)
    lost = mean(clip[column] - plain[column] for column in LOST_ON)
    row = {"world": asdict(world), "seeds": seeds, "steps": steps, "clip": clip, "plain": plain, "lost": lost}
    write_text(path, json.dumps(row, indent=1))
    return row


def write_text(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def quiet() -> None:
    transformers.logging.set_verbosity_error()  # no report on the head, which a bare CLIP has none of
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def choose_world(output: Path, processes: int, steps: int, seeds: int = 2) -> list[dict[str, Any]]:
    """CLIP's and the plain head's rows in every world of the grid, the chosen world first."""
    rows = []
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        futures = [pool.submit(score_world, world, seeds, steps, output) for world in WORLDS]
        for future in tqdm(as_completed(futures), total=len(futures), desc="worlds"):
            rows.append(future.result())
    return sorted(rows, key=lambda row: (row["plain"]["trained"] < LEARNED, -row["lost"]))
