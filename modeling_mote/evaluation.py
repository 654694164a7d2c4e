"""Scoring a checkpoint under a protocol, on one process or many; an interrupted run goes on where it stopped.

A run that is started again, with everything that its scores depend on unchanged, reads the scores that there are and
adds what is missing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import CLIPModel
from transformers.utils import cached_file

from . import __version__
from .blending import blend_with_clip
from .feature_cache import class_features, fingerprint, reading_version
from .loading import load_checkpoint, read_record
from .modeling_mote import MoTEModel
from .processing import MoTEProcessor
from .processing.builders import list_sha256, load_videos
from .processing.clips import VideoClips
from .processing.files import only_run
from .processing.label_sets import LabelSet, load_label_set, read_label_file
from .processing.metrics.accuracy import per_class_accuracy, topk_accuracy
from .processing.prompts import get_prompt_set
from .processing.protocols import (
    Protocol,
    get_protocol,
    half_classes_accuracy,
    mean_and_std,
)
from .results import RESULT_FILE, read_result, result_folder, write_result
from .scoring import ClipScorer, Scored, ScoreLog, gather_scores, score_clips


@dataclass
class ClipList:
    """A list of clips that is scored on its own, and its candidate classes.

    Attributes:
        config: configuration of the benchmark, such as `split1`; None for a list of the user's.
        split: split that is scored.
        rows: the clips, undecoded.
        label_set: the c classes, in the order of the rows' labels.
        names: what the text tower reads for them, c texts.
    """

    config: str | None
    split: str
    rows: Any
    label_set: LabelSet
    names: list[str]


def evaluate(
    protocol: str,
    model: str,
    *,
    accelerator: Accelerator,
    data: str | None = None,
    data_dir: str | None = None,
    list_dir: str | None = None,
    split: str = "test",
    labels: str | None = None,
    allow_empty_classes: bool = False,
    alpha: float | None = None,
    clip: str | None = None,
    modulate: bool = True,
    merge_temperature: str | None = None,
    output: str | None = None,
    batch_size: int = 8,
    num_workers: int = 2,
    cache_dir: str | None = None,
    command: str | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> tuple[dict[str, Any], Path]:
    """Score a checkpoint under a protocol and write the result; the same on every process, written by the main one.

    Args:
        protocol: name of the protocol, see `modeling_mote.processing.protocols`.
        model: folder or Hub id of the checkpoint.
        accelerator: device, precision and processes.
        data: CSV list or folder, for a protocol on data of the user's choice.
        data_dir: folder of a benchmark's videos and official lists.
        list_dir: folder of the official lists, if they are not below `data_dir`.
        split: split of `data`.
        labels: file of other names for the classes, in their order.
        allow_empty_classes: accept a part of a benchmark, with classes that have no clip.
        alpha: weight of the fine-tuned image tower against CLIP's, in place of the protocol's.
        clip: the CLIP to blend with; the one that the checkpoint names by default.
        modulate: False scores with rho = 1.
        merge_temperature: temperature at which the experts are merged; uniformly by default.
        output: folder of the result; see `results.result_folder` for the default.
        batch_size: videos per process and forward.
        num_workers: reading processes of each process.
        cache_dir: folder of cached class features.
        command: what was typed, for the record.
        say: is told what goes on, on the main process.

    Returns:
        the result, as `result.json` holds it, and its folder.

    Raises:
        ValueError, OSError: in one sentence: what was asked makes no sense, the checkpoint or the data is not what it
            should be, the output can't be written, or holds another result.
    """
    rules, main = get_protocol(protocol), accelerator.is_main_process
    _check_request(rules, data, labels)
    modulate = rules.modulate and modulate
    with ExitStack() as stack:
        if main:  # whatever keeps the output from being written shows before the work
            (Path("results") / protocol if output is None else Path(output)).mkdir(parents=True, exist_ok=True)
        if main and output is not None:
            stack.enter_context(only_run(output))
        changed = _deviations(rules, model, alpha, modulate, merge_temperature, labels, allow_empty_classes)
        with accelerator.main_process_first():
            lists = load_lists(rules, data, data_dir, list_dir, split, labels, allow_empty_classes)
        scored_model, processor, facts = load_to_score(rules, model, alpha, clip, merge_temperature)
        scored_model.to(accelerator.device)
        _note_model(changed, rules, scored_model, lists)
        folder = Path(output or "")
        if output is None:
            own_list = "" if data is None else list_sha256(lists[0].rows)
            folder = result_folder(protocol, changed, model, facts["checkpoint_sha256"], own_list)
            if main:
                stack.enter_context(only_run(folder))
        settings = [asdict(rules), changed, str(accelerator.mixed_precision), reading_version(), processor.to_dict()]
        (key,) = broadcast_object_list([fingerprint(scored_model, settings, [_identity(each) for each in lists])])
        (finished,) = broadcast_object_list([_finished(folder, key) if main else None])
        if finished is not None:
            say(f"{folder} holds this result already.")
            return finished, folder

        log = ScoreLog(folder, key, accelerator.process_index)
        accelerator.wait_for_everyone()  # everyone has read what was scored before
        total = sum(len(each.rows) for each in lists)
        kept = f", {len(log.rows)} of them scored before" if log.rows else ""
        say(f"{total} clips{kept}; scores are kept in {folder}: an interrupted run goes on with the same command.")
        scored = _score_lists(
            rules, lists, scored_model, processor, modulate, log, accelerator, batch_size, num_workers, cache_dir
        )
        result = {
            "protocol": protocol,
            "deviations": changed,
            **summarise(rules, lists, scored),
            "num_frames": scored_model.config.num_frames,
            "modulation": modulate,
            **facts,
            "num_processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision if accelerator.native_amp else "no",
            "versions": {"mote": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            "command": command,
            "run_sha256": key,
        }
        if main:
            pairs = list(zip(lists, scored, strict=True))
            tables = [(each.label_set, found.scores, found.labels) for each, found in pairs]
            bad = [(each.config or "", *video) for each, found in pairs for video in found.unread]
            write_result(folder, result, tables, bad)
        accelerator.wait_for_everyone()
        log.remove()
        return result, folder


# ------------------------------------------------------------------------------------------------------- what is asked


def _check_request(protocol: Protocol, data: str | None, labels: str | None) -> None:
    """Refuse what the protocol has no room for."""
    if (protocol.builder is None) != (data is not None):
        raise ValueError(
            f"{protocol.name} scores data of your choice: name it as `data`."
            if protocol.builder is None
            else f"{protocol.name} scores {protocol.builder}: give its folder as `data_dir`, not as `data`."
        )
    if labels is not None and len({part.label_set for part in protocol.parts}) > 1:
        raise ValueError(f"{protocol.name} has several lists of classes, which one file of labels can't rephrase.")


def _deviations(
    protocol: Protocol,
    model: str,
    alpha: float | None,
    modulate: bool,
    merge_temperature: str | None,
    labels: str | None,
    allow_empty_classes: bool,
) -> dict[str, Any]:
    """What differs from the protocol; recorded with the result, and part of its name."""
    changed: dict[str, Any] = {}
    if alpha is not None and alpha != protocol.alpha:
        changed["alpha"] = alpha
    if modulate != protocol.modulate:
        changed["modulation"] = modulate
    if merge_temperature is not None:
        changed["merge_temperature"] = merge_temperature
    if labels is not None:
        changed["labels"] = Path(labels).name
    if allow_empty_classes:
        changed["allow_empty_classes"] = True
    if protocol.shots:
        training = read_record(model, "training.json").get("arguments", {})
        changed["shots"] = training.get("shots") if training else "not recorded"
        if training and training.get("shots") not in protocol.shots:
            raise ValueError(
                f"{protocol.name} scores a model trained on {' or '.join(map(str, protocol.shots))} clips per class; "
                f"{model} was trained with shots {training.get('shots')}."
            )
    return changed


def _note_model(changed: dict[str, Any], protocol: Protocol, model: MoTEModel, lists: Sequence[ClipList]) -> None:
    """Add to the deviations what the checkpoint itself makes differ from the protocol."""
    if model.config.num_frames != protocol.num_frames:
        changed["num_frames"] = model.config.num_frames
    trained = set(model.config.id2label.values())
    if protocol.task != "zero-shot" and any(set(each.label_set.classes) != trained for each in lists):
        changed["training_classes"] = "others"


def load_lists(
    protocol: Protocol,
    data: str | None,
    data_dir: str | None,
    list_dir: str | None,
    split: str,
    labels: str | None,
    allow_empty_classes: bool,
) -> list[ClipList]:
    """The lists of clips that a protocol scores, with their classes; see `evaluate` for the arguments.

    Raises:
        FileNotFoundError, ValueError: as `load_videos`, and if `labels` has another number of names.
    """
    options: dict[str, Any] = {"allow_empty_classes": allow_empty_classes}
    options |= {
        name: value
        for name, value in (("data_dir", data_dir), ("list_dir", list_dir))
        if value is not None or protocol.builder is not None
    }
    if protocol.builder is None:
        rows: Any = load_videos(str(data), split, **options)
        label_set = LabelSet("labels", tuple(rows.features["label"].names))
        return [ClipList(None, split, rows, label_set, _texts(label_set, labels))]
    lists = []
    for part in protocol.parts:
        label_set = load_label_set(part.label_set)
        rows = load_videos(protocol.builder, part.split, name=part.config, **options)
        lists.append(ClipList(part.config, part.split, rows, label_set, _texts(label_set, labels)))
    return lists


def _texts(label_set: LabelSet, labels: str | None) -> list[str]:
    """The texts that the text tower reads for the classes: their names, or those of a file."""
    if labels is None:
        return list(label_set.classes)
    rephrased = list(read_label_file(labels).classes)
    if len(rephrased) != len(label_set):
        raise ValueError(f"{labels} names {len(rephrased)} classes, but {label_set.name} has {len(label_set)}.")
    return rephrased


def load_to_score(
    protocol: Protocol, model: str, alpha: float | None, clip: str | None, merge_temperature: str | None
) -> tuple[MoTEModel, MoTEProcessor, dict[str, Any]]:
    """The checkpoint as the protocol scores it: blended with CLIP, and with its experts folded.

    Args:
        protocol: the protocol, whose `alpha` counts by default.
        model: folder or Hub id of the checkpoint.
        alpha: see `evaluate`, as for the next two.
        clip: the CLIP to blend with.
        merge_temperature: of the experts.

    Returns:
        model in float32, processor, and what the result says about the weights.

    Raises:
        ValueError: if it can't be loaded, or not be blended so.
    """
    loaded, processor = load_checkpoint(model, dtype="auto")
    loaded.float()
    facts: dict[str, Any] = {"checkpoint": model, "revision": None, "checkpoint_sha256": fingerprint(loaded)}
    if not Path(model).is_dir():  # the Hub's cache keeps one folder per commit
        facts["revision"] = Path(str(cached_file(model, "config.json"))).parent.name
    alpha = protocol.alpha if alpha is None else alpha
    conversion, blended_with = read_record(model, "conversion.json"), None
    blended = conversion.get("alpha", 1.0)
    if blended == 1.0 and alpha != 1.0:
        trained_from = read_record(model, "training.json").get("arguments", {}).get("model")
        blended_with = clip or conversion.get("clip") or trained_from
        if blended_with is None:
            raise ValueError(
                f"{protocol.name} blends with CLIP at alpha {alpha}: name the CLIP that {model} was trained from as "
                "`clip`, or score the fine-tuned weights alone with alpha 1."
            )
        blend_with_clip(loaded, CLIPModel.from_pretrained(blended_with, dtype=torch.float32), alpha)
    elif blended != alpha:
        raise ValueError(
            f"{model} was converted with alpha {blended}, not {alpha}: convert it again with alpha {alpha} or 1."
        )
    if merge_temperature is not None or not loaded.config.temporal_config.experts_merged:
        loaded.merge_experts(temperature=merge_temperature)
    facts |= {"alpha": alpha, "clip": blended_with, "merge_temperature": merge_temperature or "inf (uniform)"}
    return loaded.eval(), processor, facts


def _identity(clips: ClipList) -> list[Any]:
    """What tells a list of clips, with its texts, from another, or from older files of the same names."""
    files = []
    for video in clips.rows["video"]:
        path = None if video["path"] is None else Path(video["path"])
        found = path is not None and path.is_file()
        files.append([str(path), path.stat().st_size, path.stat().st_mtime_ns] if path and found else str(path))
    return [list_sha256(clips.rows), clips.names, files]


def _finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The result in a folder if it is that of this run and all its files are there.

    Raises:
        ValueError: if it is another one.
    """
    if not (folder / RESULT_FILE).is_file():
        return None
    result = read_result(folder)
    if result.get("run_sha256") != key:
        raise ValueError(
            f"{folder} holds another result, of {result['checkpoint']} under {result['protocol']}: choose another "
            "output, or remove it."
        )
    return None if list(folder.glob(f"scores-{key[:16]}.*.jsonl")) else result


