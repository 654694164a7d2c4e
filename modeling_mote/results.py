"""Results of an evaluation: what they are called, where they lie, and how they are written and read.

A result is what `result.json` holds. It is called by its protocol and by whatever differs from it, wherever its number
goes: the table that is printed, a folder, a model card.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard

from .processing.files import write_whole
from .processing.label_sets import LabelSet
from .processing.metrics.accuracy import per_class_accuracy
from .processing.protocols import get_protocol
from .result_pictures import confusion_picture, reliability_picture

RESULT_FILE = "result.json"


# --------------------------------------------------------------------------------------------------------------- names


def full_name(result: Mapping[str, Any]) -> str:
    """The name of a result: its protocol, and what differs from it."""
    return ", ".join([result["protocol"], *(f"{key}={value}" for key, value in result["deviations"].items())])


def named_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Results by a name of their own: those of one protocol on several lists of clips are told apart by the list.

    Raises:
        ValueError: if one was given twice.
    """
    names = [full_name(result) for result in results]
    found: dict[str, Mapping[str, Any]] = {}
    for name, result in zip(names, results, strict=True):
        name += f", list {list_of(result)[:8]}" if names.count(name) > 1 else ""
        if name in found:
            raise ValueError(f"The results hold {name} twice: keep one.")
        found[name] = result
    return found


def list_of(result: Mapping[str, Any]) -> str:
    """SHA-256 of the first list of clips that was scored."""
    return result["parts"][0]["list_sha256"]


def file_name(name: str) -> str:
    """A name as a file or folder may be called."""
    return re.sub(r"[^a-z0-9.-]+", "_", name.lower()).strip("_.")[:150]


def checkpoint_name(model: str) -> str:
    """What a checkpoint is called: the last part of its path or Hub id; of `runs/mine/model`, the last two."""
    parts = [part for part in Path(model).absolute().parts if part not in ("/", "..")]
    generic = len(parts) > 1 and parts[-1] in ("model", "best")
    return "-".join(parts[-2:] if generic else parts[-1:])


