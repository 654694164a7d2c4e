"""Ablates MoTE on MovingShapes: what experts, merging, MSE and modulation do to trained and to unseen classes.

    cd examples/experiments
    python ablation.py                  # everything on the page that docs/ablation has no row of; a cut run goes on
    python ablation.py --part paired    # the deciding run alone (paired.py)
    python ablation.py --quick          # all of it in small, to see it work; reports into the output folder
    python ablation.py --redraw         # tables and pictures again, from the rows in docs/ablation

All heads start from `examples/moving_shapes_clip`, whose image tower stays frozen in all but the tuned rows: every
frame is encoded once. Prints the tables. Leaves in `--output` a JSON file per training, and in `--report` the rows,
the tables of `ablation.md` and its pictures.
"""

import itertools
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import few_in_worlds
import paired
import paired_report
import survey
import survey_report
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from worlds import ROOT, World, encode_world, load_world, quiet

from modeling_mote.processing.files import write_whole

PAIRED_PARTS = ("paired", *paired.FAMILIES)  # whose rows are those of `paired.py`
PARTS = (*PAIRED_PARTS, "few", "survey", "worlds")
MOST_SEEDS = 16  # the exact test counts 2^n sign patterns


def option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Arguments:
    output: str = option(
        "runs/ablation", "folder of videos, features, heads and results; what is there is not computed again"
    )
    report: str = option(str(ROOT / "docs"), "folder of ablation.md, and of ablation/ with rows and pictures")
    part: str | None = option(None, f"one part alone: {', '.join(PARTS)}")
    seeds: int = option(10, f"seeds of the deciding run, at most {MOST_SEEDS}")
    blocks: int = option(len(paired.BLOCKS), "blocks of the deciding run: the first few of paired.BLOCKS")
    processes: int = option(2, "trainings at a time, each on one thread")
    compile: bool = option(False, "train for long by torch.compile, in half the time; needs a C++ compiler")
    so_far: bool = option(False, "train nothing more: report the heads of the deciding run that are whole")
    redraw: bool = option(False, "only make tables and pictures again, from the rows in the report's folder")
    quick: bool = option(False, "few clips, steps and seeds; the report goes to the output folder")


@dataclass(frozen=True)
class Scale:
    """How much is computed; the whole by default."""

    world: World = survey.WORLD
    seeds: int = 10
    lengths: tuple[int, ...] = paired.LENGTHS
    blocks: tuple[tuple[int, float], ...] = paired.BLOCKS
    families: Mapping[str, paired.Family] = field(default_factory=lambda: paired.FAMILIES)
    shots: tuple[int, ...] = (1, 2, 4, 8)
    survey_seeds: int = 5
    survey_steps: int = survey.STEPS
    grid: tuple[World, ...] = survey.WORLDS
    grid_seeds: int = 2


SMALL = World(6, 2, 0.9, train_videos_per_class=2, eval_videos_per_class=3)
PLACE = paired.Elsewhere("small", SMALL, 11, 16)
SMALL_PLACES = {"elsewhere": (PLACE,), "candidates": (PLACE,), "wide": (replace(PLACE, width=128),)}
QUICK = Scale(
    world=SMALL,
    seeds=2,
    lengths=(11, 22),
    blocks=((0, 1.0),),
    families={part: replace(each, where=SMALL_PLACES.get(part, ())) for part, each in paired.FAMILIES.items()},
    shots=(1,),
    survey_seeds=1,
    survey_steps=22,
    grid=(SMALL,),
    grid_seeds=1,
)