# ------------------------------------------------------------------------------------------------- scores and results


def _score_lists(
    protocol: Protocol,
    lists: Sequence[ClipList],
    model: MoTEModel,
    processor: MoTEProcessor,
    modulate: bool,
    log: ScoreLog,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    cache_dir: str | None,
) -> list[Scored]:
    """Score every list by all processes: the same scores on each of them."""
    scored = []
    for part, each in enumerate(lists):
        with accelerator.main_process_first():
            class_embeds = class_features(model, processor, each.names, protocol.prompts, cache_dir)
        clips = VideoClips(
            each.rows,
            processor.video_processor,
            num_frames=model.config.num_frames,
            sampling=protocol.sampling,
            num_clips=protocol.num_clips,
            num_crops=protocol.num_crops,
            square_pixels=protocol.square_pixels,
        )
        score = ClipScorer(model, class_embeds, protocol.score_rule, modulate, accelerator)
        title = " ".join([protocol.name, *([each.config] if each.config else [])])
        score_clips(clips, score, log, part, batch_size, num_workers, accelerator, title)
        scored.append(gather_scores(log, part, clips, len(each.names), accelerator))
    return scored


def summarise(protocol: Protocol, lists: Sequence[ClipList], scored: Sequence[Scored]) -> dict[str, Any]:
    """What was measured, as a result holds it: each list, and mean and standard deviation over them.

    Args:
        protocol: whose metrics they are.
        lists: what was scored.
        scored: scores of each list.
    """
    parts = [
        {
            "config": each.config,
            "split": each.split,
            "label_set": each.label_set.name,
            "label_set_sha256": each.label_set.sha256,
            "names_sha256": LabelSet("names", tuple(each.names)).sha256,
            "list_sha256": list_sha256(each.rows),
            **measure(found.scores, found.labels, protocol),
            "bad_videos": len(found.unread),
        }
        for each, found in zip(lists, scored, strict=True)
    ]
    summary: dict[str, Any] = {}
    for metric in protocol.metrics:
        if f"{metric}_std" in parts[0]:  # ten halves of one list
            summary[metric] = {"mean": parts[0][metric], "std": parts[0][f"{metric}_std"]}
        else:
            mean, std = mean_and_std([part[metric] for part in parts])
            summary[metric] = {"mean": mean, "std": std if protocol.aggregate == "mean_std" else None}
    prompts = "\n".join(get_prompt_set(protocol.prompts))
    return summary | {
        "num_scored": sum(part["num_scored"] for part in parts),
        "num_listed": sum(part["num_listed"] for part in parts),
        "views": protocol.views,
        "sampling": protocol.sampling,
        "square_pixels": protocol.square_pixels,
        "prompts": protocol.prompts,
        "prompts_sha256": sha256(prompts.encode()).hexdigest(),
        "score_rule": protocol.score_rule,
        "decoders": dict(sum((found.decoders for found in scored), Counter())),
        "parts": parts,
    }


def measure(scores: np.ndarray, labels: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """The metrics of one list.

    Args:
        scores: [n, c]; rows with a NaN count as wrong.
        labels: true classes, [n].
        protocol: whose score rule it is.
    """
    if protocol.score_rule == "half_classes":
        return half_classes_accuracy(scores, labels)
    mean_per_class = per_class_accuracy(scores, labels)["mean_per_class_accuracy"]
    return topk_accuracy(scores, labels) | {"mean_per_class_accuracy": mean_per_class}


__all__ = ["ClipList", "evaluate", "load_lists", "load_to_score", "measure", "summarise"]
