"""The deciding run of the ablation: heads that start from the same weights, and what their differences are worth.

A unit is one training: a head, a seed, a number of steps, a drawing of the world's clips and an initialisation.
Units are ordered so that a run which is cut leaves whole parts: every head of a block before the next block, every
block of the short training before the long one; the seeds of a head are trained a few at a time. The claims that are
tested were fixed before the first unit was computed.
"""

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import heads
import numpy as np
import torch
from heads import Variant, fit, fit_together, modulated, paired_model, temporal_part
from worlds import (
    COLUMNS,
    SPLITS,
    Data,
    World,
    load_world,
    plain_clip,
    probe,
    quiet,
    right_answers,
    score,
    unmodulated,
)

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
# Something better than the paper's? First, later, and where the later ones were chosen.
CANDIDATES = {"still": heads.STILL, "still_mote": heads.STILL_MOTE, "centred": heads.CENTRED}
STRONGER = {"still_strong": heads.STILL_STRONG, "still_strong_mote": heads.STILL_STRONG_MOTE}
DEVELOPMENT = {
    "still": heads.STILL,
    "still_1": heads.STILL_1,
    "still_strong": heads.STILL_STRONG,
    "still_10": heads.STILL_10,
    "difference": heads.DIFFERENCE,
    "structure": heads.STRUCTURE,
}
VARIANTS = HEADS | CANDIDATES | STRONGER | DEVELOPMENT
TOGETHER = 10  # seeds of a head that are trained at once
LENGTHS = (400, 1600)
COMPILED_FROM = 800 * 64  # steps times width: less takes less time than compiling
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
    data_seed: int = 0
    width: int = 64
    init_scale: float = 1.0


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
# Fixed before the penalty and the centred frames were trained on these clips (the penalty's weight was chosen on
# others); the claims of MoTE with the penalty before its scores here were seen, and after those of centred frames.
CANDIDATE_CLAIMS = tuple(
    Claim(candidate, other, f"{says} is above {named}{where}", column)
    for candidate, says in (
        ("still", "attention alone with the still penalty"),
        ("still_mote", "MoTE with the still penalty"),
        ("centred", "attention alone on centred frames"),
    )
    for other, named in (("attention", "attention alone"), ("mote", "MoTE"))
    for column, where in (("trade_off", ""), ("motions", " on unseen motions"))
)
# Fixed before any of these heads was trained on these clips.
STRONGER_CLAIMS = tuple(
    Claim(ours, other, f"{says} is above {named}{where}", column)
    for ours, other, says, named in (
        ("still_strong_mote", "mote", "MoTE with the stronger penalty", "MoTE"),
        ("still_strong", "attention", "attention alone with the stronger penalty", "attention alone"),
    )
    for column, where in (("trade_off", ""), ("motions", " on unseen motions"))
)


@dataclass(frozen=True)
class Family:
    """Heads that are compared in other worlds.

    Args:
        where: the worlds.
        heads: names of the heads.
        claims: of which those about these heads are tested together.
        seeds: the most that are trained.
    """

    where: tuple[Elsewhere, ...]
    heads: tuple[str, ...]
    claims: tuple[Claim, ...] = CLAIMS
    seeds: int = 10


# The deciding run's classes, which a cue in the frames tells, and the demo's, which it does not.
DECIDING, DEMO = World(12, 2, 0.9, eval_videos_per_class=20), World(24, 4, 0.0)
FAMILIES = {
    # Does it hold in the world that the rule of `survey.py` put second, and in the demo's, by the demo's recipe?
    "elsewhere": Family(
        (
            Elsewhere("half as many objects", World(6, 2, 0.9, eval_videos_per_class=20), 400, 32),
            Elsewhere("the demo's world and recipe", DEMO, 600, 64),
        ),
        ("plain", "control", "attention", "mote"),
    ),
    # Where the candidates are looked at, once: drawings of the clips that no choice was made on.
    "candidates": Family(
        (
            Elsewhere("new clips of the deciding run's classes", DECIDING, 400, 32, 1),
            Elsewhere("new clips of the demo's classes", DEMO, 400, 32, 7),
        ),
        ("plain", "attention", "mote", *CANDIDATES),
        CANDIDATE_CLAIMS,
    ),
    # Where the next candidates were chosen.
    "development": Family(
        (
            Elsewhere("the demo's classes", DEMO, 400, 32, 3),
            Elsewhere("the deciding run's classes", DECIDING, 400, 32, 4),
        ),
        ("attention", *DEVELOPMENT),
        (),
    ),
    # Where the stronger penalty is looked at, once: new clips again, longer training, and a kind of world on which
    # nothing was chosen at all.
    "stronger": Family(
        (
            Elsewhere("the demo's classes", DEMO, 400, 32, 8),
            Elsewhere("the demo's classes, 1,600 steps", DEMO, 1600, 32, 8),
            Elsewhere("half as many objects", World(12, 4, 0.0, eval_videos_per_class=10), 400, 32, 8),
            Elsewhere("the deciding run's classes", DECIDING, 400, 32, 2),
        ),
        ("attention", "mote", *STRONGER),
        STRONGER_CLAIMS,
    ),
    # The world that the second rule of `survey.py` chooses, on new clips, with heads of four times the width. They are
    # drawn so that their feed-forwards are as large as the paper's rule makes those of width 512: sqrt(512 / 256).
    # Seven seeds are the fewest that can show two claims.
    "wide": Family(
        (
            Elsewhere(
                "six objects with four motions, heads of width 256",
                World(6, 4, 0.0, eval_videos_per_class=20),
                *(400, 32, 1, 256, 1.41),
            ),
        ),
        ("plain", "attention", "mote"),
        seeds=7,
    ),
}


