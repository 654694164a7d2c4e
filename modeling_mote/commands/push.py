"""Publishes a checkpoint on the Hugging Face Hub: everything that loads it, and its card, in one commit.

    python examples/push_to_hub.py --checkpoint runs/mine/model --repo org/mote-mine --dry_run    # uploads nothing
    python examples/push_to_hub.py --checkpoint runs/mine/model --repo org/mote-mine --results results/*/result.json

Prints every file with its size, then the commit that pins them. Uploads weights, config, processor, tokenizer,
`labels.txt`, the code for `trust_remote_code=True`, the records of `train.py` or the converter, `curves.png`, results
of `evaluate.py`, and the card. An upload that fails leaves the repository as it was. It is signed with the token of
`hf auth login` or of the variable HF_TOKEN, which needs write access and is never printed.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import AutoProcessor, HfArgumentParser

from modeling_mote import MoTEConfig, MoTEForVideoClassification
from modeling_mote.feature_cache import fingerprint
from modeling_mote.processing import MoTEProcessor
from modeling_mote.processing.protocols import PROTOCOLS, get_protocol

RECORDS = ("training.json", "conversion.json")  # by train.py and the converter; evaluate.py reads them from the Hub
# What an older upload may have left and a newer one does not overwrite: transformers prefers a stale
# `model.safetensors` to the shards beside it.
STALE = ("model*.safetensors", "model.safetensors.index.json", "labels.txt", "curves.png", "results/*.json", *RECORDS)
GENERATED = "<!-- push_to_hub.py writes anew what follows -->"
FIELD = r"\{\{ *(\w+) *\}\}"  # of a card, as in `{{ repo }}`
BACKBONES = {(768, 12, 16): "ViT-B/16", (1024, 24, 14): "ViT-L/14"}  # width, layers, patch of the image tower


def option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Arguments:
    checkpoint: str = field(metadata={"help": "folder of a MoTE checkpoint"})
    repo: str = field(metadata={"help": "repository on the Hub, org/name; made where absent"})
    private: bool = option(False, "only for those with access to the repository")
    merged: bool = option(False, "fold the experts into one feed-forward a layer: smaller, the same scores")
    results: list[str] = field(
        default_factory=list, metadata={"help": "result.json files of evaluate.py for the card, of this checkpoint"}
    )
    card: str | None = option(
        None, "card to publish, with {{ repo }}, {{ measured }}, ... filled in; the checkpoint's own where not given"
    )
    revision: str | None = option(None, "branch to commit to, made where absent; main where not given")
    commit_message: str = option("Upload MoTE", "title of the commit")
    max_shard_size: str = option("5GB", "weights beyond this size are split into files of at most this size")
    dry_run: bool = option(False, "only print what would be uploaded")

    def __post_init__(self):
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.repo):
            raise ValueError(f"--repo {self.repo} is no repository: write org/name.")
        if not re.fullmatch(r"[1-9]\d*[KMG]B", self.max_shard_size.upper()):
            raise ValueError(f"--max_shard_size {self.max_shard_size} is no size: write one such as 5GB or 500MB.")
        if not self.commit_message.strip():
            raise ValueError("--commit_message must not be empty.")


# --------------------------------------------------------------------------------------------------------- checkpoint


def load(folder: Path) -> tuple[MoTEForVideoClassification, MoTEProcessor]:
    """Model and processor of a whole MoTE checkpoint; whatever it lacks is an error, before anything is uploaded."""
    if not (folder / "config.json").is_file():
        below = folder / "model"
        hint = f"; {below} does" if (below / "config.json").is_file() else ""
        raise ValueError(f"--checkpoint {folder} is no checkpoint: it holds no config.json{hint}.")
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--checkpoint {folder}: its config.json is no configuration of a model.") from error
    if model_type != MoTEConfig.model_type:
        raise ValueError(f"--checkpoint {folder} holds a model of type {model_type!r}, not MoTE.")
    try:
        model, info = MoTEForVideoClassification.from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises many types for the ways in which a checkpoint can be damaged
        raise ValueError(f"--checkpoint {folder} does not load: {first_line(error)}") from error
    for kind, what in (("missing_keys", "lacks {} of MoTE's weights"), ("unexpected_keys", "holds {} other weights")):
        if names := sorted(info[kind]):
            raise ValueError(f"--checkpoint {folder} {what.format(len(names))}, {names[0]} to begin with.")
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"--checkpoint {folder} holds values that are not finite in {name}.")
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"--checkpoint {folder}: its processor does not load: {first_line(error)}") from error
    if not isinstance(processor, MoTEProcessor):
        raise ValueError(f"--checkpoint {folder} holds no MoTEProcessor: save one beside the model.")
    return model.eval(), processor


def read_result(path: Path, sha256: str) -> dict[str, Any]:
    """A result of evaluate.py that was measured on these weights."""
    if not path.is_file():
        raise FileNotFoundError(f"--results {path}: no such file.")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        table_row(full_name(result), result), index_entries(full_name(result), result)
        measured_on, _ = result["checkpoint_sha256"], result["parts"][0]["list_sha256"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"--results {path} is no result of examples/evaluate.py.") from error
    if measured_on != sha256:
        raise ValueError(
            f"--results {path} was measured on other weights ({result['checkpoint']}): score this checkpoint."
        )
    return result


def stage(arguments: Arguments, folder: Path) -> None:
    """Writes everything that will be uploaded, as it will be, into a folder."""
    checkpoint = Path(arguments.checkpoint)
    model, processor = load(checkpoint)
    sha256 = fingerprint(model)
    results = by_name([read_result(Path(path), sha256) for path in arguments.results])
    folds = arguments.merged and not model.config.temporal_config.experts_merged
    if folds:
        model.merge_experts()
    model.save_pretrained(folder, max_shard_size=arguments.max_shard_size.upper())
    processor.save_pretrained(folder)
    if model.config.training_classes_set:
        names = [name for _, name in sorted(model.config.id2label.items())]
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    for name in RECORDS:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    # train.py leaves the plot of a run beside its model/ and best/.
    beside = checkpoint.resolve().parent if (checkpoint / "training.json").is_file() else checkpoint
    for curves in (checkpoint / "curves.png", beside / "curves.png"):
        if curves.is_file():
            shutil.copyfile(curves, folder / "curves.png")
            break
    for name, result in results.items():
        path = folder / "results" / f"{re.sub(r'[^a-z0-9.-]+', '_', name.lower())[:150]}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_card(arguments, folder, model.config, results, before_folding=folds)


# --------------------------------------------------------------------------------------------------------------- card

USE = """```python
import modeling_mote  # of the package mote-transformers
from transformers import pipeline

classify = pipeline("zero-shot-video-classification", model="{repo}")
classify("clip.mp4", candidate_labels=["archery", "yoga", "flipping a pancake"])
```

