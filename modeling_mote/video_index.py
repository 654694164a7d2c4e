"""Features of many videos in one file, and their search by text.

>>> update_index("my_videos.safetensors", find_videos(["my_videos"]), "org/mote-vitb16", root="my_videos")
>>> with_model = open_index("my_videos.safetensors")
>>> with_model.search("flipping a pancake", top_k=5)

Modulation is off: it makes a video's feature depend on the candidate labels, and a feature in an index has to be the
same whatever is asked. `get_video_features` without classes leaves it out.
"""

import csv
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from .feature_cache import load_tensors, save_tensors, video_features_key
from .loading import load_checkpoint
from .modeling_mote import MoTEModel
from .processing import MoTEProcessor, encode_classes, encode_texts
from .processing.builders.clip_list import read_lines
from .processing.files import only_writer
from .processing.metrics.retrieval import retrieval_recall
from .processing.reading import PixelReader, ProcessDied, Reading, describe_death, read_in_processes
from .processing.sources import Videos, is_url
from .video_features import embed_videos

State = tuple[int, int]  # size in bytes and time of change in nanoseconds: a video whose state is known is not read


@dataclass
class Index:
    """Features of videos, and what they were computed from.

    Attributes:
        root: The folder that the names are relative to, absolute; empty if they are absolute paths and URLs.
        checkpoint: The model's folder, absolute, or Hub id.
        key: Fingerprint of the model, its preprocessing and the code that reads videos.
        features: {name of a video: (state, L2-normalised feature [d])}.
        errors: {name: why it could not be read}; these are tried again at the next update.
    """

    root: str
    checkpoint: str
    key: str
    features: dict[str, tuple[State, torch.Tensor]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def file(self, name: str) -> str:
        """The path or URL of a video."""
        return name if is_url(name) else str(Path(self.root, name))

    def video_embeds(self) -> torch.Tensor:
        """The features, [n, d]."""
        return torch.stack([feature for _, feature in self.features.values()])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the index, with a checksum, whole or not at all.

        Raises:
            OSError: If it can't be written.
        """
        states = torch.tensor([state for state, _ in self.features.values()], dtype=torch.int64).reshape(-1, 2)
        rows = [feature for _, feature in self.features.values()]
        tensors = {"states": states, "video_embeds": torch.stack(rows) if rows else torch.empty(0, 0)}
        metadata = {"root": self.root, "checkpoint": self.checkpoint, "key": self.key}
        lists = {"names": list(self.features), "errors": self.errors}
        save_tensors(tensors, Path(path), metadata | {name: json.dumps(value) for name, value in lists.items()})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Index":
        """Read an index.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is none, or damaged, if only by one bit.
        """
        path = Path(path)
        if path.is_dir():
            raise ValueError(f"Index {path} is a folder: name a file.")
        if not path.is_file():
            raise FileNotFoundError(f"Index {path} does not exist: make it with `mote search index`.")
        try:
            tensors, metadata = load_tensors(path)
            rows = zip(tensors["states"].tolist(), tensors["video_embeds"], strict=True)
            features = {
                name: ((size, changed), row.clone())  # no mapped file, which would be replaced below it
                for name, ((size, changed), row) in zip(json.loads(metadata["names"]), rows, strict=True)
            }
            errors = json.loads(metadata["errors"])
            return cls(metadata["root"], metadata["checkpoint"], metadata["key"], features, errors)
        except (KeyError, ValueError) as error:
            raise ValueError(f"Index {path} is no index, or a damaged one: remove it, or name another.") from error


@dataclass
class Update:
    """What an update did: the index, the names that were new or changed, and those that are gone."""

    index: Index
    new: list[str]
    gone: list[str]


def update_index(
    path: str | os.PathLike[str],
    videos: Videos,
    model: str,
    *,
    root: str = "",
    batch_size: int = 8,
    num_workers: int = 2,
    save_every: float = 60.0,
    device: str | None = None,
    show_progress: bool = False,
) -> Update:
    """Make an index of videos, or bring it up to date: read what is new or changed, and drop what is gone.

    What was read is kept if the process is interrupted or killed; the next update goes on from there.

    Args:
        path: The index file.
        videos: As `find_videos` lists them.
        model: Folder or Hub id of a MoTE.
        root: The one folder whose videos these are, if they are: an index goes on when it is moved.
        batch_size: Videos in one forward.
        num_workers: Processes that read videos; one that dies costs its own video.
        save_every: Seconds between savings.
        device: See `load_model`.
        show_progress: Draw a bar.

    Returns:
        What was done.

    Raises:
        ValueError: If the index is of another model, of other videos, damaged, or written by another run now; a
            `CheckpointError` for the model.
        OSError: If the index can't be written.
    """
    path, root = Path(path), os.path.abspath(root) if root else ""
    with only_writer(path):
        index = Index.read(path) if path.exists() else None
        loaded, processor, key = _load(model, device)
        names = videos.names if root else [_absolute(file) for file in videos.files]
        states = {name: _state(file) for name, file in zip(names, videos.files, strict=True)}
        index = index or Index(root, model, key)
        _check_same(index, path, model, key, root, states)
        index.root, index.checkpoint = root, os.path.abspath(model) if Path(model).is_dir() else model

        new = [name for name in names if index.features.get(name, (None,))[0] != states[name]]
        gone = sorted((index.features.keys() | index.errors.keys()) - states.keys())
        for name in (*new, *gone):
            index.features.pop(name, None)
        index.errors = {}
        index.write(path)  # what can't be written is known before the work
        try:
            reader = PixelReader(processor.video_processor, processor.video_processor.frames_per_clip(loaded.config))
            readings = read_in_processes(
                reader, [index.file(name) for name in new], num_workers if len(new) > 1 else 0
            )
            bar = tqdm(readings, total=len(new), unit="video", disable=not (show_progress and new))
            saved = time.monotonic()
            for _ in _encode(index, {name: states[name] for name in new}, bar, loaded, processor, batch_size):
                if time.monotonic() - saved >= save_every:
                    index.write(path)
                    saved = time.monotonic()
        finally:  # what was read stays read, also after Ctrl-C
            index.write(path)
    return Update(index, new, gone)


def _check_same(index: Index, path: Path, model: str, key: str, root: str, states: Mapping[str, State]) -> None:
    """Refuse to mix features of two models, and to replace an index of other videos."""
    if index.key != key:
        raise ValueError(
            f"Index {path} was made with another model, {index.checkpoint}, or by another release: remove it, "
            "or name another file."
        )
    known = {name: state for name, (state, _) in index.features.items()}
    if known and index.root != root and not known.items() & states.items():  # neither this folder nor it, moved
        raise ValueError(
            f"Index {path} is of {index.root or 'other videos'}, not of {root or 'these'}: name another file."
        )


@torch.no_grad()
def _encode(
    index: Index,
    states: Mapping[str, State],
    readings: Iterable[tuple[int, Any]],
    model: MoTEModel,
    processor: MoTEProcessor,
    batch_size: int,
) -> Iterator[None]:
    """Add the videos that are read to an index, a batch at a time."""
    names, batch = list(states), {}
    for number, reading in readings:
        name = names[number]
        if isinstance(reading, ProcessDied):
            reading = Reading(error=describe_death(reading, index.file(name)))
        if reading.error is not None:
            index.errors[name] = reading.error
        else:
            batch[name] = torch.from_numpy(reading.pixels)
        if len(batch) == batch_size or (batch and number == len(names) - 1):
            embeds, _ = embed_videos(model, processor.video_processor, list(batch.values()))
            for done, row in zip(batch, embeds, strict=True):
                index.features[done] = states[done], row
            batch = {}
        yield


def _load(model: str, device: str | None) -> tuple[MoTEModel, MoTEProcessor, str]:
    """The model, its processor, and the fingerprint of what a feature depends on."""
    loaded, processor = load_checkpoint(model, device=device)
    key = video_features_key(loaded, processor.video_processor)
    if not loaded.config.temporal_config.experts_merged:
        loaded.merge_experts()
    return loaded, processor, key


def _absolute(file: str) -> str:
    return file if is_url(file) else os.path.abspath(file)


def _state(file: str) -> State:
    """Size and time of change; those of a URL, and of a link that leads nowhere, are 0."""
    try:
        found = os.stat(file)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


# ------------------------------------------------------------------------------------------------------------- asking


class Found(NamedTuple):
    """A video that was found: its path or URL, and the cosine of its feature to the text's."""

    file: str
    cosine: float


@dataclass
class OpenIndex:
    """An index with the model that made it, ready to be asked.

    Attributes:
        index: The index.
        model: The model, whose text tower reads the queries.
        processor: Its processor.
    """

    index: Index
    model: MoTEModel
    processor: MoTEProcessor

    def search(self, text: str, top_k: int = 10, prompts: str | Sequence[str] = "mote_28") -> list[Found]:
        """The videos nearest to a text, best first.

        Args:
            text: What to look for.
            top_k: Videos given.
            prompts: See `get_prompt_set`.

        Raises:
            ValueError: For a text of which the tokenizer knows no word, and bad prompts.
        """
        embeds = encode_classes(self.model, self.processor, [text], prompts).cpu()  # [1, d]
        cosines, order = (self.index.video_embeds() @ embeds[0]).sort(descending=True, stable=True)
        names = list(self.index.features)
        best = list(zip(cosines.tolist(), order.tolist(), strict=True))[:top_k]
        return [Found(self.index.file(names[number]), cosine) for cosine, number in best]

    def recall(
        self, captions: Mapping[str, Sequence[str]], prompts: str | Sequence[str] = "plain"
    ) -> dict[str, float | int]:
        """Recall at 1, 5 and 10 and the median rank, of text → video and video → text.

        Args:
            captions: {caption: names of the videos that it describes}, see `read_captions`.
            prompts: See `get_prompt_set`.

        Returns:
            As `retrieval_recall`, and `num_videos_unread`: videos that could not be read, which are never found.
        """
        columns = {name: number for number, name in enumerate([*self.index.features, *self.index.errors])}
        embeds = encode_texts(self.model, self.processor, list(captions), prompts).cpu()
        cosines = np.full((len(captions), len(columns)), np.nan)
        cosines[:, : len(self.index.features)] = embeds @ self.index.video_embeds().T
        described = [[columns[name] for name in names] for names in captions.values()]
        return retrieval_recall(cosines, described) | {"num_videos_unread": len(self.index.errors)}


def open_index(path: str | os.PathLike[str], model: str | None = None, device: str | None = None) -> OpenIndex:
    """Open an index with the model that made it.

    Args:
        path: The index file.
        model: Where the model is now; the place recorded in the index by default.
        device: See `load_model`.

    Raises:
        FileNotFoundError, ValueError: As `Index.read`; if the index holds no video, or the model is another one now.
    """
    index = Index.read(path)
    if not index.features:
        raise ValueError(f"Index {path} holds no video: none of {index.root or 'its videos'} could be read.")
    model = model or index.checkpoint
    loaded, processor, key = _load(model, device)
    if key != index.key:
        raise ValueError(
            f"Index {path} was made with another model than {model} is now, or by another release: make it again, or "
            "name its model."
        )
    return OpenIndex(index, loaded, processor)


def read_captions(path: str | os.PathLike[str], index: Index) -> dict[str, list[str]]:
    """{caption: the videos it describes, as the index names them}, from a CSV of path,caption.

    Args:
        path: The CSV. A path in it is as `search` gives it, or relative to the index's folder.
        index: The index.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For a line that makes no sense or names a video that is not in the index; the message names it.
    """
    known = index.features.keys() | index.errors.keys()
    captions: dict[str, list[str]] = {}
    rows = csv.DictReader(read_lines(Path(path)))
    if not {"path", "caption"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{path} must begin with the line path,caption.")
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        name, caption = row["path"] or "", (row["caption"] or "").strip()
        if None in row:
            raise ValueError(f"{where} has more values than columns; put a caption with a comma in double quotes.")
        if not caption:
            raise ValueError(f"{where}: the caption is empty.")
        if index.root and Path(name).is_relative_to(index.root):
            name = Path(name).relative_to(index.root).as_posix()
        if name not in known:
            raise ValueError(f"{where}: {name or 'an empty path'} is not in the index.")
        captions.setdefault(caption, []).append(name)
    if not captions:
        raise ValueError(f"{path} has no caption.")
    return captions


__all__ = ["Found", "Index", "OpenIndex", "Update", "open_index", "read_captions", "update_index"]
