"""What example clips and calibrations are worth in the worlds of the ablation, over ten trainings of MoTE's head.

`few_clips.py` and `scores.py` measure one checkpoint, the demo's; here the same functions are asked of heads that
differ by their seed, in worlds that differ by their classes. Part of `ablation.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import few_clips
import paired
import scores
import torch
from matplotlib.figure import Figure
from paired import Elsewhere
from reports import save, spread, table, write_tables
from worlds import SPLIT_TITLES, Data, encode_world, load_world, quiet

from modeling_mote.processing.files import write_whole

POOL_SEED = 101  # of the clips that serve as examples, and to calibrate on
LISTS = 4  # random lists of each length
SHOWN = ("top-1", "ECE", "AUROC listed", "coverage", "set size")


def split_of(model: Any, data: Data, split: str) -> scores.Split:
    """A split's clips as a head sees them."""
    names, frames = data.names(split), data.frame_embeds[split]
    with torch.no_grad():
        temporal = model.get_temporal_features(frames).last_hidden_state
    return scores.Split(names, data.candidates(names), data.labels[split], frames, temporal)


def measure(model: Any, data: Data, pool: Data, seed: int, shots: Sequence[int]) -> dict[str, Any]:
    """Of each split: accuracy by text and with K examples per label, and what calibrations are worth.

    Calibrations are fitted on the trained classes' clips of the pool (`trained`), and on K clips per class of the
    split itself; with the former, lists of 2, 6 and 20 labels are scored too.
    """
    scorer, found = scores.Encoder(model), {}
    known = scorer.fit(split_of(model, pool, "test"))
    for name in SPLIT_TITLES:
        split, own = split_of(model, data, name), split_of(model, pool, name)
        whole = scores.whole_list(scorer, split, torch.empty(0, data.width), None)
        few = few_clips.Split(split.names, split.classes, split.frames, split.labels, own.frames, own.labels)
        drawn = {shot: few.draw(shot, seed) for shot in shots}
        found[name] = {
            "text": few_clips.top1(few_clips.zero_shot(model, few), split.labels),
            "examples": {
                shot: few_clips.top1(few_clips.with_examples(model, few, clips), split.labels)
                for shot, clips in drawn.items()
            },
            "trained": scores.measure(known, whole),
            "own": {shot: scores.measure(scorer.fit(own, clips), whole) for shot, clips in drawn.items()},
            "lists": {
                size: average(
                    [scores.measure(known, each) for each in islice(scores.short_lists(scorer, split, size), LISTS)]
                )
                for size in scores.SIZES
                if size < len(split.names)
            },
        }
    return found


def average(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: mean(row[key] for row in rows) for key in rows[0]}


