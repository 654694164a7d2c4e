"""Publishing a checkpoint on the Hugging Face Hub: everything that loads it, and its card, in one commit."""

import copy
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils import logging as hub_logging
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from .cards import bare_card, class_names, published_card, read_card, training_card
from .configuration_mote import MoTEConfig
from .feature_cache import fingerprint
from .loading import first_sentence, load_checkpoint, read_record
from .modeling_mote import MoTEModel
from .results import file_name, named_results, read_result

RECORDS = ("training.json", "conversion.json")  # by train and convert; evaluate reads them from the Hub
# What an older upload may have left and a newer one does not overwrite: transformers prefers a stale
# `model.safetensors` to the shards beside it.
STALE = ("model*.safetensors", "model.safetensors.index.json", "labels.txt", "curves.png", "results/*.json", *RECORDS)
DISTRIBUTIONS = {"PIL": "pillow"}  # of what the code imports, if they are called otherwise


class PublishError(ValueError):
    """Why nothing was published, in a sentence without secrets."""


@dataclass
class Published:
    """What an upload did, or would do.

    Attributes:
        files: {name in the repository: bytes}.
        card: the model card.
        removed: files of an older upload that were removed.
        commit: hash of the commit, by which it can be pinned; None after a dry run.
        url: of the commit.
        unchanged: the repository held these files already.
    """

    files: dict[str, int]
    card: str
    removed: list[str] = field(default_factory=list)
    commit: str | None = None
    url: str | None = None
    unchanged: bool = False


def publish_checkpoint(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    merged: bool = False,
    results: Sequence[str | os.PathLike[str]] = (),
    card: str | os.PathLike[str] | None = None,
    license: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload MoTE",
    max_shard_size: str = "5GB",
    dry_run: bool = False,
    say: Callable[[str], Any] = lambda line: None,
) -> Published:
    """Publish a trained MoTE as one commit; whatever fails leaves every revision of the repository as it was.

    The upload is signed with the token of `hf auth login` or of the variable HF_TOKEN, which no message ever holds.

    Args:
        folder: of the checkpoint.
        repo: repository on the Hub, `org/name`; made if there is none.
        private: for those with access only; refused if the repository is public.
        merged: fold the experts into one feed-forward per layer: smaller, the same scores.
        results: `result.json` files of `mote evaluate`, or their folders, measured on these weights.
        card: the card to publish; the checkpoint's own README.md by default, or one made of what it records.
        license: of the weights, in place of the card's; `other` if nothing says any.
        revision: branch to commit to, made if there is none; `main` by default.
        commit_message: title of the commit.
        max_shard_size: weights beyond this size are split into files of at most this size.
        dry_run: only say what would be uploaded; needs no token.
        say: is told each line of what goes on.

    Returns:
        what was uploaded.

    Raises:
        PublishError: naming what is wrong and what to do.
    """
    check_names(repo, max_shard_size, commit_message)
    with _quiet_hub(), _one_sentence(repo), tempfile.TemporaryDirectory(prefix="mote-upload-") as temporary:
        staged = Path(temporary)
        stage_checkpoint(
            Path(folder),
            repo,
            staged,
            merged=merged,
            results=results,
            card=card,
            license=license,
            shards=max_shard_size,
        )
        files = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
        published = Published(
            {name: path.stat().st_size for name, path in files.items()}, read_text(files["README.md"])
        )
        for name, size in published.files.items():
            say(f"{size:13,}  {name}")
        say(f"{sum(published.files.values()):13,}  bytes in {len(files)} files")
        if not dry_run:
            _upload(files, repo, private, revision, commit_message, published, say)
    return published