Without the package, `AutoModel`, `AutoModelForVideoClassification` and `AutoProcessor` load it with
`trust_remote_code=True`. A video's features depend on the candidate labels (temporal feature modulation): scores under
two lists do not compare. It classifies clips of a few seconds; a long video needs windows."""
CITATION = """MoTE: Reconciling Generalization with Specialization for Visual-Language to Video Knowledge Transfer,
NeurIPS 2024, arXiv 2410.10589."""
MERGED = """The experts of each temporal layer are folded into one feed-forward: the same scores, fewer weights, and
nothing left to route."""
CURVES = "![Loss, learning rate and validation accuracy over the steps](curves.png)"


def full_name(result: dict[str, Any]) -> str:
    """Protocol and what differs from it, as evaluate.py names it."""
    return ", ".join([result["protocol"], *(f"{key}={value}" for key, value in result["deviations"].items())])


def by_name(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Results by a name of their own: those of one protocol on several lists of clips are told apart by the list."""
    names = [full_name(result) for result in results]
    found: dict[str, dict[str, Any]] = {}
    for name, result in zip(names, results, strict=True):
        name += f", list {result['parts'][0]['list_sha256'][:8]}" if names.count(name) > 1 else ""
        if name in found:
            raise ValueError(f"--results holds {name} twice: keep one.")
        found[name] = result
    return found


def table_row(name: str, result: dict[str, Any]) -> str:
    accuracies = {"top1": "-", "top5": "-"}
    for metric in accuracies.keys() & result.keys():
        mean, std = result[metric]["mean"], result[metric]["std"]
        accuracies[metric] = f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")
    cells = [name, f"{result['num_scored']} of {result['num_listed']}", result["views"], result["num_frames"]]
    cells += [result["alpha"], "on" if result["modulation"] else "off", *accuracies.values()]
    return f"| {' | '.join(map(str, cells))} |"


