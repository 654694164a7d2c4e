"""Accuracy on classes that were never trained, from K example clips per class, without and with training.

    cd examples/experiments
    python few_clips.py --model ../../runs/moving_shapes/model --output runs/few_clips

Test clips are the demo's, of its three unseen splits. Example clips are of another seed (`POOL`), and drawn anew for
every draw. The method was made on the clips of a third seed and another world; nothing was chosen on these. Every
frame is encoded once. "Training" is the demo's head trained further on the same example clips, from the same weights.
Prints the tables, and leaves `few_clips.json` in `--output` and the picture in `--picture`.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from heads import fit
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from worlds import CLIP, SPLITS, World, encode_world, load_clip, quiet

from modeling_mote.feature_cache import load_tensors
from modeling_mote.loading import load_model, load_processor
from modeling_mote.processing import encode_classes
from modeling_mote.processing.builders import MovingShapes
from modeling_mote.processing.calibration import calibration_of
from modeling_mote.processing.example_set import ExampleSet
from modeling_mote.processing.files import whole_file, write_whole
from modeling_mote.processing.metrics.confidence import expected_calibration_error
from modeling_mote.training import freeze

ROOT = Path(__file__).resolve().parents[2]
TEST = World(24, 4, 0.0, train_videos_per_class=1, eval_videos_per_class=5, seed=0)  # the demo's test clips
POOL = World(24, 4, 0.0, train_videos_per_class=1, eval_videos_per_class=24, seed=101)
TITLES = {
    "test_motions": "unseen motions",
    "test_objects": "unseen objects",
    "test_compositions": "unseen pairs of object and motion",
}
SHOTS = (1, 2, 4, 8, 16)
SHORT_LIST = 5  # labels


@dataclass
class Options:
    """What can be chosen on the command line."""

    model: str = str(ROOT / "runs" / "moving_shapes" / "model")
    output: str = "runs/few_clips"
    picture: str = str(ROOT / "docs" / "pictures" / "few_clips.png")
    draws: int = 10
    trainings: int = 3  # draws that the head is trained on
    steps: int = 300
    lr: float = 3e-4


@dataclass
class Split:
    """A split: test clips and the pool of examples, as frame features [n, t, d] with class indices [n]."""

    names: list[str]
    class_embeds: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    pool: torch.Tensor
    pool_labels: torch.Tensor

    def draw(self, shots: int, seed: int) -> torch.Tensor:
        """Indices of `shots` clips per class in the pool, class after class."""
        order = torch.Generator().manual_seed(seed)
        members = [(self.pool_labels == index).nonzero()[:, 0] for index in range(len(self.names))]
        return torch.cat([each[torch.randperm(len(each), generator=order)[:shots]] for each in members])

    def some_labels(self, chosen: torch.Tensor) -> "Split":
        """The split with a few of its labels alone."""
        place = torch.full((len(self.names),), -1)
        place[chosen] = torch.arange(len(chosen))
        test, pool = place[self.test_labels] >= 0, place[self.pool_labels] >= 0
        return Split(
            [self.names[index] for index in chosen.tolist()],
            self.class_embeds[chosen],
            self.test[test],
            place[self.test_labels][test],
            self.pool[pool],
            place[self.pool_labels][pool],
        )


def load_splits(model: Any, processor: Any, output: Path) -> dict[str, Split]:
    """Encode both worlds, or find them encoded."""
    tower, own = load_clip().vision_model.state_dict(), model.vision_model.state_dict()
    if not all(torch.equal(tensor, own[name]) for name, tensor in tower.items()):
        raise ValueError(f"The image tower of this model is not that of {CLIP}: the frames are encoded by the latter.")
    tensors = {}
    for world in (TEST, POOL):
        encode_world(world, output)
        tensors[world], _ = load_tensors(output / "worlds" / f"{world.name}.safetensors")
    config = MovingShapes(cache_dir=str(output / "data"))
    splits = {}
    for split in TITLES:
        names = config.class_names(split)
        found = [tensors[world][f"{split}.{part}"] for world in (TEST, POOL) for part in ("frame_embeds", "labels")]
        splits[split] = Split(names, encode_classes(model, processor, names), *found)
    assert set(TITLES) < set(SPLITS)
    return splits


@torch.no_grad()
def zero_shot(model: Any, split: Split, modulate: bool = True) -> torch.Tensor:
    """The best label of each test clip by text alone, [n]."""
    if modulate:
        return model(frame_embeds=split.test, class_embeds=split.class_embeds).logits.argmax(-1)
    features = model.get_video_features(frame_embeds=split.test).pooler_output
    return (F.normalize(features, dim=-1) @ split.class_embeds.T).argmax(-1)


@torch.no_grad()
def with_examples(model: Any, split: Split, chosen: torch.Tensor) -> torch.Tensor:
    """The best label of each test clip by text and the chosen examples, [n]."""
    return similarities(model, split, chosen)[0].argmax(-1)


@torch.no_grad()
def similarities(model: Any, split: Split, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each test clip to text and the chosen examples, and to the text alone, [n, c] each."""
    labels = split.pool_labels[chosen]
    given = {split.names[index]: split.pool[chosen[labels == index]] for index in labels.unique().tolist()}
    examples = ExampleSet.from_features(model, given)
    temporal = model.get_temporal_features(split.test).last_hidden_state
    logits, *_ = model.score_modulated(split.test, temporal, split.class_embeds)
    texts = logits / model.logit_scale.exp()
    return examples.adapt(model, split.class_embeds, split.names, texts, split.test, temporal), texts