def check_names(repo: str, max_shard_size: str = "5GB", commit_message: str = "-") -> None:
    """Refuse what the Hub would refuse for its form.

    Raises:
        PublishError: naming it.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        raise PublishError(without_secrets(f"repo {repo} is no repository: write org/name."))
    if not re.fullmatch(r"[1-9]\d*[KMG]B", max_shard_size.upper()):
        raise PublishError(f"max_shard_size {max_shard_size} is no size: write one such as 5GB or 500MB.")
    if not commit_message.strip():
        raise PublishError("commit_message must not be empty.")


def prepare_repository(repo: str, private: bool = False, revision: str | None = None) -> None:
    """Make a repository ready to be published to, so that whatever keeps it from being so shows before long work.

    Args:
        repo: `org/name`; made if there is none.
        private: see `publish_checkpoint`.
        revision: branch, made if there is none.

    Raises:
        PublishError: if there is no token, it may not write there, or the Hub can't be reached.
    """
    check_names(repo)
    with _quiet_hub(), _one_sentence(repo):
        _prepare(_signed_api(), repo, private, revision)


# ------------------------------------------------------------------------------------------------------------- staging


def stage_checkpoint(
    folder: Path,
    repo: str,
    staged: Path,
    *,
    merged: bool = False,
    results: Sequence[str | os.PathLike[str]] = (),
    card: str | os.PathLike[str] | None = None,
    license: str | None = None,
    shards: str = "5GB",
) -> None:
    """Write everything that is published, as it is published, into an empty folder.

    Args:
        folder: of the checkpoint, which is read whole and checked.
        repo: name that the card gives it.
        staged: where to write: weights, config, processor, tokenizer, the code for `trust_remote_code=True`, what an
            Inference Endpoint runs and needs, `labels.txt`, `training.json`, `conversion.json`, `curves.png`,
            `results/*.json`, `README.md`.
        merged: see `publish_checkpoint`, as for the next three.
        results: measured on these weights.
        card: the card to start from.
        license: of the weights.
        shards: largest size of a file of weights.

    Raises:
        ValueError, OSError: if the checkpoint, a result or the card is not what it should be.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder.")
    model, processor = load_checkpoint(str(folder), classifier=True, dtype="auto")
    measured = named_results([result_of(Path(path), weights_sha256(model)) for path in results])
    folds = merged and not model.config.temporal_config.experts_merged
    if folds:
        model.merge_experts()
    model.save_pretrained(staged, max_shard_size=shards.upper())
    processor.save_pretrained(staged)
    write_endpoint_files(staged)
    if class_names(model.config):
        (staged / "labels.txt").write_text("".join(f"{name}\n" for name in class_names(model.config)), "utf-8")
    for path in [folder / name for name in RECORDS] + curves_of(folder):
        if path.is_file():
            shutil.copyfile(path, staged / path.name)
    for name, result in measured.items():
        path = staged / "results" / f"{file_name(name)}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    written = published_card(
        card_content(folder, None if card is None else Path(card), model.config),
        repo,
        model.config,
        measured,
        converted=(staged / "conversion.json").is_file(),
        curves=(staged / "curves.png").is_file(),
        folded_now=folds,
        license=license,
        base=read_record(str(folder), "training.json").get("arguments", {}).get("model"),
    )
    (staged / "README.md").write_text(str(written), "utf-8")


def write_endpoint_files(staged: Path) -> None:
    """Add `handler.py`, which Hugging Face's Inference Endpoints run, its code, and what all the code needs installed.

    Args:
        staged: a folder that holds the code of model and processor already.
    """
    for name in ("handler", "endpoint_mote"):
        spec = importlib.util.find_spec(f"modeling_mote.processing.{name}")
        assert spec is not None and spec.origin is not None  # it lies beside this package's other files
        for source in (spec.origin, *get_relative_import_files(spec.origin)):
            shutil.copyfile(source, staged / Path(source).name)
    imported = {name for code in staged.glob("*.py") for name in get_imports(code)}
    needed = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported}
    lines = [line for line in importlib.metadata.requires("mote-transformers") or [] if _is_needed(line, needed)]
    (staged / "requirements.txt").write_text("\n".join([*sorted(lines), ""]), "utf-8")


def _is_needed(line: str, needed: Collection[str]) -> bool:
    requirement = Requirement(line)
    return requirement.marker is None and canonicalize_name(requirement.name) in needed


def weights_sha256(model: MoTEModel) -> str:
    """SHA-256 of a checkpoint's weights in float32, by which a result is known to be about them."""
    return fingerprint(model if model.dtype == torch.float32 else copy.deepcopy(model).float())


def result_of(path: Path, sha256: str) -> dict[str, Any]:
    """A result that was measured on the weights of this fingerprint.

    Raises:
        ValueError: if it is none, or was measured on others.
    """
    result = read_result(path)
    if result["checkpoint_sha256"] != sha256:
        raise ValueError(f"{path} was measured on other weights ({result['checkpoint']}): score this checkpoint.")
    return result