def index_entries(name: str, result: dict[str, Any]) -> list[EvalResult]:
    """A result as `model-index` holds it, in evaluate.py's words; only measured numbers go there."""
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


def measured_table(results: dict[str, dict[str, Any]], before_folding: bool) -> str:
    """What was measured on these weights; a number never goes without its protocol, N and views."""
    if not results:
        return "Nothing: no result of `examples/evaluate.py` came with this upload."
    header = ["protocol", "scored of listed", "views (clips x crops)", "frames", "alpha", "modulation"]
    lines = [f"| {' | '.join([*header, 'top-1 %', 'top-5 %'])} |", "|---" * (len(header) + 2) + "|"]
    lines += [table_row(name, result) for name, result in results.items()]
    notes = [
        "By `examples/evaluate.py` on these weights; the records are in `results/`.",
        "A video that can't be read counts as wrong.",
        "Below alpha 1, the image tower that was scored is alpha · fine-tuned + (1 - alpha) · CLIP.",
    ]
    notes += ["Scored before the experts were folded."] if before_folding else []
    return "\n".join([*lines, "", *notes])


def authors_table(config: MoTEConfig, protocols: set[str], converted: bool) -> str:
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


def read_card(arguments: Arguments, config: MoTEConfig) -> str:
    """The card to start from: the one chosen, the checkpoint's own, or a title."""
    path = Path(arguments.card or Path(arguments.checkpoint) / "README.md")
    if arguments.card is not None and not path.is_file():
        raise FileNotFoundError(f"--card {path}: no such file.")
    if path.is_file():
        try:
            content = path.read_text(encoding="utf-8")
            ModelCard(content)
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} is no model card: {first_line(error)}") from error
        return content.split(GENERATED)[0]
    classes = f", {config.num_labels} training classes (`labels.txt`)" if config.training_classes_set else ""
    return (
        f"# {arguments.repo.split('/')[1]}\n\nMoTE: CLIP and {config.temporal_config.num_hidden_layers} temporal "
        f"layers, {config.num_frames} frames a clip{classes}.\n"
    )


def write_card(
    arguments: Arguments,
    folder: Path,
    config: MoTEConfig,
    results: dict[str, dict[str, Any]],
    before_folding: bool,
) -> None:
    """The card with its fields filled in, a section for whatever it has no field for, and the results as metadata."""
    content = read_card(arguments, config)
    fields = {
        "repo": arguments.repo,
        "measured": measured_table(results, before_folding),
        "curves": CURVES if (folder / "curves.png").is_file() else "",
        "experts": MERGED if config.temporal_config.experts_merged else "",
    }
    used = set(re.findall(FIELD, content))
    # Plain substitution: the card of a checkpoint is text, not a template that runs.
    content = re.sub(FIELD, lambda found: fields.get(found[1], found[0]), content)
    content = content.replace("PATH_OF_THIS_FOLDER", arguments.repo)  # in the converter's card, as is the next
    content = content.replace("No accuracy was measured on this conversion. ", "") if results else content
    converted, protocols = (folder / "conversion.json").is_file(), {each["protocol"] for each in results.values()}
    sections = {
        "Use": USE.format(repo=arguments.repo) if arguments.repo not in content else "",
        "Measured": fields["measured"] if results and "measured" not in used else "",
        "As reported by the authors": authors_table(config, protocols, converted)
        if "reported by the authors" not in content
        else "",
        "Training": fields["curves"] if "curves" not in used else "",
        "Merged experts": fields["experts"] if "experts" not in used else "",
        "Citation": CITATION if "2410.10589" not in content else "",
    }
    added = [f"## {title}\n\n{text}\n" for title, text in sections.items() if text]
    card = ModelCard("\n".join([content.rstrip() + "\n", *([GENERATED + "\n", *added] if added else [])]))
    data: Any = card.data
    data.library_name = data.library_name or "transformers"
    data.pipeline_tag = data.pipeline_tag or "video-classification"
    data.tags = list(dict.fromkeys([*(data.tags or []), "mote", "zero-shot-video-classification"]))
    entries = [entry for entry in data.eval_results or [] if entry.dataset_name not in results]
    entries += [entry for name, result in results.items() for entry in index_entries(name, result)]
    if entries:
        data.model_name, data.eval_results = arguments.repo.split("/")[1], entries
    card.save(folder / "README.md")


