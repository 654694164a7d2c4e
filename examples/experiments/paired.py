"""The deciding run of the ablation: heads that start from the same weights, and what their differences are worth.

A unit is one training: a head, a seed, a number of steps, a drawing of the world's clips and an initialisation.
Units are ordered so that a run which is cut leaves whole parts: every head of a seed before the next seed, every seed
of a block before the next block, every block of the short training before the long one. The claims that are tested
were fixed before the first unit was computed.
"""

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

import heads
import numpy as np
import torch
import torch.nn.functional as F
from heads import Variant, fit, modulated, paired_model, temporal_part
from worlds import COLUMNS, SPLITS, Data, World, load_world, plain_clip, quiet, right_answers, score, unmodulated

from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.files import write_whole
from modeling_mote.processing.tensor_files import load_tensors, save_tensors

HEADS: dict[str, Variant] = {
    "plain": heads.PLAIN,
    "control": heads.CONTROL,
    "attention": heads.ATTENTION,
    "frozen": heads.FROZEN,
    "experts": heads.EXPERTS,
    "no_merging": heads.NO_MERGING,
    "mote": heads.MOTE,
}
LENGTHS = (400, 1600)
# Drawing of the clips, and factor of the initial weights' standard deviation. The second, sqrt(512 / 64), gives a
# width of 64 the feed-forwards that the paper's rule gives the 512 of ViT-B/16.
BLOCKS = ((0, 1.0), (1, 1.0), (0, 2.83), (1, 2.83))


@dataclass(frozen=True)
class Claim:
    """That one head is above another in a column."""

    ours: str
    other: str
    says: str
    column: str = "trade_off"


@dataclass(frozen=True)
class Elsewhere:
    """Another world, and how heads are trained there."""

    title: str
    world: World
    steps: int
    batch_size: int


# Does it hold in the world that the rule of `survey.py` put second, and in the demo's, by the demo's recipe?
ELSEWHERE = (
    Elsewhere("half as many objects", World(6, 2, 0.9, eval_videos_per_class=20), 400, 32),
    Elsewhere("the demo's world and recipe", World(24, 4, 0.0), 600, 64),
)
HEADS_ELSEWHERE = ("plain", "control", "attention", "mote")

CLAIMS = (
    Claim("mote", "plain", "MoTE is above the plain head"),
    Claim("mote", "control", "MoTE is above one expert with the same losses"),
    Claim("mote", "attention", "MoTE is above attention alone"),
    Claim("mote", "frozen", "MoTE is above an expert that never learns"),
    Claim("experts", "plain", "experts and routing by themselves are above the plain head"),
    Claim("control", "plain", "the further losses by themselves are above the plain head"),
    Claim("mote", "no_merging", "the merging loss helps"),
    Claim("mote", "no_merging", "the merging loss helps on trained classes", "trained"),
)


@dataclass(frozen=True)
class Unit:
    """One training."""

    head: str
    seed: int
    steps: int
    data_seed: int = 0
    init_scale: float = 1.0
    batch_size: int = 32

    @property
    def name(self) -> str:
        return (
            f"{self.head}-{self.steps}steps-batch{self.batch_size}-seed{self.seed}-data{self.data_seed}"
            f"-init{self.init_scale}"
        )


def units(seeds: int, lengths: Sequence[int] = LENGTHS, blocks: Sequence[tuple[int, float]] = BLOCKS) -> list[Unit]:
    """Every unit, in the order in which they are computed."""
    return [
        Unit(head, seed, steps, data_seed, init_scale)
        for steps, (data_seed, init_scale), seed, head in itertools.product(lengths, blocks, range(seeds), HEADS)
    ]


def units_elsewhere(place: Elsewhere, seeds: int) -> list[Unit]:
    """The units of another world."""
    return [
        Unit(head, seed, place.steps, batch_size=place.batch_size)
        for seed, head in itertools.product(range(seeds), HEADS_ELSEWHERE)
    ]


# ------------------------------------------------------------------------------------------------------------ one unit


def trained(unit: Unit, data: Data, path: Path) -> Any:
    """The model of a unit, its head from disk or trained."""
    model = paired_model(HEADS[unit.head], unit.seed, data, unit.init_scale)
    if path.is_file():
        weights, _ = load_tensors(path)
        model.temporal_model.load_state_dict(weights)
        return model.eval()
    clips, labels = {"frame_embeds": data.frame_embeds["train"]}, data.labels["train"]
    fit(model, clips, labels, unit.steps, unit.seed, batch_size=unit.batch_size)
    save_tensors(model.temporal_model.state_dict(), path)
    return model