def curves_of(folder: Path) -> list[Path]:
    """Where the plot of a training lies: with the checkpoint, or beside its `model/` or `best/`."""
    trained = (folder / "training.json").is_file()
    places = [folder / "curves.png", *([folder.resolve().parent / "curves.png"] if trained else [])]
    return [path for path in places if path.is_file()][:1]


def card_content(folder: Path, card: Path | None, config: MoTEConfig) -> str:
    """The card to start from: the one chosen, the checkpoint's own, or what its records tell."""
    if card is not None and not card.is_file():
        raise FileNotFoundError(f"{card}: there is no such card.")
    path = card or folder / "README.md"
    if path.is_file():
        return read_card(path)
    record = read_record(str(folder), "training.json")
    settings = record.get("arguments", {})
    if not {"data", "model"} <= settings.keys():
        return bare_card(folder.resolve().name, config)
    return training_card(
        class_names(config),
        data=settings["data"],
        base=settings["model"],
        num_frames=config.num_frames,
        step=record.get("step"),
        validation=record.get("validation"),
    )


def read_text(path: Path) -> str:
    """A file's text."""
    return path.read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- upload


def _upload(
    files: Mapping[str, Path],
    repo: str,
    private: bool,
    revision: str | None,
    message: str,
    published: Published,
    say: Callable[[str], Any],
) -> None:
    """Upload the files, and remove what an older upload left, as one commit."""
    api, branch = _signed_api(), revision or "main"
    try:
        ModelCard(published.card).validate()
    except ValueError as error:
        raise ValueError(f"the Hub refuses the card: {first_sentence(error)}") from error
    _prepare(api, repo, private, revision)
    before = api.model_info(repo, revision=branch)
    held = [sibling.rfilename for sibling in before.siblings or []]
    stale = filter_repo_objects(held, allow_patterns=list(STALE))
    published.removed = [path for path in stale if path not in files]
    for path in published.removed:
        say(f"{'removed':>13}  {path}")
    say(f"to {repo}, {'private' if before.private else 'public'}, branch {branch}")
    # Not upload_folder, which may cut an upload into several commits.
    commit = api.create_commit(
        repo,
        [CommitOperationAdd(name, path) for name, path in files.items()]
        + [CommitOperationDelete(path) for path in published.removed],
        commit_message=message,
        revision=branch,
    )
    published.commit, published.url = commit.oid, without_secrets(str(commit.commit_url))
    published.unchanged = commit.oid == before.sha
    say(f"{repo}: {'holds these files already' if published.unchanged else published.url}")
    say(f'to pin it: revision="{commit.oid}"')


def _signed_api() -> HfApi:
    token = get_token()
    if token is None:
        raise ValueError("there is no token to sign with: log in with `hf auth login`, or set HF_TOKEN")
    return HfApi(token=token)


def _prepare(api: HfApi, repo: str, private: bool, revision: str | None) -> None:
    try:
        if private and not api.model_info(repo).private:
            raise ValueError(f"{repo} exists and is public: make it private on the Hub first, or publish it as it is")
    except RepositoryNotFoundError:
        pass
    api.create_repo(repo, private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)


# ------------------------------------------------------------------------------------------------------------ failures


@contextmanager
def _one_sentence(repo: str) -> Iterator[None]:
    """Whatever fails, of any kind, becomes a sentence: a traceback could hold the token."""
    try:
        yield
    except Exception as error:
        raise PublishError(without_secrets(_reason(error, repo))) from None


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without huggingface_hub's warnings about retries, which hold signed addresses."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)


def without_secrets(text: str) -> str:
    """The text on one line, without the token, anything that looks like one, and passwords in addresses."""
    for secret in {get_token(), os.environ.get("HF_TOKEN", "").strip()} - {None, ""}:
        text = text.replace(str(secret), "***")
    text = re.sub(r"hf_[A-Za-z0-9]{10,}", "***", text)
    return " ".join(re.sub(r"//[^/@\s]+@", "//***@", text).split())


def _reason(error: BaseException, repo: str) -> str:
    """Why it failed, in a sentence for the person who waits for it."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # so huggingface_hub reports from threads
        error = error.__cause__
    said = first_sentence(error)
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
    elif isinstance(error, (ValueError, FileNotFoundError)):
        return f"{said}."
    return f"{said}; every revision of {repo} is whole, so try again."


__all__ = ["PublishError", "Published", "prepare_repository", "publish_checkpoint"]