@dataclass(frozen=True)
class Unit:
    """One training."""

    head: str
    seed: int
    steps: int
    data_seed: int = 0
    init_scale: float = 1.0
    batch_size: int = 32
    width: int = 64

    @property
    def name(self) -> str:
        return (
            f"{self.head}-{self.steps}steps-batch{self.batch_size}-seed{self.seed}-data{self.data_seed}"
            f"-init{self.init_scale}{'' if self.width == 64 else f'-width{self.width}'}"
        )


def units(seeds: int, lengths: Sequence[int] = LENGTHS, blocks: Sequence[tuple[int, float]] = BLOCKS) -> list[Unit]:
    """Every unit, in the order in which they are computed."""
    return [
        Unit(head, seed, steps, data_seed, init_scale)
        for steps, (data_seed, init_scale), head, seed in itertools.product(lengths, blocks, HEADS, range(seeds))
    ]


def unit_elsewhere(place: Elsewhere, head: str, seed: int) -> Unit:
    """A unit in another world."""
    return Unit(head, seed, place.steps, place.data_seed, place.init_scale, place.batch_size, place.width)


# ------------------------------------------------------------------------------------------------------------ one unit


def head_file(unit: Unit, world: World, output: Path) -> Path:
    """Where the trained head of a unit is kept."""
    return output / "paired_heads" / world.name / f"{unit.name}.safetensors"


def trained(units: Sequence[Unit], data: Data, world: World, output: Path, compiled: bool = False) -> list[Any]:
    """The models of units that differ by their seeds alone, their heads from disk or trained together."""
    models = [paired_model(VARIANTS[unit.head], unit.seed, data, unit.init_scale) for unit in units]
    paths = [head_file(unit, world, output) for unit in units]
    new = [place for place, path in enumerate(paths) if not path.is_file()]
    frames, labels = data.frame_embeds["train"], data.labels["train"]
    seeds, steps, size = [units[place].seed for place in new], units[0].steps, units[0].batch_size
    if len(new) == 1:
        fit(models[new[0]], {"frame_embeds": frames}, labels, steps, seeds[0], batch_size=size)
    elif new:
        compiled, together = compiled and steps * data.width >= COMPILED_FROM, [models[place] for place in new]
        fit_together(together, frames, labels, steps, seeds, batch_size=size, compiled=compiled)
    for place, (model, path) in enumerate(zip(models, paths, strict=True)):
        if place in new:
            save_tensors(model.temporal_model.state_dict(), path)
        else:
            model.temporal_model.load_state_dict(load_tensors(path)[0])
    return [model.eval() for model in models]


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


def run_units(units: Sequence[Unit], world: World, output: Path, compiled: bool = False) -> list[dict[str, Any]]:
    """What was measured of units that differ by their seeds alone in their drawing of a world, from disk or computed.

    Returns:
        for each the unit's fields, `norms`, `columns` (lists in the order of `COLUMNS` per mode), and `right`.
    """
    missing = [unit for unit in units if not unit_file(unit, world, output).is_file()]
    if missing:
        torch.set_num_threads(1)
        quiet()
        data = load_world(world, output)
        data = data if missing[0].width == data.width else data.widened(missing[0].width)
        for unit, model in zip(missing, trained(missing, data, world, output, compiled), strict=True):
            measured = measure(model, data)
            columns = {mode: list(found.values()) for mode, found in measured["columns"].items()}
            row = {**asdict(unit), "norms": measured["norms"], "columns": columns, "right": measured["right"]}
            write_whole(unit_file(unit, world, output), json.dumps(row))
    return [json.loads(unit_file(unit, world, output).read_text(encoding="utf-8")) for unit in units]


def together(units: Sequence[Unit]) -> list[list[Unit]]:
    """The units in groups that are trained at once, each of a head and at most so many seeds."""
    groups: dict[Unit, list[list[Unit]]] = {}
    for unit in units:
        of_head = groups.setdefault(replace(unit, seed=0), [[]])
        if len(of_head[-1]) == TOGETHER:
            of_head.append([])
        of_head[-1].append(unit)
    return [group for of_head in groups.values() for group in of_head]


def unit_of(row: dict[str, Any]) -> Unit:
    """The unit that a row was measured of."""
    return Unit(**{each.name: row[each.name] for each in fields(Unit) if each.name in row})


# ---------------------------------------------------------------------------------------------------- beside the units


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
