"""What the deciding run says: tests and intervals of the claims, tables, and two pictures.

Differences are taken between heads of one seed, which start from the same weights and see the same batches; those of
the drawings of the clips are averaged per seed. Two things are uncertain, and are told apart:

- the training: an exact sign-flip test over seeds, with Holm's correction over all claims of one initialisation;
- the clips and classes that happened to be scored: a bootstrap that draws classes, clips within them, and seeds.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from paired import CLAIMS, HEADS, VARIANTS, Claim, unpacked
from reports import save, spread, table, write_tables
from worlds import COLUMNS, SPLITS, UNSEEN, World

from modeling_mote.processing.files import write_whole

# What a run is made of (`paired.about`), and its rows (`paired.run_units`).
Kept = tuple[dict[str, Any], list[dict[str, Any]]]
SPLIT_OF = dict(zip(("trained", *UNSEEN), SPLITS[1:], strict=True))
RESAMPLES = 2000
LEVEL = 0.05
# Colour (told apart by the colour-blind too), marker and place beside the line of a head, per length of training.
LOOKS = (("#e69f00", "o", -0.14), ("#0072b2", "s", 0.14))
LEAST_RANGE = 6  # points of an axis: less than that is no movement
MODES = {
    "off": "no modulation",
    "modulated_0.05": "the paper's modulation, gamma 0.05",
    "modulated_0.1": "the paper's modulation, gamma 0.1",
    "by_label_0.05": "modulation per label, gamma 0.05",
    "by_label_0.1": "modulation per label, gamma 0.1",
}

# ---------------------------------------------------------------------------------------------------------- statistics


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided exact test that paired differences are as likely of either sign: the share of all 2^n sign patterns
    whose mean is at least as far from 0.
    """
    values = np.asarray(differences, dtype=float)
    signs = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1) * 2 - 1
    means = np.abs(signs @ values)
    return float(np.mean(means >= means[0] - 1e-12))  # the first pattern turns every sign, the mean's size stays


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction: p values that hold for all of them together."""
    adjusted, least = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        least = max(least, min(1.0, (len(values) - place) * values[index]))
        adjusted[index] = least
    return adjusted


def weights_of_clips(
    classes: int, per_class: int, drawings: int, resamples: int, draw: np.random.Generator
) -> np.ndarray:
    """How often each clip is drawn: classes with replacement, then clips within each, [drawings, resamples, clips].

    The drawings have the same classes and clips of their own.
    """
    drawn = draw.multinomial(classes, np.full(classes, 1 / classes), size=resamples)  # [resamples, classes]
    clips = draw.multinomial(per_class, np.full(per_class, 1 / per_class), size=(drawings, resamples, classes))
    return (drawn[None, :, :, None] * clips).reshape(drawings, resamples, classes * per_class)


def trade_offs(accuracies: dict[str, np.ndarray]) -> np.ndarray:
    """`worlds.trade_off` of arrays of accuracies per split."""
    unseen = 3 / sum(1 / np.maximum(accuracies[split], 1e-9) for split in SPLITS[2:])
    return 2 / (1 / np.maximum(accuracies["test"], 1e-9) + 1 / unseen)


class Run:
    """The rows of a deciding run.

    Args:
        about: see `paired.about`.
        rows: one per unit.
    """

    def __init__(self, about: dict[str, Any], rows: list[dict[str, Any]]):
        self.about = about
        self.rows = {
            (row["init_scale"], row["data_seed"], row["steps"], row["head"], row["seed"]): row for row in rows
        }
        self.heads, self.seeds, self.all_lengths = about["heads"], about["seeds"], about["lengths"]
        self.inits = sorted({row["init_scale"] for row in rows})
        self.data_seeds = sorted({row["data_seed"] for row in rows})

    def drawings(self, init: float, steps: int, *heads: str) -> list[int]:
        """The drawings of the clips in which heads are whole: with part of its seeds, a head is another experiment."""
        return [
            data_seed
            for data_seed in self.data_seeds
            if all((init, data_seed, steps, *each) in self.rows for each in itertools.product(heads, self.seeds))
        ]

    def whole_heads(self, init: float, steps: int) -> list[str]:
        """The heads that are whole in the first drawing, and compared in every other that has them all."""
        first = self.data_seeds[:1]
        return [head for head in self.heads if first and self.drawings(init, steps, head)[:1] == first]

    def lengths(self, init: float) -> list[int]:
        """The lengths of training in which two heads can be compared."""
        return [steps for steps in self.all_lengths if len(self.whole_heads(init, steps)) > 1]

    def values(
        self, init: float, steps: int, head: str, column: str, mode: str = "off", drawings: Sequence[int] | None = None
    ) -> list[float]:
        """A column per seed, the mean over drawings of the clips."""
        place = list(COLUMNS).index(column)
        drawings = self.drawings(init, steps, *self.whole_heads(init, steps)) if drawings is None else drawings
        rows = [[self.rows[init, data_seed, steps, head, seed] for data_seed in drawings] for seed in self.seeds]
        return [mean(row["columns"][mode][place] for row in of_seed) for of_seed in rows]

    def differences(self, init: float, steps: int, claim: Claim) -> list[float]:
        heads = (claim.ours, claim.other)
        drawings = self.drawings(init, steps, *heads)
        ours, other = (self.values(init, steps, head, claim.column, drawings=drawings) for head in heads)
        return [a - b for a, b in zip(ours, other, strict=True)]

    def resampled(self, init: float, steps: int, heads: Sequence[str], column: str) -> dict[str, np.ndarray]:
        """A column of each head in every resample, [resamples]; the resamples of the heads are the same."""
        draw, drawings = np.random.default_rng(0), self.drawings(init, steps, *heads)
        weights = {}
        for split in SPLITS[1:]:
            classes, clips = self.about["classes"][split], self.about["clips"][split]
            weights[split] = weights_of_clips(classes, clips // classes, len(drawings), RESAMPLES, draw)
        seeds = draw.integers(len(self.seeds), size=(RESAMPLES, len(self.seeds)))
        found = {}
        for head in heads:
            accuracies = {
                split: np.stack(
                    [
                        self.right(init, data_seed, steps, head, split)
                        @ weights[split][index].T
                        / weights[split][index].sum(-1)
                        for index, data_seed in enumerate(drawings)
                    ]
                )
                for split in SPLITS[1:]
            }  # [drawings, seeds, resamples]
            scores = trade_offs(accuracies) if column == "trade_off" else accuracies[SPLIT_OF[column]]
            per_seed = scores.mean(0).T  # [resamples, seeds]
            found[head] = np.take_along_axis(per_seed, seeds, axis=1).mean(1)
        return found

    def right(self, init: float, data_seed: int, steps: int, head: str, split: str) -> np.ndarray:
        """Which clips are right, float [seeds, n]."""
        clips = self.about["clips"][split]
        return np.stack(
            [unpacked(self.rows[init, data_seed, steps, head, seed]["right"][split], clips) for seed in self.seeds]
        ).astype(float)

    def interval(self, init: float, steps: int, claim: Claim) -> tuple[float, float]:
        """95 % of the resamples' differences lie between."""
        found = self.resampled(init, steps, (claim.ours, claim.other), claim.column)
        low, high = np.quantile(found[claim.ours] - found[claim.other], [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)


# -------------------------------------------------------------------------------------------------------------- tables


def verdicts(run: Run, init: float, claims: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """The claims at every length that is whole, tested together with those that are not there yet."""
    found = []
    for steps, claim in itertools.product(run.lengths(init), claims):
        if not run.drawings(init, steps, claim.ours, claim.other):
            continue
        differences = run.differences(init, steps, claim)
        found.append(
            {
                "steps": steps,
                "claim": claim,
                "differences": differences,
                "p": sign_flip_p(differences),
                "interval": run.interval(init, steps, claim),
            }
        )
    missing = len(run.all_lengths) * len(claims) - len(found)
    corrected = holm([each["p"] for each in found] + [1.0] * missing)
    for each, p in zip(found, corrected, strict=False):
        each["holm"] = p
    return found


def word(verdict: dict[str, Any]) -> str:
    """A verdict in a word."""
    if verdict["holm"] >= LEVEL:
        return "not shown"
    return "yes" if mean(verdict["differences"]) > 0 else "the opposite"


def cells_of(verdict: dict[str, Any]) -> list[str]:
    low, high = verdict["interval"]
    points, interval = spread(verdict["differences"]), f"{100 * low:.1f} to {100 * high:.1f}"
    return [points, interval, f"{verdict['holm']:.3f}", word(verdict)]


def claims_table(found: list[dict[str, Any]]) -> str:
    head = ["claim"]
    for steps in dict.fromkeys(each["steps"] for each in found):
        head += [f"{steps} steps: points", "95 % interval", "p (Holm)", "holds"]
    body = []
    for claim in CLAIMS:
        line = [claim.says]
        for steps in dict.fromkeys(each["steps"] for each in found):
            verdict = next((each for each in found if (each["claim"], each["steps"]) == (claim, steps)), None)
            line += ["not computed yet", "", "", ""] if verdict is None else cells_of(verdict)
        body.append(line)
    return table(head, body)


def heads_table(run: Run, init: float, steps: int) -> str:
    body = []
    references = [
        run.about["references"][str(data_seed)]
        for data_seed in run.drawings(init, steps, *run.whole_heads(init, steps))
    ]
    clip = [100 * mean(each["clip"][place] for each in references) for place in range(len(COLUMNS))]
    body.append(["CLIP, mean over frames", *(f"{value:.1f}" for value in clip)])
    probe = f"{100 * mean(each['probe'] for each in references):.1f}"
    body.append(["a linear classifier of the mean frame", probe, *[""] * (len(COLUMNS) - 1)])
    for name in run.whole_heads(init, steps):
        body.append([VARIANTS[name].title, *(spread(run.values(init, steps, name, column)) for column in COLUMNS)])
    return table(["top-1, %", *COLUMNS.values()], body)


def feed_forwards_table(run: Run) -> str:
    """How large the feed-forwards' part is, and what leaving it out after training costs."""
    body = []
    for init, (name, variant), steps in itertools.product(run.inits, HEADS.items(), run.all_lengths):
        if variant.feed_forwards == "none" or name not in run.whole_heads(init, steps):
            continue
        rows = [
            run.rows[init, data, steps, name, seed] for data in run.drawings(init, steps, name) for seed in run.seeds
        ]
        norms = [mean(row["norms"][part] for row in rows) for part in ("attention", "feed_forward")]
        lost = [
            run.values(init, steps, name, column, mode)
            for column, mode in itertools.product(("trained", "trade_off"), ("off", "dropped"))
        ]
        body.append([variant.title, str(init), str(steps), *(f"{norm:.2f}" for norm in norms), *map(spread, lost)])
    head = ["head", "initialisation", "steps", "norm: attention", "norm: feed-forward"]
    for column in ("trained classes", "trade-off"):
        head += [column, f"{column}, feed-forwards left out"]
    return table(head, body)


def modulation_table(run: Run, init: float) -> str:
    body = []
    for steps, name, mode in itertools.product(run.lengths(init), ("mote", "attention"), MODES):
        if name not in run.whole_heads(init, steps):
            continue
        cells = (spread(run.values(init, steps, name, column, mode)) for column in COLUMNS)
        body.append([f"{VARIANTS[name].title}, {steps} steps, {MODES[mode]}", *cells])
    return table(["top-1, %", *COLUMNS.values()], body)


def settings_line(run: Run) -> str:
    clips, classes = run.about["clips"], run.about["classes"]
    named = zip(SPLITS[1:], ("trained", "compositions", "objects", "motions"), strict=True)
    scored = ", ".join(f"{clips[split]} of {classes[split]} {COLUMNS[column]}" for split, column in named)
    parts = "; ".join(
        f"initialisation {init}, {steps} steps: {len(run.whole_heads(init, steps))} heads, "
        f"{len(run.drawings(init, steps, *run.whole_heads(init, steps)))} of the clips' drawings"
        for init in run.inits
        for steps in run.lengths(init)
    )
    return f"{len(run.seeds)} seeds. Whole so far: {parts}. Clips scored per drawing: {scored}."


# ------------------------------------------------------------------------------------------------------------ pictures


def plot_heads(run: Run, init: float, path: Path) -> None:
    """Each head's accuracy on trained and on unseen classes, after each length of training."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    titles = {name: variant.title for name, variant in HEADS.items()}
    for axis, columns, title in zip(
        sides,
        (("trained",), ("compositions", "objects", "motions")),
        ("classes it was trained on", "classes it never saw"),
        strict=True,
    ):
        for steps, (color, marker, shift) in zip(run.lengths(init), LOOKS, strict=False):
            for place, name in enumerate(titles):
                if name not in run.whole_heads(init, steps):
                    continue
                per_column = [run.values(init, steps, name, column) for column in columns]
                seeds = [100 * mean(each) for each in zip(*per_column, strict=True)]
                axis.errorbar(
                    mean(seeds),
                    place + shift,
                    xerr=np.std(seeds, ddof=1) if len(seeds) > 1 else 0,
                    fmt=marker,
                    color=color,
                    capsize=3,
                    markersize=5,
                    label=f"{steps} steps" if place == 0 else None,
                )
        axis.set(title=title, xlabel="top-1 %", yticks=range(len(titles)), yticklabels=titles.values())
        axis.set_ylim(len(titles) - 0.5, -0.5)
        low, high = axis.get_xlim()
        if high - low < LEAST_RANGE:
            axis.set_xlim((low + high - LEAST_RANGE) / 2, (low + high + LEAST_RANGE) / 2)
        axis.grid(axis="x", alpha=0.3)
    sides[0].legend(loc="lower left", fontsize=8)
    save(figure, path)


def plot_claims(found: list[dict[str, Any]], path: Path) -> None:
    """The difference of each claim with its interval, after each length of training."""
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for steps, (color, marker, shift) in zip(dict.fromkeys(each["steps"] for each in found), LOOKS, strict=False):
        for place, claim in enumerate(CLAIMS):
            verdict = next((each for each in found if (each["claim"], each["steps"]) == (claim, steps)), None)
            if verdict is None:
                continue
            middle = 100 * mean(verdict["differences"])
            low, high = (100 * edge for edge in verdict["interval"])
            sure = verdict["holm"] < LEVEL
            axis.plot([low, high], [place + shift] * 2, color=color, linewidth=1.5)
            axis.plot(
                middle,
                place + shift,
                marker=marker,
                color=color,
                markerfacecolor=color if sure else "white",
                label=f"{steps} steps" if place == 0 else None,
                linestyle="none",
            )
    axis.plot([], [], marker="o", color="grey", markerfacecolor="white", linestyle="none", label="hollow: not shown")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(yticks=range(len(CLAIMS)), yticklabels=[fill(claim.says, 40) for claim in CLAIMS])
    axis.set_xlabel("points of difference, with the 95 % interval over clips, classes and seeds")
    axis.set_ylim(len(CLAIMS) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="best")
    save(figure, path)


# -------------------------------------------------------------------------------------------------------------- report


def keep_runs(runs: list[Kept], path: Path) -> None:
    """Writes runs: a line about each, then a line per unit."""
    lines = [line for about, rows in runs for line in (about, *rows)]
    write_whole(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def kept(path: Path) -> list[Kept]:
    """What `keep_runs` wrote; nothing of a file that is not there."""
    runs: list[Kept] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        each = json.loads(line)
        if "references" in each:
            runs.append((each, []))
        else:
            runs[-1][1].append(each)
    return runs


def rows_of(world: World, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The references per drawing and the rows that a file holds of a world: they need not be computed again."""
    references, rows = {}, []
    for about, found in kept(path):
        if about["world"] == asdict(world):
            references |= about["references"]
            rows += found
    return references, rows


def report(run: Run, page: Path, pictures: Path) -> str:
    """Draws the pictures and fills the tables of the page in; returns the tables."""
    if not any(run.lengths(init) for init in run.inits):
        raise ValueError("No two heads of the deciding run are whole yet: run it on, or with fewer seeds.")
    tables = {"paired_settings": settings_line(run)}
    for init in run.inits:
        found = verdicts(run, init)
        suffix = "" if init == run.inits[0] else "_wide"
        tables[f"claims{suffix}"] = claims_table(found)
        for steps in run.lengths(init):
            length = "short" if steps == run.all_lengths[0] else "long"
            tables[f"heads_{length}{suffix}"] = heads_table(run, init, steps)
        if not suffix:
            plot_heads(run, init, pictures / "heads.png")
            plot_claims(found, pictures / "claims.png")
            tables["modulation"] = modulation_table(run, init)
    tables["feed_forwards"] = feed_forwards_table(run)
    write_tables(page, tables)
    return "\n\n".join(f"{name}\n{shown}" for name, shown in tables.items())


def report_places(runs: list[Run], part: str, claims: Sequence[Claim], page: Path) -> str:
    """Fills in the tables of other worlds: what each head scores, and the claims, tested together over all worlds."""
    tables, found, planned = {}, [], 0
    for place, run in enumerate(runs):
        shared = [claim for claim in claims if {claim.ours, claim.other} <= set(run.heads)]
        planned += len(shared) * len(run.all_lengths)
        for init in run.inits:  # one, or none while nothing is computed
            if not run.lengths(init):
                continue
            tables[f"{part}_{place}"] = heads_table(run, init, run.lengths(init)[0])
            found += [(run, verdict) for verdict in verdicts(run, init, shared)]
    lines = []
    values = [verdict["p"] for _, verdict in found]
    for (run, verdict), p in zip(found, holm(values + [1.0] * (planned - len(found))), strict=False):
        said = cells_of(verdict | {"holm": p})
        lines.append([f"{run.about['title']}: {verdict['claim'].says}", *said])
    if claims:
        tables[part] = table(["claim", "points", "95 % interval", "p (Holm)", "holds"], lines)
    write_tables(page, tables)
    return "\n\n".join(f"{name}\n{shown}" for name, shown in tables.items())