def with_training(model: Any, split: Split, chosen: torch.Tensor, seed: int, options: Options) -> torch.Tensor:
    """The best label of each test clip by the head, trained further on the chosen examples, [n]."""
    trained = copy.deepcopy(model)
    trained.set_training_classes(split.names, split.class_embeds)
    freeze(trained, image_tower=True)
    inputs = {"frame_embeds": split.pool[chosen]}
    fit(trained, inputs, split.pool_labels[chosen], options.steps, seed, lr=options.lr)
    with torch.no_grad():
        return trained(frame_embeds=split.test).logits.argmax(-1)


def top1(found: torch.Tensor, labels: torch.Tensor) -> float:
    return (found == labels).double().mean().item()


def spread(values: list[float]) -> dict[str, float]:
    """Mean, and the standard deviation over draws."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "draws": len(values)}


def measure(model: Any, splits: dict[str, Split], options: Options) -> dict[str, Any]:
    """All numbers, by split."""
    results: dict[str, Any] = {}
    for name, split in splits.items():
        labels = split.test_labels
        row: dict[str, Any] = {
            "n": len(labels),
            "classes": len(split.names),
            "zero_shot": top1(zero_shot(model, split), labels),
            "zero_shot_unmodulated": top1(zero_shot(model, split, modulate=False), labels),
            "examples": {},
            "training": {},
        }
        for shots in tqdm(SHOTS, desc=TITLES[name]):
            draws = [split.draw(shots, seed) for seed in range(options.draws)]
            row["examples"][shots] = spread([top1(with_examples(model, split, each), labels) for each in draws])
            trained = [
                top1(with_training(model, split, each, seed, options), labels)
                for seed, each in enumerate(draws[: options.trainings])
            ]
            row["training"][shots] = spread(trained)
        row["answers"] = answers(model, split, options)
        row["half_the_labels"] = half_the_labels(model, split, options)
        row["short_lists"] = short_lists(model, split, options)
        results[name] = row
    return results


def answers(model: Any, split: Split, options: Options, shots: int = 4) -> dict[str, Any]:
    """What the scores of all labels are worth by the checkpoint's calibration, by text alone and with examples."""
    known, rows = calibration_of(model.config), {"text alone": [], "examples": []}
    if known is None:
        raise ValueError("This model has no calibration: mote calibrate fits one.")
    right = F.one_hot(split.test_labels, len(split.names)).bool()
    for seed in range(options.draws):
        found, texts = similarities(model, split, split.draw(shots, seed))
        for name, cosines in (("text alone", texts), ("examples", found)):
            likely, alone = known.log_probabilities(cosines), known.label_probabilities(cosines) >= 0.5
            sets = -likely <= known.largest_residual(0.9)
            rows[name].append(
                {
                    "ece": expected_calibration_error(likely.exp().numpy(), split.test_labels)["ece"],
                    "coverage": sets[right].double().mean().item(),
                    "set_size": sets.sum(1).double().mean().item(),
                    "own_label": alone[right].double().mean().item(),
                    "other_labels": alone[~right].double().sum().item() / len(right),
                }
            )
    return {name: {key: spread([each[key] for each in found]) for key in found[0]} for name, found in rows.items()}