@dataclass(frozen=True)
class Ablation:
    """The parts of the page, each computed into a file of rows and then written into the page.

    Args:
        scale: how much is computed.
        output: folder of videos, features, heads, and a file per training.
        folder: of the page.
        processes: trainings at a time.
        so_far: whether to leave out the units that are not computed yet.
        compiled: whether heads are trained by `torch.compile`.
    """

    scale: Scale
    output: Path
    folder: Path
    processes: int
    so_far: bool = False
    compiled: bool = False

    @property
    def rows(self) -> dict[str, Path]:
        suffixes = {part: "jsonl" if part in PAIRED_PARTS else "json" for part in PARTS}
        return {part: self.folder / "ablation" / f"{part}.{suffix}" for part, suffix in suffixes.items()}

    def compute(self, part: str) -> None:
        if part in self.scale.families:
            self.compute_family(part)
        else:
            getattr(self, f"compute_{part}")()

    def compute_paired(self) -> None:
        units = paired.units(self.scale.seeds, self.scale.lengths, self.scale.blocks)
        paired_report.keep_runs([self.run(self.scale.world, units, "paired", "trainings")], self.rows["paired"])

    def compute_few(self) -> None:
        given, places = (self.scale.shots, self.output), self.scale.families["candidates"].where
        calls = [(place, seed, *given) for place in places for seed in range(self.scale.seeds)]
        rows = side_by_side(few_in_worlds.run_head, calls, self.processes, "heads")
        write_whole(self.rows["few"], json.dumps(rows, indent=1) + "\n")

    def compute_family(self, part: str) -> None:
        family, found = self.scale.families[part], []
        seeds = range(min(self.scale.seeds, family.seeds))
        for place in family.where:
            units = [paired.unit_elsewhere(place, head, seed) for head in family.heads for seed in seeds]
            about, rows = self.run(place.world, units, part, place.title)
            found.append((about | {"title": place.title}, rows))
        paired_report.keep_runs(found, self.rows[part])

    def run(self, world: World, units: list[paired.Unit], part: str, title: str) -> paired_report.Kept:
        """The rows of units in a world: those that a part's file holds, and the missing ones, computed."""
        references: dict[str, Any] = {}
        known: dict[paired.Unit, dict[str, Any]] = {}
        for other in (part, *PAIRED_PARTS):
            theirs, found = paired_report.rows_of(world, self.rows[other])
            references = theirs | references
            for row in found:
                unit = paired.unit_of(row)
                if unit in units or part == other == "paired":  # a shorter run keeps what a longer one computed
                    known.setdefault(unit, row)
        rows = list(known.values())
        drawings = {unit: replace(world, seed=unit.data_seed) for unit in units if unit not in known}
        paths = {unit: paired.unit_file(unit, drawing, self.output) for unit, drawing in drawings.items()}
        there = [unit for unit, path in paths.items() if path.is_file()]
        new = [] if self.so_far else [unit for unit in paths if unit not in there]
        for drawing in dict.fromkeys(drawings[unit] for unit in (*there, *new)):
            encode_world(drawing, self.output)
            if str(drawing.seed) not in references:
                references[str(drawing.seed)] = paired.reference(load_world(drawing, self.output))
        rows += [json.loads(paths[unit].read_text(encoding="utf-8")) for unit in there]
        calls = [(group, drawings[group[0]], self.output, self.compiled) for group in paired.together(new)]
        rows += itertools.chain(*side_by_side(paired.run_units, calls, self.processes, title))
        return paired.about(world, units, references), rows

    def compute_survey(self) -> None:
        encode_world(self.scale.world, self.output)
        calls = [("clip", 0)]
        for name in (*survey.VARIANTS, *survey.TUNED):
            most = survey.TUNED_SEEDS if name in survey.TUNED else self.scale.survey_seeds
            calls += [(name, seed) for seed in range(min(most, self.scale.survey_seeds))]
        given = (self.scale.world, self.scale.survey_steps, self.output)
        rows = side_by_side(survey.run_row, [(*call, *given) for call in calls], self.processes, "rows")
        survey_report.keep(rows, self.rows["survey"])

    def compute_worlds(self) -> None:
        given = (self.scale.grid_seeds, self.scale.survey_steps, self.output)
        calls = [(world, *given) for world in self.scale.grid]
        survey_report.keep(side_by_side(survey.score_world, calls, self.processes, "worlds"), self.rows["worlds"])

    def report(self, part: str) -> str:
        """Writes a part's tables and pictures from its rows; returns the tables."""
        page, rows = self.folder / "ablation.md", self.rows[part]
        if part in PAIRED_PARTS:
            runs = [paired_report.Run(*run) for run in paired_report.kept(rows)]
            if part == "paired":
                return paired_report.report(runs[0], page, rows.parent)
            return paired_report.report_places(runs, part, self.scale.families[part].claims, page)
        found = json.loads(rows.read_text(encoding="utf-8"))
        if part == "few":
            return few_in_worlds.report(found, self.folder / "few_in_worlds.md", rows.with_suffix(".png"))
        return (survey_report.report if part == "survey" else survey_report.report_worlds)(found, page)


def side_by_side(function: Callable[..., Any], calls: list[tuple[Any, ...]], processes: int, title: str) -> list[Any]:
    """What a function returns for each tuple of arguments, computed in processes and started in order."""
    if len(calls) < 2:  # a process takes longer to start than some calls take
        return [function(*call) for call in calls]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        futures = [pool.submit(function, *call) for call in calls]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc=title):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def ablate(arguments: Arguments) -> None:
    quiet()
    for name, most in (("seeds", MOST_SEEDS), ("blocks", len(paired.BLOCKS)), ("processes", None)):
        value = getattr(arguments, name)
        if value < 1 or (most is not None and value > most):
            limits = "at least 1" if most is None else f"between 1 and {most}"
            raise ValueError(f"--{name} must be {limits}, got {value}.")
    if arguments.part not in (None, *PARTS):
        raise ValueError(f"--part {arguments.part}: no such part; choose one of {', '.join(PARTS)}.")
    output, folder = Path(arguments.output), Path(arguments.report)
    scale = Scale(seeds=arguments.seeds, blocks=paired.BLOCKS[: arguments.blocks])
    if arguments.quick:
        scale, folder = QUICK, output
    ablation = Ablation(scale, output, folder, arguments.processes, arguments.so_far, arguments.compile)
    parts = PAIRED_PARTS if arguments.so_far else PARTS
    for part in parts if arguments.part is None else (arguments.part,):
        if not arguments.redraw:
            ablation.compute(part)
        print(ablation.report(part))


def main() -> None:
    try:
        parser = HfArgumentParser(Arguments, description=__doc__.splitlines()[0])  # type: ignore[arg-type]
        ablate(parser.parse_args_into_dataclasses()[0])
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