def result_folder(
    protocol: str,
    deviations: Mapping[str, Any],
    model: str,
    sha256: str,
    list_sha256: str,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Where a result goes if nobody says: `results/PROTOCOL/CHECKPOINT-FINGERPRINT`, and then what else sets it apart.

    Args:
        protocol: name of the protocol.
        deviations: what differs from it.
        model: folder or Hub id of the checkpoint.
        sha256: of its weights.
        list_sha256: of the list of clips, if the protocol is on data of the user's choice, else empty.
        beside: what is measured beside the protocol's number, by name.
    """
    others = [f"{key}_{value}" for key, value in deviations.items()]
    others += [f"list_{list_sha256[:8]}"] if list_sha256 else []
    others += [f"{key}_{value}" for key, value in (beside or {}).items()]
    name = "-".join([checkpoint_name(model), sha256[:8], *others])
    return Path("results") / protocol / file_name(name)


# -------------------------------------------------------------------------------------------------------------- tables


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A markdown table of results by their names: no number without its protocol, N scored of N listed, and views."""
    header = ["protocol", "scored of listed", "views (clips x crops)", "frames", "alpha", "modulation"]
    header += ["top-1 %", "top-1 % of those scored", "top-5 %", "ECE %", "AUROC, label listed"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, result in results.items():
        scored = [part["top1_scored"] for part in result["parts"] if part.get("top1_scored") is not None]
        cells = [name, f"{result['num_scored']} of {result['num_listed']}", result["views"], result["num_frames"]]
        cells += [result["alpha"], "on" if result["modulation"] else "off", percent(result.get("top1"))]
        cells += [percent({"mean": float(np.mean(scored))} if scored else None), percent(result.get("top5"))]
        cells += [percent(result.get("ece")), fraction(result.get("auroc_label_listed"))]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def percent(accuracy: Mapping[str, float | None] | None) -> str:
    """An accuracy as tables write it: `83.4 ± 0.7`; `-` for none."""
    if accuracy is None or accuracy["mean"] is None:
        return "-"
    std = accuracy.get("std")
    return f"{100 * accuracy['mean']:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def fraction(value: Mapping[str, float | None] | None) -> str:
    """A number from 0 to 1 as tables write it: `0.946 ± 0.002`; `-` for none."""
    if value is None or value["mean"] is None:
        return "-"
    std = value.get("std")
    return f"{value['mean']:.3f}" + ("" if std is None else f" ± {std:.3f}")


def beside_table(result: Mapping[str, Any]) -> str:
    """A markdown table of what was measured from the same frames beside a result's own number; "" if nothing was."""
    rows = []
    for name, value in result.get("baselines", {}).items():
        label = {"clip": "{name}, mean over frames{trained}"}.get(name, f"these weights, {name.replace('_', ' = ')}")
        clip = result["baseline_clip"]
        trained = " of its own image tower" if clip["image_tower_trained"] else ""
        rows.append((label.format(name=clip["name"], trained=trained), value))
    wordings = result.get("wordings")
    if wordings:
        rows += [(f"wording {each['file']}", each) for each in wordings["files"]]
        spread = wordings["spread"]
        rows.append((f"mean ± std of {len(wordings['files'])} wordings", spread))
        limits = {metric: f"{100 * each['min']:.1f}-{100 * each['max']:.1f}" for metric, each in spread.items()}
        rows.append(("lowest-highest", limits))
    if not rows:
        return ""
    lines = ["| beside it, from the same frames | top-1 % | top-5 % |", "|---|---|---|"]
    for label, value in rows:
        cells = [value.get(metric) for metric in ("top1", "top5")]
        lines.append(
            f"| {' | '.join([label, *(each if isinstance(each, str) else percent(each) for each in cells)])} |"
        )
    return "\n".join(lines)


def per_class_table(folder: Path, most: int = 50) -> str:
    """A markdown table of the classes that have a clip, of `per_class.csv`: the lowest accuracies first.

    Args:
        folder: of a result.
        most: classes shown.
    """
    with open(folder / "per_class.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["accuracy"]]
    rows.sort(key=lambda row: float(row["accuracy"]))
    lines = ["| class | clips | right | top-1 % |", "|---|---|---|---|"]
    for row in rows[:most]:
        name = row["class"].replace("|", "\\|")
        lines.append(f"| {name} | {row['listed']} | {row['right']} | {100 * float(row['accuracy']):.1f} |")
    more = f"\n\nThe {most} lowest of {len(rows)} classes: per_class.csv has them all." if len(rows) > most else ""
    return "\n".join(lines) + more


# --------------------------------------------------------------------------------------------------------------- cards


def index_entries(name: str, result: Mapping[str, Any]) -> list[EvalResult]:
    """A result as a card's `model-index` holds it, an entry per metric."""
    protocol = get_protocol(result["protocol"])
    return [
        EvalResult(
            task_type="video-classification",
            dataset_type=protocol.builder or "custom",
            dataset_name=name,
            dataset_config=name,  # by which the Hub tells one result from another
            metric_type="accuracy",
            metric_name=f"{metric}, {result['views']} views, {result['num_scored']} of {result['num_listed']} scored",
            metric_value=round(100 * result[metric]["mean"], 2),
        )
        for metric in protocol.metrics
    ]


def add_to_card(card: ModelCard, results: Mapping[str, Mapping[str, Any]], model_name: str) -> None:
    """Put results into a card's `model-index`, in place of older ones of the same names.

    Args:
        card: changed in place.
        results: by their names.
        model_name: of the checkpoint, if the card has none.
    """
    data: Any = card.data
    kept = [entry for entry in data.eval_results or [] if entry.dataset_name not in results]
    data.model_name = data.model_name or model_name
    data.eval_results = kept + [entry for name, result in results.items() for entry in index_entries(name, result)]


def update_card(path: Path, result: Mapping[str, Any]) -> None:
    """Put a result into the `model-index` of a card on disk.

    Args:
        path: the card.
        result: the result.

    Raises:
        OSError: if it can't be written; it is as it was then.
    """
    card = ModelCard.load(path)
    add_to_card(card, {full_name(result): result}, path.resolve().parent.name)
    write_whole(path, str(card))


# --------------------------------------------------------------------------------------------------------------- files


def read_result(path: Path) -> dict[str, Any]:
    """Read a `result.json`.

    Args:
        path: the file, or the folder that `mote evaluate` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is something else.
    """
    path = path / RESULT_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such result.")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        results_table({full_name(result): result}), index_entries(full_name(result), result), list_of(result)
        result["checkpoint_sha256"], result["checkpoint"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} is no result of `mote evaluate`.") from error
    return result


def write_result(
    folder: Path,
    result: Mapping[str, Any],
    scored: Sequence[tuple[LabelSet, np.ndarray, np.ndarray]],
    bad_videos: Sequence[tuple[str, str, str]],
) -> None:
    """Write `result.json`, and then the files that show it.

    Args:
        folder: where to write `result.json`, `per_class.csv`, `bad_videos.csv`, and of the first part `confusion.png`
            and, if any clip of it could be read, `reliability.png`.
        result: the result.
        scored: for each part the classes, scores [n, c] and true classes [n]; a row with a NaN could not be read.
        bad_videos: (part, video, reason).

    Raises:
        OSError: if a file can't be written; those written before it are whole.

    Shapes: n clips, c classes.
    """
    write_whole(folder / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    rows: list[tuple[Any, ...]] = [("part", "class", "listed", "right", "accuracy")]
    for part, (label_set, scores, labels) in zip(result["parts"], scored, strict=True):
        measured = per_class_accuracy(scores, labels)
        counts, accuracies = measured["per_class_count"], measured["per_class_accuracy"]
        for name, count, accuracy in zip(label_set.classes, counts, accuracies, strict=True):
            right = None if accuracy is None else round(accuracy * count)
            rows.append((part["config"] or "", name, count, right, accuracy))
    write_whole(folder / "per_class.csv", csv_text(rows))
    write_whole(folder / "bad_videos.csv", csv_text([("part", "video", "reason"), *bad_videos]))
    write_whole(folder / "confusion.png", confusion_picture(result["protocol"], *scored[0]))
    bins = result["parts"][0]["reliability"]
    if bins:
        write_whole(
            folder / "reliability.png", reliability_picture(result["protocol"], bins, result["parts"][0]["ece"])
        )


def csv_text(rows: Sequence[tuple[Any, ...]]) -> str:
    """Rows as CSV."""
    table = io.StringIO(newline="")
    csv.writer(table).writerows(rows)
    return table.getvalue()


__all__ = [
    "add_to_card",
    "beside_table",
    "checkpoint_name",
    "file_name",
    "full_name",
    "index_entries",
    "named_results",
    "per_class_table",
    "read_result",
    "result_folder",
    "results_table",
    "update_card",
    "write_result",
]