@torch.no_grad()
def branch_norms(model: Any, frames: torch.Tensor) -> dict[str, float]:
    """Mean norm of what attention and feed-forward add to a frame, over layers and frames [n, t, d]."""
    norms: dict[str, list[float]] = {"attention": [], "feed_forward": []}

    def note(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            norms[name].append(output.norm(dim=-1).mean().item())

        return hook

    hooks = []
    for layer in model.temporal_model.layers:
        hooks += [layer.self_attn.register_forward_hook(note("attention"))]
        hooks += [layer.mlp.register_forward_hook(note("feed_forward"))]
    model.get_temporal_features(frames)
    for each in hooks:
        each.remove()
    return {name: round(mean(values), 4) for name, values in norms.items()}


def packed(right: dict[str, torch.Tensor]) -> dict[str, str]:
    """A bit per clip, as base64."""
    return {split: base64.b64encode(np.packbits(each.numpy()).tobytes()).decode() for split, each in right.items()}


def unpacked(text: str, clips: int) -> np.ndarray:
    """The bits of `packed`, bool [n]."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=clips).astype(bool)


@torch.no_grad()
def measure(model: Any, data: Data) -> dict[str, Any]:
    """Top-1 in every column of the modes, and which clips are right without modulation."""
    config = model.config.temporal_config
    moved = temporal_part(model, data)
    without = temporal_part(model, data, torch.zeros(config.num_hidden_layers, config.num_experts))
    off = unmodulated(moved, data)
    modes = {"off": off, "dropped": unmodulated(without, data)}
    for gamma in (0.05, 0.1):
        modes[f"modulated_{gamma}"] = modulated(model, moved, data, gamma)
        modes[f"by_label_{gamma}"] = modulated(model, moved, data, gamma, scope="label")
    found = {mode: score(cosines, data) for mode, cosines in modes.items()}
    return {
        "columns": {mode: {name: round(each[name], 4) for name in COLUMNS} for mode, each in found.items()},
        "norms": branch_norms(model, data.frame_embeds["test"]),
        "right": packed(right_answers(off, data)),
    }


def unit_file(unit: Unit, world: World, output: Path) -> Path:
    """Where a unit's row is kept; its name says everything about it."""
    return output / "units" / world.name / f"{unit.name}.json"


def run_unit(unit: Unit, world: World, output: Path) -> dict[str, Any]:
    """What was measured of a unit in its drawing of the world, from disk or computed.

    Returns:
        the unit's fields, `norms`, `columns` (lists in the order of `COLUMNS` per mode), and `right`.
    """
    path = unit_file(unit, world, output)
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    quiet()
    data = load_world(world, output)
    model = trained(unit, data, output / "paired_heads" / world.name / f"{unit.name}.safetensors")
    measured = measure(model, data)
    columns = {mode: list(found.values()) for mode, found in measured["columns"].items()}
    row = {**asdict(unit), "norms": measured["norms"], "columns": columns, "right": measured["right"]}
    write_whole(path, json.dumps(row))
    return row


def unit_of(row: dict[str, Any]) -> Unit:
    """The unit that a row was measured of."""
    return Unit(**{each.name: row[each.name] for each in fields(Unit)})


# ---------------------------------------------------------------------------------------------------- beside the units


def probe(data: Data) -> float:
    """Top-1 on trained classes of a linear classifier of the mean frame, which knows nothing of time."""
    mean_frames = {split: F.normalize(data.frame_embeds[split].mean(1), dim=-1) for split in ("train", "test")}
    classifier = torch.nn.Linear(mean_frames["train"].shape[1], len(data.classes["train"]))
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(classifier(mean_frames["train"]), data.labels["train"])
        value = value + 1e-4 * classifier.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    found = classifier(mean_frames["test"]).argmax(-1)
    return (found == data.labels["test"]).double().mean().item()


def reference(data: Data) -> dict[str, Any]:
    """CLIP's columns in a drawing of the clips, and the probe's."""
    clip = plain_clip(data)
    return {"clip": [round(clip[column], 4) for column in COLUMNS], "probe": round(probe(data), 4)}


def about(world: World, units: Sequence[Unit], references: dict[str, Any]) -> dict[str, Any]:
    """What a run is made of: the world, its clips and classes per split, the heads, seeds and lengths that make it
    whole, and the `reference` of each drawing.
    """
    config = MovingShapes.BUILDER_CONFIG_CLASS(**asdict(world))
    classes = {split: len(config.classes(split)) for split in SPLITS}
    videos = dict.fromkeys(SPLITS, world.eval_videos_per_class) | {"train": world.train_videos_per_class}
    return {
        "world": asdict(world),
        "heads": list(dict.fromkeys(unit.head for unit in units)),
        "seeds": sorted({unit.seed for unit in units}),
        "lengths": sorted({unit.steps for unit in units}),
        "clips": {split: videos[split] * classes[split] for split in SPLITS},
        "classes": classes,
        "references": references,
    }
