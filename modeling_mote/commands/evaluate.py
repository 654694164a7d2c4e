"""Scores a checkpoint under one of the paper's protocols, on one process or many.

    accelerate launch examples/evaluate.py --protocol ucf101-zero-shot --checkpoint mote-vitb16 --data_dir /data/ucf101
    torchrun --nproc_per_node 2 examples/evaluate.py --protocol kinetics400-4x3 --checkpoint runs/k400/best ...

Data, views, prompts, alpha, score rule and metrics come from the protocol's name; what a flag changes is recorded in
the result and in its name. Prints a table row; leaves in `--output`: `result.json`, `per_class.csv`, `confusion.png`
and `bad_videos.csv`. A video that can't be read counts as wrong; the accuracy over those scored is printed beside.
"""

import csv
import io
import json
import os
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

# Run as a script, this file's folder comes first on the path, where its own name would hide the `evaluate` library.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.utils import gather_object  # noqa: E402
from huggingface_hub import EvalResult, ModelCard  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402
from transformers import AutoProcessor, CLIPModel, HfArgumentParser  # noqa: E402
from transformers.utils import cached_file  # noqa: E402

import modeling_mote  # noqa: E402
from modeling_mote import MoTEModel  # noqa: E402
from modeling_mote.blending import blend_with_clip  # noqa: E402
from modeling_mote.feature_cache import class_features, fingerprint  # noqa: E402
from modeling_mote.processing.builders import load_videos  # noqa: E402
from modeling_mote.processing.clips import VideoClips, collate_clips, list_sha256  # noqa: E402
from modeling_mote.processing.label_sets import LabelSet, load_label_set, read_label_file  # noqa: E402
from modeling_mote.processing.metrics import load_metric  # noqa: E402
from modeling_mote.processing.prompts import get_prompt_set  # noqa: E402
from modeling_mote.processing.protocols import (  # noqa: E402
    PROTOCOLS,
    Part,
    Protocol,
    get_protocol,
    half_classes_accuracy,
    half_classes_score,
    mean_and_std,
    score_views,
)


def option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Arguments:
    protocol: str = field(metadata={"help": f"one of {', '.join(PROTOCOLS)}"})
    checkpoint: str = field(metadata={"help": "MoTE checkpoint: folder or Hub id"})
    data_dir: str | None = option(None, "folder of the videos and official lists; for a CSV, its own by default")
    list_dir: str | None = option(None, "folder of the official lists, where not below data_dir")
    data: str | None = option(None, "CSV or folder with a folder a class, for a protocol on data of your choice")
    split: str = option("test", "split of --data")
    output: str | None = option(None, "folder of the result; results/PROTOCOL where not given")
    card: str | None = option(None, "model card (README.md) to write the result into, as model-index")
    batch_size: int = option(8, "videos a process and forward")
    num_workers: int = option(2, "reading processes of each process")
    cache_dir: str | None = option(None, "folder of cached class features; the Hugging Face home where not given")

    alpha: float | None = option(None, "another weight of the fine-tuned image tower against CLIP's")
    clip: str | None = option(None, "the CLIP to blend with; where not given, the one named in the checkpoint")
    no_modulation: bool = option(False, "score with rho = 1")
    merge_temperature: str | None = option(None, "merge the experts at this temperature in place of uniformly")
    labels: str | None = option(None, "rephrased class names, in the benchmark's order: CSV or text")
    allow_empty_classes: bool = option(False, "accept a part of a benchmark, with classes that have no clip")


def deviations(arguments: Arguments, protocol: Protocol) -> dict[str, Any]:
    """What differs from the protocol; recorded with the result."""
    changed: dict[str, Any] = {}
    if arguments.alpha is not None and arguments.alpha != protocol.alpha:
        changed["alpha"] = arguments.alpha
    if arguments.no_modulation and protocol.modulate:
        changed["modulation"] = False
    for name in ("merge_temperature", "labels", "allow_empty_classes"):
        if getattr(arguments, name):
            changed[name] = getattr(arguments, name)
    return changed