def run_head(place: Elsewhere, seed: int, shots: Sequence[int], output: Path) -> dict[str, Any]:
    """The row of one head, from disk or computed."""
    unit = paired.unit_elsewhere(place, "mote", seed)
    world = replace(place.world, seed=place.data_seed)
    path = output / "few" / world.name / f"{unit.name}-{max(shots)}shots.json"
    if not path.is_file():
        torch.set_num_threads(1)
        quiet()
        drawings = (world, replace(world, train_videos_per_class=1, eval_videos_per_class=max(shots), seed=POOL_SEED))
        for drawing in drawings:
            encode_world(drawing, output)
        data, pool = (load_world(drawing, output) for drawing in drawings)
        (model,) = paired.trained([unit], data, world, output)
        row = {"title": place.title, "seed": seed, "splits": measure(model, data, pool, seed, shots)}
        write_whole(path, json.dumps(row))
    return json.loads(path.read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------------------------- report


def by_place(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The splits of each head, by what a place's classes are."""
    titles = dict.fromkeys(row["title"] for row in rows)
    return {
        title.removeprefix("new clips of "): [row["splits"] for row in rows if row["title"] == title]
        for title in titles
    }


def examples_table(rows: list[dict[str, Any]]) -> str:
    """Top-1 by text and with K examples per label."""
    shots = list(rows[0]["splits"]["test"]["examples"])
    body = []
    for title, heads in by_place(rows).items():
        for split, named in SPLIT_TITLES.items():
            texts = spread([head[split]["text"] for head in heads])
            cells = (spread([head[split]["examples"][shot] for head in heads]) for shot in shots)
            body.append([f"{title}: {named}", texts, *cells])
    return table(["top-1, %", "text alone", *(f"K = {shot}" for shot in shots)], body)


def calibrations_table(rows: list[dict[str, Any]]) -> str:
    """Calibrated on trained classes, and on K clips per class of the split itself, for the whole list."""
    shots = list(rows[0]["splits"]["test"]["own"])
    body = []
    for title, heads in by_place(rows).items():
        for split, named in SPLIT_TITLES.items():
            ways = {"trained classes": [head[split]["trained"] for head in heads]}
            ways |= {f"{shot} of its own per class": [head[split]["own"][shot] for head in heads] for shot in shots}
            for way, found in ways.items():
                body.append([f"{title}: {named}", way, *shown(found)])
    return table(["scored clips", "calibrated on", *head_of_shown()], body)


def lists_table(rows: list[dict[str, Any]]) -> str:
    """Lists of a few labels, calibrated on trained classes."""
    body = []
    for title, heads in by_place(rows).items():
        for split, named in SPLIT_TITLES.items():
            for size in heads[0][split]["lists"]:
                found = [head[split]["lists"][size] for head in heads]
                body.append([f"{title}: {named}", str(size), *shown(found)])
    return table(["scored clips", "labels", *head_of_shown()], body)


def head_of_shown() -> list[str]:
    return ["top-1, %", "ECE, %", "AUROC, is it listed? %", "90 % sets hold the true label, %", "labels in a set"]


def shown(found: list[dict[str, float]]) -> list[str]:
    cells = [spread([each[key] for each in found]) for key in SHOWN[:-1]]
    return [*cells, f"{mean(each['set size'] for each in found):.1f}"]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over example clips, calibration error over clips to calibrate on, and over the length of the list."""
    places = by_place(rows)
    figure = Figure(figsize=(11, 3.4 * len(places)), layout="constrained")
    grid = figure.subplots(len(places), 3, squeeze=False)
    colors = ("#000000", "#0072b2", "#e69f00", "#d55e00")
    for (title, heads), axes in zip(places.items(), grid, strict=True):
        for (split, named), color in zip(SPLIT_TITLES.items(), colors, strict=True):
            curves = (
                {0: [head[split]["text"] for head in heads]}
                | {shot: [head[split]["examples"][shot] for head in heads] for shot in heads[0][split]["examples"]},
                {0: [head[split]["trained"]["ECE"] for head in heads]}
                | {shot: [head[split]["own"][shot]["ECE"] for head in heads] for shot in heads[0][split]["own"]},
                {size: [head[split]["lists"][size]["ECE"] for head in heads] for size in heads[0][split]["lists"]}
                | {"all": [head[split]["trained"]["ECE"] for head in heads]},
            )
            for axis, curve in zip(axes, curves, strict=True):
                values = torch.tensor(list(curve.values()), dtype=torch.float64) * 100
                deviation = values.std(1) if values.shape[1] > 1 else torch.zeros(len(values))
                ticks = [str(each) for each in curve]
                axis.errorbar(ticks, values.mean(1), deviation, color=color, marker="o", capsize=3, label=named)
        for axis, (what, over) in zip(
            axes,
            (
                ("top-1 %", "example clips per label"),
                ("calibration error (ECE), %", "own clips to calibrate on; 0: trained classes"),
                ("calibration error (ECE), %", "labels in the list"),
            ),
            strict=True,
        ):
            axis.set(title=title, ylabel=what, xlabel=over)
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(frameon=False, fontsize=8)
    save(figure, path)


def report(rows: list[dict[str, Any]], page: Path, picture: Path) -> str:
    """Fills the tables of a page in and draws its picture; returns the tables."""
    tables = {
        "few_examples": examples_table(rows),
        "few_calibrations": calibrations_table(rows),
        "few_lists": lists_table(rows),
    }
    write_tables(page, tables)
    plot(rows, picture)
    return "\n\n".join(f"{name}\n{text}" for name, text in tables.items())
