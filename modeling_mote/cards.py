"""Model cards of MoTE checkpoints: what a reader must know, filled in from what the checkpoint records."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from .configuration_mote import MoTEConfig
from .loading import first_sentence
from .processing.calibration import Calibration, calibration_of
from .processing.protocols import PROTOCOLS
from .results import add_to_card, results_table

GENERATED = "<!-- what follows is written anew by each upload -->"
HERE = "PATH_OF_THIS_FOLDER"  # in a card on disk, where the repository's name goes
FIELD = r"\{\{ *(\w+) *\}\}"  # of a card, as in `{{ repo }}`
TAGS = ("mote", "zero-shot-video-classification")
BACKBONES = {(768, 12, 16): "ViT-B/16", (1024, 24, 14): "ViT-L/14"}  # width, layers, patch of the image tower
LICENSES = {"openai/": "mit"}  # of CLIPs, by how their Hub id begins
CLASSES_LISTED = 1000

USE = """```python
import modeling_mote  # of the package mote-transformers
from transformers import pipeline

classify = pipeline("zero-shot-video-classification", model="{repo}")
classify("clip.mp4", candidate_labels={labels})
```

Without the package, `AutoModel`, `AutoModelForVideoClassification` and `AutoProcessor` load it with
`trust_remote_code=True`. A video's features depend on the candidate labels (temporal feature modulation): scores under
two lists do not compare. It classifies clips of a few seconds; a long video needs windows."""
LIMITS = """A score says which of the given labels fits best, not whether any of them fits. What the training clips
did not show was not learned; nothing here was tested for decisions about people."""
CITATION = """MoTE: Reconciling Generalization with Specialization for Visual-Language to Video Knowledge Transfer,
NeurIPS 2024, arXiv 2410.10589."""
MERGED = """The experts of each temporal layer are folded into one feed-forward: the same scores, fewer weights, and
nothing left to route."""
CURVES = "![Loss, learning rate and validation accuracy over the steps](curves.png)"
CURVES_BESIDE = CURVES.replace("(curves.png)", "(../curves.png)")  # where a run draws them, beside its `model/`
NOT_MEASURED = "Nothing: no result of `mote evaluate` came with this upload."


def hub_id(model: str | None) -> str | None:
    """A model's name if it is one of the Hub, None for a folder of this machine."""
    return model if model and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists() else None


def license_of(base: str | None) -> str | None:
    """The licence of a CLIP that is known by its Hub id."""
    return next((name for start, name in LICENSES.items() if base and base.startswith(start)), None)


def example_labels(names: Sequence[str]) -> str:
    """Up to three labels for an example, as Python writes them: the model's own, if it has any."""
    return json.dumps(list(names[:3]) or ["archery", "yoga", "flipping a pancake"], ensure_ascii=False)


def training_card(
    classes: Sequence[str],
    *,
    data: str,
    base: str,
    num_frames: int,
    step: int | None = None,
    validation: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
) -> str:
    """The card of a checkpoint that was trained here, to lie beside it as README.md.

    Args:
        classes: names of the training classes.
        data: what it was trained on: name of a benchmark, or path of a list or folder, of which the last part is told.
        base: folder or Hub id of the model that the training started from.
        num_frames: frames per clip.
        step: optimizer steps.
        validation: `accuracy`, `listed` and `scored` on the validation clips, if there were any.
        calibration: what its scores mean, if that is known.

    Returns:
        the card, with its metadata.
    """
    source, start = hub_id(base), Path(base).name
    measured = "No validation clips were scored."
    if validation is not None:
        measured = (
            f"Top-1 {100 * validation['accuracy']:.1f} % on {validation['listed']} validation clips "
            f"({validation['scored']} scored), one view."
        )
    sections = {
        "Use": USE.format(repo=HERE, labels=example_labels(classes)),
        "Limits": LIMITS,
        "Training": f"From {f'`{source}`' if source else f'a checkpoint named `{start}`'}, with `mote train`"
        f"{'' if step is None else f', {step} steps'}, {num_frames} frames per clip. {measured} `training.json` has "
        f"all settings.\n\n{CURVES_BESIDE}",
        "Scores": describe_calibration(calibration),
        "Classes": class_list(classes),
        "Citation": CITATION,
    }
    data_of_card = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-classification",
        tags=list(TAGS),
        license=license_of(source),
        base_model=source,
    )
    title = f"# MoTE trained on {Path(data).stem}\n\nIt tells {len(classes)} classes of videos apart, and scores any "
    title += "other labels that are given as words.\n"
    body = "\n".join([title, *(f"## {name}\n\n{text}\n" for name, text in sections.items())])
    return f"---\n{data_of_card.to_yaml()}\n---\n\n{body}"


def describe_calibration(known: Calibration | None) -> str:
    """What the scores of a checkpoint mean, in a paragraph."""
    if known is None:
        return (
            "The scores are a softmax over the labels that are asked for, not probabilities of being right. "
            "`mote calibrate` fits what they mean to labelled clips."
        )
    return (
        f"Calibrated on {known.num_clips} labelled clips of {known.num_labels} classes: temperature "
        f"{known.temperature:.4g} of the cosines, each label by itself sigmoid({known.sigmoid[0]:.4g} · cosine "
        f'{known.sigmoid[1]:+.4g}). `unknown=True` adds "none of these", `coverage=0.9` gives the smallest set of '
        "labels that holds the true one so often, `multi_label=True` scores each label by itself. Other classes, "
        "lists of another length and videos of another kind shift all of these: calibrate on clips of your own."
    )