def record_of(checkpoint: str, name: str) -> dict[str, Any]:
    """`conversion.json` or `training.json` of a checkpoint, {} where it has none."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
    return {} if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def load_model(arguments: Arguments, protocol: Protocol, training: dict[str, Any]) -> tuple[MoTEModel, dict[str, Any]]:
    """The model as the protocol scores it, and what the result says about its weights."""
    try:
        model = MoTEModel.from_pretrained(arguments.checkpoint)
    except RuntimeError as error:
        raise ValueError(f"--checkpoint {arguments.checkpoint}: its weights do not fit its config.json.") from error
    revision = None
    if not Path(arguments.checkpoint).is_dir():  # the Hub's cache keeps a folder a commit
        revision = Path(str(cached_file(arguments.checkpoint, "config.json"))).parent.name
    facts: dict[str, Any] = {
        "checkpoint": arguments.checkpoint,
        "revision": revision,
        "checkpoint_sha256": fingerprint(model),
    }
    alpha = protocol.alpha if arguments.alpha is None else arguments.alpha
    conversion = record_of(arguments.checkpoint, "conversion.json")
    blended, clip = conversion.get("alpha", 1.0), None
    if blended == 1.0 and alpha != 1.0:
        clip = arguments.clip or conversion.get("clip") or training.get("model")
        if clip is None:
            raise ValueError(
                f"{protocol.name} blends with CLIP at alpha {alpha}: name the CLIP that {arguments.checkpoint} was "
                "trained from as --clip, or score the fine-tuned weights alone with --alpha 1."
            )
        blend_with_clip(model, CLIPModel.from_pretrained(clip), alpha)
    elif blended != alpha:
        raise ValueError(
            f"{arguments.checkpoint} was converted with alpha {blended}, not {alpha}: convert it "
            f"again with --alpha {alpha} or 1."
        )
    if arguments.merge_temperature is not None:
        model.merge_experts(temperature=arguments.merge_temperature)
    facts |= {"alpha": alpha, "clip": clip, "merge_temperature": arguments.merge_temperature or "inf (uniform)"}
    return model.eval(), facts


def label_set_of(arguments: Arguments, part: Part | None, rows: Any) -> tuple[LabelSet, list[str]]:
    """The candidate classes, and the names that the text tower reads for them."""
    names = tuple(rows.features["label"].names)
    listed = LabelSet("labels", names) if part is None else load_label_set(part.label_set)
    if arguments.labels is None:
        return listed, list(listed.classes)
    rephrased = list(read_label_file(arguments.labels).classes)
    if len(rephrased) != len(listed):
        raise ValueError(
            f"--labels {arguments.labels} names {len(rephrased)} classes, but {listed.name} has {len(listed)}."
        )
    return listed, rephrased


@torch.no_grad()
def score_part(
    model: MoTEModel,
    clips: VideoClips,
    class_embeds: torch.Tensor,
    protocol: Protocol,
    modulate: bool,
    arguments: Arguments,
    accelerator: Accelerator,
) -> tuple[np.ndarray, list[tuple[int, str]], Counter]:
    """Scores of every clip [n, c], a row of NaN for one that can't be read; the reasons; clips a decoder.

    The same on every process.
    """
    mine = list(range(accelerator.process_index, len(clips), accelerator.num_processes))
    batches = [mine[begin : begin + arguments.batch_size] for begin in range(0, len(mine), arguments.batch_size)]
    loader = DataLoader(clips, batch_sampler=batches, collate_fn=collate_clips, num_workers=arguments.num_workers)
    found, bad, decoders = [], [], []
    for batch in tqdm(loader, desc=protocol.name, disable=not accelerator.is_main_process):
        bad += [(index, message) for index, _, message in batch["errors"]]
        decoders += batch["decoders"]
        if batch["pixel_values_videos"] is None:
            continue
        pixels = clips.inputs(batch, accelerator.device)["pixel_values_videos"]
        pixels = pixels.unsqueeze(1) if pixels.dim() == 5 else pixels  # [b, v, t, 3, h, w]
        with accelerator.autocast():
            views = model.get_video_features(pixels, class_embeds=class_embeds if modulate else None).pooler_output
        views = views.float()  # [b, v, d]
        if protocol.score_rule == "half_classes":
            scores = half_classes_score(views, class_embeds)
        else:
            scores = score_views(F.normalize(views, dim=-1) @ class_embeds.T)
        found.append((batch["indices"].numpy(), scores.double().cpu().numpy()))
    whole = np.full((len(clips), len(class_embeds)), np.nan)
    if accelerator.num_processes > 1:
        found, bad, decoders = gather_object(found), gather_object(bad), gather_object(decoders)
    for indices, rows in found:
        whole[indices] = rows
    if np.isnan(whole).any(axis=1).sum() > len(bad):
        raise ValueError(f"{arguments.checkpoint} gives scores that are no numbers: its weights are damaged.")
    return whole, sorted(bad), Counter(decoders)


def measure(scores: np.ndarray, labels: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """The metrics of one list of clips."""
    if protocol.score_rule == "half_classes":
        return half_classes_accuracy(scores, labels)
    measured = load_metric("topk_accuracy").compute(predictions=scores, references=labels, k=(1, 5))
    per_class = load_metric("mean_per_class_accuracy").compute(predictions=scores, references=labels)
    return measured | {"mean_per_class_accuracy": per_class["mean_per_class_accuracy"]}


def evaluate(arguments: Arguments) -> dict[str, Any]:
    protocol = get_protocol(arguments.protocol)
    parts: list[Part | None] = list(protocol.parts) or [None]
    if (protocol.builder is None) != (arguments.data is not None):
        raise ValueError(
            f"{protocol.name} scores data of your choice: name it with --data."
            if protocol.builder is None
            else f"{protocol.name} scores {protocol.builder}: give its folder as --data_dir, not --data."
        )
    if arguments.labels is not None and len({part.label_set for part in parts if part is not None}) > 1:
        raise ValueError(f"{protocol.name} has several lists of classes, which one file of --labels can't rephrase.")
    if arguments.card is not None and not Path(arguments.card).is_file():
        raise FileNotFoundError(f"--card {arguments.card}: no such file.")
    # Without `cpu`, torchrun's processes would not know of one another on a machine without accelerator.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if not accelerator.is_main_process:
        transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    output = Path(arguments.output or Path("results") / protocol.name)
    changed = deviations(arguments, protocol)
    training = record_of(arguments.checkpoint, "training.json").get("arguments", {})
    if protocol.shots:
        changed["shots"] = training.get("shots") if training else "not recorded"
        if training and training.get("shots") not in protocol.shots:
            raise ValueError(
                f"{protocol.name} scores a model trained on {' or '.join(map(str, protocol.shots))} clips a class; "
                f"{arguments.checkpoint} was trained with --shots {training.get('shots')}."
            )

    options: dict[str, Any] = {"allow_empty_classes": arguments.allow_empty_classes}
    for name in ("data_dir", "list_dir"):
        if getattr(arguments, name) is not None or protocol.builder is not None:
            options[name] = getattr(arguments, name)
    with accelerator.main_process_first():
        listed = [
            load_videos(str(arguments.data), arguments.split, **options)
            if part is None
            else load_videos(str(protocol.builder), part.split, name=part.config, **options)
            for part in parts
        ]
    model, facts = load_model(arguments, protocol, training)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    model.to(accelerator.device)
    modulate = protocol.modulate and not arguments.no_modulation
    num_frames = model.config.num_frames
    if num_frames != protocol.num_frames:
        changed["num_frames"] = num_frames

    results, tables, bad = [], [], []
    decoders: Counter = Counter()
    for part, rows in zip(parts, listed, strict=True):
        label_set, names = label_set_of(arguments, part, rows)
        if protocol.task != "zero-shot" and set(label_set.classes) != set(model.config.id2label.values()):
            changed["training_classes"] = "others"
        with accelerator.main_process_first():
            class_embeds = class_features(model, processor, names, protocol.prompts, arguments.cache_dir)
        clips = VideoClips(
            rows, processor.video_processor, num_frames, protocol.sampling, protocol.num_clips, protocol.num_crops
        )
        scores, unread, used = score_part(model, clips, class_embeds, protocol, modulate, arguments, accelerator)
        labels = np.asarray(rows["label"])
        config = None if part is None else part.config
        results.append(
            {
                "config": config,
                "split": arguments.split if part is None else part.split,
                "label_set": label_set.name,
                "label_set_sha256": label_set.sha256,
                "names_sha256": LabelSet("names", tuple(names)).sha256,
                "list_sha256": list_sha256(rows),
                **measure(scores, labels, protocol),
                "bad_videos": len(unread),
            }
        )
        tables.append((label_set, scores, labels))
        bad += [(config or "", clips.name(index), message) for index, message in unread]
        decoders += used

    summary = {}
    for metric in protocol.metrics:
        if f"{metric}_std" in results[0]:  # ten halves of one list
            summary[metric] = {"mean": results[0][metric], "std": results[0][f"{metric}_std"]}
        else:
            mean, std = mean_and_std([result[metric] for result in results])
            summary[metric] = {"mean": mean, "std": std if protocol.aggregate == "mean_std" else None}
    result = {
        "protocol": protocol.name,
        "deviations": changed,
        **summary,
        "num_scored": sum(part["num_scored"] for part in results),
        "num_listed": sum(part["num_listed"] for part in results),
        "views": protocol.views,
        "num_frames": num_frames,
        "sampling": protocol.sampling,
        "prompts": protocol.prompts,
        "prompts_sha256": sha256("\n".join(get_prompt_set(protocol.prompts)).encode()).hexdigest(),
        "modulation": modulate,
        "score_rule": protocol.score_rule,
        "decoders": dict(decoders),
        "parts": results,
        **facts,
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision if accelerator.native_amp else "no",
        "versions": {
            "mote": modeling_mote.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "command": shlex.join(sys.argv),
    }
    if accelerator.is_main_process:
        print(table_row(result))
        write_results(output, result, tables, bad)
        if arguments.card is not None:
            write_card(Path(arguments.card), result, protocol)
    accelerator.end_training()
    return result


# ------------------------------------------------------------------------------------------------------------- results


def full_name(result: dict[str, Any]) -> str:
    """Protocol and what differs from it."""
    return ", ".join([result["protocol"], *(f"{key}={value}" for key, value in result["deviations"].items())])


def table_row(result: dict[str, Any]) -> str:
    """A markdown table: a number is never given without its protocol, N scored of N listed, and views."""
    top1 = result["top1"]
    value = f"{100 * top1['mean']:.1f}" + ("" if top1["std"] is None else f" ± {100 * top1['std']:.1f}")
    scored = [part["top1_scored"] for part in result["parts"] if part.get("top1_scored") is not None]
    over_scored = f"{100 * float(np.mean(scored)):.1f}" if scored else "-"
    return (
        "| protocol | N scored of N listed | views | frames | top-1 % | of those scored % | checkpoint |\n"
        "|---|---|---|---|---|---|---|\n"
        f"| {full_name(result)} | {result['num_scored']} of {result['num_listed']} | {result['views']} "
        f"| {result['num_frames']} | {value} | {over_scored} | {result['checkpoint']} |"
    )


def write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def csv_bytes(rows: list[tuple]) -> bytes:
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    return table.getvalue().encode()


def write_results(
    output: Path, result: dict[str, Any], tables: list[tuple[LabelSet, np.ndarray, np.ndarray]], bad: list[tuple]
) -> None:
    """`result.json`, `per_class.csv`, `confusion.png` (of the first list) and `bad_videos.csv`."""
    output.mkdir(parents=True, exist_ok=True)
    per_class: list[tuple] = [("part", "class", "listed", "right", "accuracy")]
    for part, (label_set, scores, labels) in zip(result["parts"], tables, strict=True):
        measured = load_metric("mean_per_class_accuracy").compute(predictions=scores, references=labels)
        counts, accuracies = measured["per_class_count"], measured["per_class_accuracy"]
        for name, count, accuracy in zip(label_set.classes, counts, accuracies, strict=True):
            right = None if accuracy is None else round(accuracy * count)
            per_class.append((part["config"] or "", name, count, right, accuracy))
    write_whole(output / "per_class.csv", csv_bytes(per_class))
    write_whole(output / "bad_videos.csv", csv_bytes([("part", "video", "reason"), *bad]))

    label_set, scores, labels = tables[0]
    read = ~np.isnan(scores).any(axis=1)
    confusion = np.zeros((len(label_set), len(label_set)))
    np.add.at(confusion, (labels[read], scores[read].argmax(axis=1)), 1)
    side = min(20.0, 4 + 0.15 * len(label_set))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(
        confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1), vmin=0, vmax=1, cmap="viridis"
    )
    axes.set(
        title=f"{result['protocol']}, {label_set.name}, {int(read.sum())} videos", xlabel="predicted", ylabel="true"
    )
    if len(label_set) <= 110:
        axes.set_xticks(range(len(label_set)), label_set.classes, rotation=90, fontsize=5)
        axes.set_yticks(range(len(label_set)), label_set.classes, fontsize=5)
    figure.colorbar(shown, shrink=0.5)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_whole(output / "confusion.png", picture.getvalue())
    write_whole(output / "result.json", (json.dumps(result, indent=2) + "\n").encode())


def write_card(path: Path, result: dict[str, Any], protocol: Protocol) -> None:
    """Adds the result to a card's `model-index`, in place of an older one of the same protocol and deviations."""
    card = ModelCard.load(path)
    name = full_name(result)
    kept = [entry for entry in card.data.eval_results or [] if entry.dataset_name != name]
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    card.data.eval_results = kept + [
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
    write_whole(path, str(card).encode())


def main() -> None:
    try:
        parser = HfArgumentParser(Arguments, description=__doc__.splitlines()[0])  # type: ignore[arg-type]
        evaluate(parser.parse_args_into_dataclasses()[0])
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