def half_the_labels(model: Any, split: Split, options: Options, shots: int = 4) -> dict[str, Any]:
    """Top-1 of test clips whose label has examples, and of those whose label has none, if every second has some."""
    before = zero_shot(model, split)
    known = split.test_labels % 2 == 0
    rows: dict[str, list[float]] = {"with": [], "without": []}
    for seed in range(options.draws):
        chosen = split.draw(shots, seed)
        found = with_examples(model, split, chosen[split.pool_labels[chosen] % 2 == 0])
        for name, mask in (("with", known), ("without", ~known)):
            rows[name].append(top1(found[mask], split.test_labels[mask]))
    return {
        name: {"zero_shot": top1(before[mask], split.test_labels[mask]), "examples": spread(rows[name])}
        for name, mask in (("with", known), ("without", ~known))
    }


def short_lists(model: Any, split: Split, options: Options) -> dict[int, Any]:
    """The same with lists of `SHORT_LIST` labels, five for each draw: what examples add to what is easy."""
    rows = {}
    for shots in SHOTS:
        pairs = []
        for seed in range(5 * options.draws):
            order = torch.randperm(len(split.names), generator=torch.Generator().manual_seed(seed))
            few = split.some_labels(order[:SHORT_LIST])
            found = with_examples(model, few, few.draw(shots, seed))
            pairs.append((top1(zero_shot(model, few), few.test_labels), top1(found, few.test_labels)))
        gains = [after - before for before, after in pairs]
        rows[shots] = {"zero_shot": mean(each for each, _ in pairs), "gain": spread(gains)}
    return rows


def draw_picture(results: dict[str, Any], path: str) -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (name, row) in zip(panels, results.items(), strict=True):
        for way, color, marker in (("examples", "#0072b2", "o"), ("training", "#d55e00", "s")):
            found = list(row[way].values())
            label = "examples, no training" if way == "examples" else "head trained on the same clips"
            means, stds = ([100 * each[part] for each in found] for part in ("mean", "std"))
            axes.errorbar(list(map(int, row[way])), means, stds, color=color, marker=marker, capsize=3, label=label)
        axes.axhline(100 * row["zero_shot"], color="black", linestyle="--", label="text alone")
        axes.axhline(100 * row["zero_shot_unmodulated"], color="grey", linestyle=":", label="text, modulation off")
        axes.set_xscale("log", base=2)
        axes.set_xticks(SHOTS, map(str, SHOTS))
        axes.set(title=TITLES[name], xlabel="example clips per label", ylim=(0, 102))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("top-1, %")
    figure.axes[0].legend(frameon=False, loc="lower right", fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def tables(results: dict[str, Any]) -> str:
    """The numbers as Markdown."""

    def cell(found: dict[str, float]) -> str:
        return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}"

    head = ["top-1, %", "text alone", "modulation off", *(f"K = {shots}" for shots in SHOTS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in results.items():
        texts = [f"{100 * row[key]:.1f}" for key in ("zero_shot", "zero_shot_unmodulated")]
        for way in ("examples", "training"):
            cells = [f"{TITLES[name]}, {way}", *texts, *(cell(found) for found in row[way].values())]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Lists of {SHORT_LIST} labels, points gained:", ""]
    for name, row in results.items():
        first = next(iter(row["short_lists"].values()))
        cells = [TITLES[name], f"{100 * first['zero_shot']:.1f}"]
        cells += [
            f"{100 * found['gain']['mean']:+.1f} ± {100 * found['gain']['std'] / found['gain']['draws'] ** 0.5:.1f}"
            for found in row["short_lists"].values()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    head = ["4 examples per label", "ECE", "90 % sets hold it", "labels in a set", "own label ≥ 0.5", "others ≥ 0.5"]
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in results.items():
        for way, found in row["answers"].items():
            lines.append(
                f"| {TITLES[name]}, {way} | " + " | ".join(f"{each['mean']:.3f}" for each in found.values()) + " |"
            )
    lines += ["", "Every second label has 4 examples, the others none:", ""]
    for name, row in results.items():
        for group, found in row["half_the_labels"].items():
            before = f"{100 * found['zero_shot']:.1f}"
            lines.append(f"| {TITLES[name]}, {group} examples | {before} | {cell(found['examples'])} |")
    return "\n".join(lines)


def main() -> None:
    (options,) = HfArgumentParser(Options).parse_args_into_dataclasses()  # type: ignore[misc]
    quiet()
    torch.set_num_threads(1)
    output = Path(options.output)
    model, processor = load_model(options.model, classifier=True), load_processor(options.model)
    results = measure(model, load_splits(model, processor, output), options)
    facts = {name: getattr(options, name) for name in ("draws", "trainings", "steps", "lr")}
    write_whole(output / "few_clips.json", json.dumps({"options": facts, "splits": results}, indent=2) + "\n")
    print(tables(results))
    draw_picture(results, options.picture)


if __name__ == "__main__":
    main()