def class_names(config: MoTEConfig) -> list[str]:
    """The training classes in the order of the logits; none if they were never set."""
    names: Any = config.id2label
    return [names[index] for index in sorted(names)] if config.training_classes_set else []


def class_list(classes: Sequence[str]) -> str:
    """The training classes in a paragraph, in the order of the logits."""
    rest = len(classes) - CLASSES_LISTED
    shown = ", ".join(classes[:CLASSES_LISTED])
    return f"{shown}{f', and {rest} more in `labels.txt`' if rest > 0 else ''}."


def read_card(path: Path) -> str:
    """The part of a card that its author wrote.

    Raises:
        ValueError: if it is none.
    """
    try:
        content = path.read_text(encoding="utf-8")
        ModelCard(content)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no model card: {first_sentence(error)}.") from error
    return content.split(GENERATED)[0]


def published_card(
    content: str,
    repo: str,
    config: MoTEConfig,
    results: Mapping[str, Mapping[str, Any]],
    *,
    converted: bool = False,
    curves: bool = False,
    folded_now: bool = False,
    license: str | None = None,
    base: str | None = None,
) -> ModelCard:
    """A card as it is published: fields filled in, a section for whatever it has no field for, results as metadata.

    Args:
        content: what its author wrote; `{{ repo }}`, `{{ measured }}`, `{{ classes }}`, ... are filled in.
        repo: the repository, `org/name`.
        config: of the checkpoint.
        results: what was measured on these weights, by name.
        converted: whether it is the authors' checkpoint.
        curves: whether `curves.png` comes along.
        folded_now: whether the experts were folded after the results were measured.
        license: of the weights, in place of the card's.
        base: the model that it was trained from.
    """
    classes = class_names(config)
    fields = {
        "repo": repo,
        "measured": measured_section(results, folded_now),
        "curves": CURVES if curves else "",
        "experts": MERGED if config.temporal_config.experts_merged else "",
        "classes": class_list(classes) if classes else "",
    }
    content = content.replace(CURVES_BESIDE, "{{ curves }}")  # a repository has them within, or not at all
    used = set(re.findall(FIELD, content))
    # Plain substitution: the card of a checkpoint is text, not a template that runs.
    content = re.sub(FIELD, lambda found: fields.get(found[1], found[0]), content).replace(HERE, repo)
    if results:
        content = content.replace("No accuracy was measured on this conversion. ", "")
    protocols = {result["protocol"] for result in results.values()}
    sections = {
        "Use": USE.format(repo=repo, labels=example_labels(classes)) if repo not in content else "",
        "Measured": fields["measured"] if results and "measured" not in used else "",
        "As reported by the authors": authors_section(config, protocols, converted)
        if "reported by the authors" not in content
        else "",
        "Training": fields["curves"] if "curves" not in used and "](curves.png)" not in content else "",
        "Merged experts": fields["experts"] if "experts" not in used else "",
        "Scores": describe_calibration(calibration_of(config))
        if config.calibration is not None and "\n## Scores\n" not in content
        else "",
        "Classes": fields["classes"] if "classes" not in used and "\n## Classes\n" not in content else "",
        "Citation": CITATION if "2410.10589" not in content else "",
    }
    added = [f"## {title}\n\n{text}\n" for title, text in sections.items() if text]
    card = ModelCard("\n".join([content.rstrip() + "\n", *([GENERATED + "\n", *added] if added else [])]))
    data: Any = card.data
    data.library_name = data.library_name or "transformers"
    data.pipeline_tag = data.pipeline_tag or "video-classification"
    data.tags = list(dict.fromkeys([*(data.tags or []), *TAGS]))
    data.base_model = data.base_model or hub_id(base)
    data.license = license or data.license or license_of(hub_id(base)) or "other"
    if results:
        data.model_name = repo.split("/")[1]
        add_to_card(card, results, data.model_name)
    return card


def bare_card(name: str, config: MoTEConfig) -> str:
    """The card of a checkpoint that has none and says nothing about its training."""
    return (
        f"# {name}\n\nMoTE: CLIP and {config.temporal_config.num_hidden_layers} temporal layers, "
        f"{config.num_frames} frames per clip.\n"
    )


def measured_section(results: Mapping[str, Mapping[str, Any]], folded_now: bool) -> str:
    """What was measured on these weights."""
    if not results:
        return NOT_MEASURED
    notes = [
        "By `mote evaluate` on these weights; the records are in `results/`.",
        "A video that can't be read counts as wrong.",
        "Below alpha 1, the image tower that was scored is alpha · fine-tuned + (1 - alpha) · CLIP.",
    ]
    notes += ["Scored before the experts were folded."] if folded_now else []
    return "\n".join([results_table(results), "", *notes])


def authors_section(config: MoTEConfig, protocols: set[str], converted: bool) -> str:
    """The authors' numbers for this backbone: all of them for their own weights, else those of the same protocols."""
    tower: Any = config.vision_config
    backbone = BACKBONES.get((tower.hidden_size, tower.num_hidden_layers, tower.patch_size))
    rows = [
        f"| {name} | {protocol.views} | {number.metric} | {number.value} {f'± {number.std} ' * bool(number.std)}|"
        for name, protocol in PROTOCOLS.items()
        for number in protocol.published
        if backbone is not None
        and (number.backbone, number.num_frames) == (backbone, config.num_frames)
        and (converted or name in protocols)
    ]
    title = f"Of their {backbone} with {config.num_frames} frames (arXiv 2410.10589); none was measured here."
    return "\n".join([title, "", "| protocol | views | metric | % |", "|---|---|---|---|", *rows]) if rows else ""


__all__ = ["GENERATED", "HERE", "bare_card", "class_names", "hub_id", "published_card", "read_card", "training_card"]
