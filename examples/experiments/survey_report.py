"""Tables of the ablation's survey."""

import itertools
import json
from pathlib import Path
from statistics import mean
from typing import Any

from reports import spread, table, write_tables
from survey import ALPHAS, LOST_ON, TUNED, VARIANTS, ranked
from worlds import COLUMNS, NAMES, UNSEEN

from modeling_mote.processing.files import write_whole

# Title, variant, and which of its scores.
Rows = list[tuple[str, str, str]]
COMPONENTS: Rows = [
    ("CLIP, mean over frames", "clip", "off"),
    ("plain temporal Transformer", "plain", "off"),
    ("one expert, same losses (control)", "control", "off"),
    ("experts and routing, no further loss", "experts", "off"),
    ("+ merging loss", "merging", "off"),
    ("+ MSE (MoTE, modulation off)", "mote", "off"),
    ("experts + MSE, no merging loss", "experts_mse", "off"),
    ("MoTE, modulation", "mote", "modulated"),
    ("control, modulation", "control", "modulated"),
    ("plain, modulation", "plain", "modulated"),
    ("MoTE, modulation, gamma 0.5 for 0.05", "mote", "modulated_wide"),
    ("control, modulation, gamma 0.5", "control", "modulated_wide"),
]
CHOICES: Rows = [
    ("4 experts, multinomial, merged, set of temperatures", "mote", "off"),
    ("random routing", "random_routing", "off"),
    ("2 experts", "experts_2", "off"),
    ("6 experts", "experts_6", "off"),
    ("one merge point (uniform)", "fixed_point", "off"),
    ("experts' logits averaged at test", "mote", "logits"),
    ("one random expert per layer at test", "mote", "routed"),
]
LAYERS: Rows = [
    (f"{kind}, {n} layer{'s' * (n > 1)}", name if n == 4 else f"{name}_layers_{n}", "off")
    for kind, name in {"plain": "plain", "MoTE": "mote"}.items()
    for n in range(1, 7)
]


class Results:
    """Rows by variant, one per seed."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(rows, key=lambda row: row["seed"]):
            self.rows.setdefault(row["variant"], []).append(row)

    def scores(self, rows: Rows) -> str:
        """Top-1 of every column."""
        body = []
        for title, variant, mode in rows:
            cells = (spread([row[mode][column] for row in self.rows[variant]]) for column in COLUMNS)
            body.append([title, *cells])
        return table(["top-1, %", *COLUMNS.values()], body)

    def experts(self) -> str:
        """How much the experts differ, and what one of them scores alone."""
        columns = ("trained", *UNSEEN)
        body = []
        for name in ("experts", "merging", "mote", "random_routing", "fixed_point"):
            rows = self.rows[name]
            cosines = (mean(row[key] for row in rows) for key in ("weights_cosine", "features_cosine"))
            alone = (spread([mean(each[column] for each in row["alone"]) for row in rows]) for column in columns)
            body.append([VARIANTS[name].title, *(f"{cosine:.2f}" for cosine in cosines), *alone])
        head = ["", "cosine of weights", "cosine of features", *(f"one alone: {COLUMNS[c]}" for c in columns)]
        return table(head, body)

    def searched(self) -> str:
        """What choosing on a few clips of the target gains over the unmodulated uniform merge, on its other clips."""
        found = [row["search"] for row in self.rows["mote"]]
        body = []
        for method, clips in dict.fromkeys((each["method"], each["clips"]) for each in found[0]):
            cells = []
            for targets, half in itertools.product((UNSEEN, NAMES), ("same", "other")):
                gains = []
                for seed in found:
                    top1 = {
                        (each["method"], each["clips"], each["target"]): each[half]
                        for each in seed
                        if each["target"] in targets
                    }
                    gains.append(mean(top1[method, clips, t] - top1["off", 0, t] for t in targets))
                cells.append(spread(gains))
            body.append([method, str(clips), *cells])
        head = ["chosen", "clips per class", "same classes", "other classes"]
        return table([*head, "names: same classes", "names: other classes"], body)

    def tuned(self) -> str:
        """Scores before the tower was trained, and of its blends with CLIP's."""
        body = []
        for variant, name in TUNED.items():
            rows = self.rows[variant]
            for title, scores in [
                ("frozen tower", [row["before"] for row in rows]),
                *((f"alpha {alpha}", [row["blends"][k] for row in rows]) for k, alpha in enumerate(ALPHAS)),
            ]:
                body.append([f"{name}, {title}", *(spread([each[column] for each in scores]) for column in COLUMNS)])
        return table(["top-1, %", *COLUMNS.values()], body)


def report(rows: list[dict[str, Any]], page: Path) -> str:
    """Fills the tables of the page in; returns them."""
    results = Results(rows)
    tables = {
        "survey_settings": f"{len(results.rows['mote'])} seeds, {rows[0]['settings']['steps']} steps.",
        "components": results.scores(COMPONENTS),
        "choices": results.scores(CHOICES),
        "layers": results.scores(LAYERS),
        "experts": results.experts(),
        "search": results.searched(),
        "tuned": results.tuned(),
    }
    write_tables(page, tables)
    return "\n\n".join(f"{name}\n{shown}" for name, shown in tables.items())


def keep(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes rows in four decimals."""
    write_whole(path, json.dumps(json.loads(json.dumps(rows), parse_float=lambda text: round(float(text), 4))))


def report_worlds(rows: list[dict[str, Any]], page: Path) -> str:
    """Fills the table of the grid in, the chosen world first; returns it."""
    columns = ("trained", *LOST_ON)
    body = []
    for row in ranked(rows):
        world = row["world"]
        pairs = (f"{100 * row['clip'][column]:.1f} / {100 * row['plain'][column]:.1f}" for column in columns)
        options = (str(world[name]) for name in ("train_objects", "motions_per_object", "static_cue"))
        body.append([*options, *pairs, f"{100 * row['lost']:.1f}", f"{100 * row['probe']:.1f}"])
    head = ["trained objects", "motions each", "static cue", *(COLUMNS[column] for column in columns), "lost"]
    head.append("a linear classifier of the mean frame, on trained classes")
    shown = table(head, body)
    write_tables(page, {"worlds": shown})
    return shown