# ------------------------------------------------------------------------------------------------------------- upload


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def without_secrets(text: str) -> str:
    """The text on one line, without the token, anything that looks like one, and passwords in addresses."""
    for secret in {get_token(), os.environ.get("HF_TOKEN", "").strip()} - {None, ""}:
        text = text.replace(str(secret), "***")
    text = re.sub(r"hf_[A-Za-z0-9]{10,}", "***", text)
    return " ".join(re.sub(r"//[^/@\s]+@", "//***@", text).split())


def reason(error: BaseException, repo: str) -> str:
    """Why an upload failed, in a sentence for the person who waits for it."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # so huggingface_hub reports from threads
        error = error.__cause__
    said = first_line(error).rstrip(".")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return "the Hub refused the token: log in with `hf auth login`, or set HF_TOKEN to a valid one."
        if status == 403:
            return f"the token may not write to {repo}: it needs write access to {repo.split('/')[0]}."
        if status == 404:
            return f"the Hub has no {repo}, or the token may not see it."
        said = f"the Hub answered {status}, {error.server_message or said}"
    elif isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to upload."
    elif isinstance(error, UnicodeError):
        return "the token holds characters that no token has: set it again."
    elif isinstance(error, (HTTPError, ConnectionError)):
        said = f"the connection to the Hub failed, {type(error).__name__}: {said}"
    elif isinstance(error, ValueError):
        return f"{said}."
    return f"{said}; every revision of {repo} is whole, so run the command again."


def publish(arguments: Arguments, folder: Path, files: dict[str, Path]) -> None:
    """Uploads the files, and removes what an older upload left, as one commit."""
    token = get_token()
    if token is None:
        raise ValueError("there is no token to sign with: log in with `hf auth login`, or set HF_TOKEN")
    api, repo, branch = HfApi(token=token), arguments.repo, arguments.revision or "main"
    try:
        ModelCard.load(folder / "README.md").validate()
    except ValueError as error:
        raise ValueError(f"the Hub refuses the card: {first_line(error)}") from error
    try:
        if arguments.private and not api.model_info(repo).private:
            raise ValueError(f"{repo} exists and is public: make it private on the Hub first, or drop --private")
    except RepositoryNotFoundError:
        pass
    api.create_repo(repo, private=arguments.private or None, exist_ok=True)
    if arguments.revision is not None:
        api.create_branch(repo, branch=branch, exist_ok=True)
    before = api.model_info(repo, revision=branch)
    held = [sibling.rfilename for sibling in before.siblings or []]
    stale = [path for path in filter_repo_objects(held, allow_patterns=list(STALE)) if path not in files]
    for path in stale:
        print(f"{'removed':>13}  {path}")
    print(f"to {repo}, {'private' if before.private else 'public'}, branch {branch}", flush=True)
    # Not upload_folder, which may cut an upload into several commits.
    commit = api.create_commit(
        repo,
        [CommitOperationAdd(name, path) for name, path in files.items()] + [CommitOperationDelete(p) for p in stale],
        commit_message=arguments.commit_message,
        revision=branch,
    )
    done = "holds these files already" if commit.oid == before.sha else without_secrets(str(commit.commit_url))
    print(f'{repo}: {done}\nto pin it: revision="{commit.oid}"')


def push(arguments: Arguments) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    hub_logging.set_verbosity_error()  # its warnings about retries hold signed addresses
    with tempfile.TemporaryDirectory(prefix="mote-upload-") as temporary:
        folder = Path(temporary)
        stage(arguments, folder)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for name, path in files.items():
            print(f"{path.stat().st_size:13,}  {name}")
        print(f"{sum(path.stat().st_size for path in files.values()):13,}  bytes in {len(files)} files", flush=True)
        if arguments.dry_run:
            print(f"nothing was uploaded to {arguments.repo}")
            return
        try:
            publish(arguments, folder, files)
        except Exception as error:  # of any kind: a traceback could hold the token
            raise SystemExit(f"error: {without_secrets(reason(error, arguments.repo))}") from None


def main() -> None:
    try:
        parser = HfArgumentParser(Arguments, description=__doc__.splitlines()[0])  # type: ignore[arg-type]
        push(parser.parse_args_into_dataclasses()[0])
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {without_secrets(str(error))}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted; every revision on the Hub is whole.")


if __name__ == "__main__":
    main()
