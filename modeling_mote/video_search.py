"""Ask an index of videos by text or by video, with the model that made it; and make one straight from videos.

>>> index_videos("my.index", ["my_videos"], "org/mote-vitb16")  # embeds them, and builds the index
>>> search = VideoSearch("my.index")
>>> search.by_text("flipping a pancake", top_k=5)
>>> search.by_video("like_this.mp4")

Modulation is off: it makes a video's feature depend on the candidate labels, and a feature in an index has to be the
same whatever is asked. `get_video_features` without classes leaves it out.
"""

import csv
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .bulk import VideoScorer
from .bulk_run import Embedded, embed_all
from .loading import load_processor
from .processing import encode_classes, encode_texts
from .processing.builders.clip_list import read_lines
from .processing.listing import list_items
from .processing.metrics.retrieval import retrieval_recall
from .shards import RECORD_NAME, list_shards, read_shard, read_shards
from .video_index import FEATURES_NAME, Built, Hit, VideoIndex, build_index, check_place, open_index


class Indexed(NamedTuple):
    """What `index_videos` did.

    Attributes:
        embedded: To the embeddings.
        built: To the index.
        gone: Paths that were in it and are not among the videos any more.
        unread: Why files could not be read, by path.
    """

    embedded: Embedded
    built: Built
    gone: list[str]
    unread: dict[str, str]


def index_videos(
    path: str | os.PathLike[str],
    sources: Sequence[str],
    model: str,
    *,
    batch_size: int = 8,
    num_workers: int = 2,
    save_every: float = 60.0,
    device: str | None = None,
    merge_tokens: int = 0,
    show_progress: bool = False,
) -> Indexed:
    """Embed videos into a folder within an index, and build the index; again, for what has changed among them.

    What was embedded is kept if the process is interrupted or killed; the next call goes on from there. Files that
    could not be read are tried again, and what is no longer among the videos is dropped.

    Args:
        path: The folder of the index.
        sources: See `list_items`.
        model: Folder or Hub id of a MoTE.
        batch_size: Videos in one forward.
        num_workers: Processes that read videos; one that dies costs its own video.
        save_every: Seconds between savings.
        device: See `load_model`.
        merge_tokens: See `VideoScorer`; queries do the same.
        show_progress: Draw bars.

    Returns:
        What was done.

    Raises:
        ValueError: If the index is of another model or of other videos, damaged, or written by another run now; a
            `CheckpointError` for the model.
        OSError: If it can't be written.
    """
    path, items = Path(path), list_items(sources)
    features = path / FEATURES_NAME
    gone = _gone(path, features, items)
    scorer = VideoScorer(
        model, batch_size=batch_size, num_workers=num_workers, device=device, merge_tokens=merge_tokens
    )
    embedded = embed_all(
        scorer, items, features, shard_seconds=save_every, retry=True, prune=True, show_progress=show_progress
    )
    scorer.ready.processes.close()
    built = build_index(path, [features], show_progress=show_progress)
    return Indexed(embedded, built, gone, _unread(features))


def _gone(path: Path, features: Path, items: pa.Table) -> list[str]:
    """The videos of an index that are not among the items; an error if none is, as it is of others then."""
    contents = check_place(path)
    if contents is not None and contents.sources != [FEATURES_NAME]:
        raise ValueError(f"Index {path} was built from {contents.sources[0]}: build it again, or name another index.")
    if not (features / RECORD_NAME).exists():
        return []
    paths = pc.unique(
        pa.chunked_array(
            [chunk for table in read_shards(features, ["path"]) for chunk in table["path"].chunks], pa.string()
        )
    )
    gone = paths.filter(pc.invert(pc.is_in(paths, value_set=items["path"].combine_chunks()))).to_pylist()
    if gone and len(gone) == len(paths):
        raise ValueError(f"Index {path} is of other videos, such as {gone[0]}: name another index, or remove it.")
    return gone


def _unread(features: Path) -> dict[str, str]:
    """Why files could not be read, by path, as their rows in shards say."""
    unread: dict[str, str] = {}
    for shard in list_shards(features):
        table = read_shard(shard, ["path", "error"])
        failed = table.filter(pc.is_valid(table["error"]))
        unread |= dict(zip(failed["path"].to_pylist(), failed["error"].to_pylist(), strict=True))
    return unread


# -------------------------------------------------------------------------------------------------------------- asking


