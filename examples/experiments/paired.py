"""The deciding run of the ablation: heads that start from the same weights, and what their differences are worth.

A unit is one training: a head, a seed, a number of steps, a drawing of the world's clips and an initialisation. Units
are ordered so that a run which is cut leaves whole blocks: every head and length of a seed before the next seed, every
seed of a block before the next block. The claims that are tested, below, were fixed before the first unit was computed.
"""

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import heads
import numpy as np
import torch
import torch.nn.functional as F
from heads import Variant, fit, paired_model, temporal_part
from worlds import (
    COLUMNS,
    SPLITS,
    UNSEEN,
    Cosines,
    Data,
    World,
    load_world,
    quiet,
    right_answers,
    score,
    trade_off,
    unmodulated,
)

from modeling_mote.feature_cache import load_tensors, save_tensors
from modeling_mote.processing.files import write_whole

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
# Drawing of the clips, and factor of the initial weights' standard deviation. The second, sqrt(512 / 64), gives a width
# of 64 the feed-forwards that the paper's rule gives the 512 of ViT-B/16.
BLOCKS = ((0, 1.0), (1, 1.0), (0, 2.83), (1, 2.83))


@dataclass(frozen=True)
class Claim:
    """That one head is above another in a column."""

    ours: str
    other: str
    says: str
    column: str = "trade_off"


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
RESAMPLES = 2000


@dataclass(frozen=True)
class Unit:
    """One training."""

    head: str
    seed: int
    steps: int
    data_seed: int
    init_scale: float

    @property
    def name(self) -> str:
        return f"{self.head}-{self.steps}steps-seed{self.seed}-data{self.data_seed}-init{self.init_scale}"


def units(seeds: int, lengths: Sequence[int] = LENGTHS, blocks: Sequence[tuple[int, float]] = BLOCKS) -> list[Unit]:
    """Every unit, in the order in which they are computed."""
    return [
        Unit(head, seed, steps, data_seed, init_scale)
        for (data_seed, init_scale), seed, steps, head in itertools.product(blocks, range(seeds), lengths, HEADS)
    ]


# ------------------------------------------------------------------------------------------------------------- one unit


def trained(unit: Unit, data: Data, path: Path) -> Any:
    """The model of a unit, its head from disk or trained."""
    model = paired_model(HEADS[unit.head], unit.seed, data, unit.init_scale)
    if path.is_file():
        weights, _ = load_tensors(path)
        model.temporal_model.load_state_dict(weights)
        return model.eval()
    fit(model, {"frame_embeds": data.frame_embeds["train"]}, data.labels["train"], unit.steps, unit.seed)
    save_tensors(model.temporal_model.state_dict(), path)
    return model


def modulated(model: Any, moved: dict[str, torch.Tensor], data: Data, gamma: float) -> Cosines:
    """Cosines of e + rho h, rho by the paper's rule."""

    def cosines(split: str, candidates: torch.Tensor) -> torch.Tensor:
        rho = model.get_modulation(data.frame_embeds[split], candidates, gamma)
        return F.normalize(data.frame_embeds[split].mean(1) + rho[:, None] * moved[split], dim=-1) @ candidates.T

    return cosines


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
    modes |= {f"modulated_{gamma}": modulated(model, moved, data, gamma) for gamma in (0.05, 0.1)}
    found = {mode: score(cosines, data) for mode, cosines in modes.items()}
    return {
        "columns": {mode: {name: round(each[name], 4) for name in COLUMNS} for mode, each in found.items()},
        "norms": branch_norms(model, data.frame_embeds["test"]),
        "right": packed(right_answers(off, data)),
    }


def run_unit(unit: Unit, world: World, output: Path) -> dict[str, Any]:
    """What was measured of a unit, from disk or computed."""
    world = replace(world, seed=unit.data_seed)
    settings = {"unit": asdict(unit), "world": asdict(world)}
    path = output / "units" / f"{unit.name}.json"
    if path.is_file():
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["settings"] != settings:
            raise ValueError(f"{path} was computed with other settings: choose another --output, or remove it.")
        return row
    torch.set_num_threads(1)
    quiet()
    data = load_world(world, output)
    model = trained(unit, data, output / "paired_heads" / f"{unit.name}.safetensors")
    row = {"settings": settings, **measure(model, data)}
    write_whole(path, json.dumps(row))
    return row