class VideoSearch:
    """An index with the model that made it; both are loaded once, for any number of queries.

    Args:
        path: The folder of the index.
        model: Where the model is now; the place recorded in the index by default.
        device: See `load_model`.

    Raises:
        FileNotFoundError, ValueError, ImportError: As `open_index`; also if the index holds no video, or the model is
            another one now.

    Attributes:
        index: The index.
    """

    def __init__(self, path: str | os.PathLike[str], model: str | None = None, device: str | None = None) -> None:
        self.index: VideoIndex = open_index(path)
        if not self.index.contents.num_alive:
            raise ValueError(f"Index {path} holds no video: none of its files could be read.")
        record = self.index.record
        model = model or record["model"]
        merge_tokens = record.get("merge_tokens") or 0
        self._scorer = VideoScorer(model, num_workers=1, device=device, merge_tokens=merge_tokens, **record["reading"])
        if self._scorer.record()["key"] != record["key"]:
            raise ValueError(
                f"Index {path} was made with another model than {model} is now, or by another release: make it again, "
                "or name its model."
            )
        self._model, self._processor = self._scorer.ready.model, load_processor(model)

    def by_text(self, text: str, top_k: int = 10, prompts: str | Sequence[str] = "mote_28") -> list[Hit]:
        """The videos nearest to a text, best first.

        Args:
            text: What to look for.
            top_k: Videos, or parts of them, wanted.
            prompts: See `get_prompt_set`.

        Raises:
            ValueError: For a text of which the tokenizer knows no word, and bad prompts.
        """
        embeds = encode_classes(self._model, self._processor, [text], prompts).float().cpu().numpy()  # [1, d]
        return self.index.search(embeds[0], top_k)

    def by_video(self, video: str, top_k: int = 10) -> list[Hit]:
        """The videos nearest to a video, best first; itself among them, if it is in the index.

        Args:
            video: Path or URL.
            top_k: Videos, or parts of them, wanted.

        Raises:
            ValueError: If it can't be read.
        """
        result = self._scorer({"path": [video]})
        if result["error"][0] is not None:
            raise ValueError(result["error"][0])
        if result["warning"][0] is not None:
            warnings.warn(result["warning"][0], stacklevel=2)
        return self.index.search(result["embedding"][0], top_k)

    def recall(
        self, captions: Mapping[str, Sequence[str]], prompts: str | Sequence[str] = "plain"
    ) -> dict[str, float | int]:
        """Recall at 1, 5 and 10 and the median rank, of text → video and video → text, with exact cosines.

        Args:
            captions: {caption: paths of the videos that it describes}, see `read_captions`.
            prompts: See `get_prompt_set`.

        Returns:
            As `retrieval_recall`, and `num_videos_unread`: videos that could not be read, which are never found. A
            video of several windows is as near as the nearest of them.

        Raises:
            ValueError: If the features changed since the index was built.
        """
        texts = encode_texts(self._model, self._processor, list(captions), prompts).float().cpu().numpy()
        names = video_names(self.index)
        columns = {name: number for number, name in enumerate(names)}
        cosines = np.full((len(texts), len(names)), np.nan)
        for shard in self.index.contents.shards:
            paths = self.index.rows["path"].slice(shard.first, shard.rows).to_pylist()
            for path, found in zip(paths, self.index.shard_vectors(shard) @ texts.T, strict=True):
                column = columns[path]
                cosines[:, column] = np.fmax(cosines[:, column], found)
        described = [[columns[name] for name in named] for named in captions.values()]
        unread = int(np.isnan(cosines).all(axis=0).sum())
        return retrieval_recall(cosines, described) | {"num_videos_unread": unread}


def video_names(index: VideoIndex) -> list[str]:
    """The paths of an index, each once: of its videos, and then of the files that could not be read."""
    contents = index.contents
    alive = [index.rows["path"].slice(shard.first, shard.rows).to_pylist() for shard in contents.shards]
    unread = [path for source in contents.sources for path in _unread(index.path / source)]
    return list(dict.fromkeys([*(path for paths in alive for path in paths), *unread]))


def read_captions(path: str | os.PathLike[str], index: VideoIndex) -> dict[str, list[str]]:
    """{caption: the videos it describes, as the index names them}, from a CSV of path,caption.

    Args:
        path: The CSV. A path in it is as `search` gives it, or its end, as long as only one video's path ends so.
        index: The index.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For a line that makes no sense or names a video that is not in the index; the message names it.
    """
    ends = _ends(video_names(index))
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
        found = ends.get(PurePath(name).parts, [])
        if len(found) != 1:
            why = f"may be {found[0]} or {found[1]}: name more of its path" if found else "is not in the index"
            raise ValueError(f"{where}: {name or 'an empty path'} {why}.")
        captions.setdefault(caption, []).append(found[0])
    if not captions:
        raise ValueError(f"{path} has no caption.")
    return captions


def _ends(names: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """{the last parts of a path: the paths that end so}."""
    ends: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        parts = PurePath(name).parts
        for first in range(len(parts)):
            ends.setdefault(parts[first:], []).append(name)
    return ends


__all__ = ["Indexed", "VideoSearch", "index_videos", "read_captions", "video_names"]
