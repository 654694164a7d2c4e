"""Clips to scores, which are kept on disk as they come: what was scored once is not scored again.

Shapes: b clips of a batch, n clips of a list, v views, t frames, c candidate classes, d = `projection_dim`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .modeling_mote import MoTEModel
from .processing.clips import VideoClips, collate_clips
from .processing.protocols import half_classes_score, score_views
from .processing.reading import ProcessDied, describe_death, read_in_processes


class ScoreLog:
    """Scores of clips on disk as they are computed, one file per process: `scores-RUN.PROCESS.jsonl`.

    Attributes:
        rows: {(part, index): row} of all that was scored, in this run or before: `scores` [c] and `decoder`, or
            `error`.

    Args:
        folder: of the result.
        key: what the scores depend on; those of another key are left alone.
        process: number of this process.
    """

    def __init__(self, folder: Path, key: str, process: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.key = folder, key[:16]
        self.path = folder / f"scores-{self.key}.{process}.jsonl"
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}
        for path in sorted(folder.glob(f"scores-{self.key}.*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # cut by a kill
                    continue
                if "error" not in row:  # what could not be read is tried again
                    self._take(row)
        with open(self.path, "ab") as file:
            file.write(b"\n")  # ends a line that was cut; and the file can be written

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows: `part`, `index`, and `scores` and `decoder`, or `error`."""
        with open(self.path, "ab", buffering=0) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        for row in rows:
            self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        scores = {"scores": np.array(row["scores"], dtype=np.float64)} if "scores" in row else {}
        self.rows[row["part"], row["index"]] = row | scores

    def remove(self) -> None:
        """Delete this process' file: the result holds what it was kept for."""
        self.path.unlink(missing_ok=True)
        for path in self.folder.glob(f"scores-{self.key}.*.jsonl"):  # of more processes, before
            path.unlink(missing_ok=True)


@dataclass
class ClipReader:
    """Reads one clip, in a process of its own or here; what travels is an array: handles of tensors run out."""

    clips: VideoClips

    def __call__(self, index: int) -> dict[str, Any]:
        sample = self.clips[index]
        return {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}


@dataclass
class ClipScorer:
    """Scores of pixels by a protocol's rule.

    Attributes:
        model: in evaluation mode.
        class_embeds: features of the candidate classes, [c, d].
        rule: `views` or `half_classes`, see [`Protocol`][modeling_mote.processing.protocols.Protocol].
        modulate: whether temporal feature modulation is on.
        accelerator: device and precision.
    """

    model: MoTEModel
    class_embeds: torch.Tensor
    rule: str
    modulate: bool
    accelerator: Accelerator

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Scores [b, c] in float64 of normalised pixels [b, t, 3, h, w] or [b, v, t, 3, h, w].

        Raises:
            ValueError: if a score is no finite number.
        """
        pixels = pixels.unsqueeze(1) if pixels.dim() == 5 else pixels  # [b, v, t, 3, h, w]
        with self.accelerator.autocast():
            classes = self.class_embeds if self.modulate else None
            views = self.model.get_video_features(pixels, class_embeds=classes).pooler_output
        views = views.float()  # [b, v, d]
        if self.rule == "half_classes":
            scores = half_classes_score(views, self.class_embeds)
        else:
            scores = score_views(F.normalize(views, dim=-1) @ self.class_embeds.T)
        if not scores.isfinite().all():
            raise ValueError("The checkpoint gives scores that are no finite numbers: its weights are damaged.")
        return scores.double().cpu().numpy()


def score_clips(
    clips: VideoClips,
    score: ClipScorer,
    log: ScoreLog,
    part: int,
    batch_size: int,
    num_workers: int,
    accelerator: Accelerator,
    title: str = "",
) -> None:
    """Score this process' share of a list that was not scored before, into the log.

    A clip that can't be read, or kills the process that reads it, is a row with an `error`, and costs no other.

    Args:
        clips: the list.
        score: scores pixels.
        log: where the scores go.
        part: number of the list in the protocol.
        batch_size: clips per forward.
        num_workers: reading processes.
        accelerator: which clips are this process'.
        title: of the progress bar.
    """
    mine = range(accelerator.process_index, len(clips), accelerator.num_processes)
    missing = [index for index in mine if (part, index) not in log.rows]
    bar = tqdm(total=len(mine), initial=len(mine) - len(missing), desc=title, disable=not accelerator.is_main_process)
    with bar:
        for samples in _in_batches(_read(clips, missing, num_workers), batch_size):
            batch = collate_clips(samples, clips.input_name)
            rows = [{"part": part, "index": index, "error": message} for index, _, message in batch["errors"]]
            if batch[clips.input_name] is not None:
                scores = score(clips.inputs(batch, accelerator.device)[clips.input_name])
                rows += [
                    {"part": part, "index": index, "decoder": decoder, "scores": row.tolist()}
                    for index, decoder, row in zip(batch["indices"].tolist(), batch["decoders"], scores, strict=True)
                ]
            log.add(rows)
            bar.update(len(samples))


def _read(clips: VideoClips, indices: Sequence[int], num_workers: int) -> Iterator[dict[str, Any]]:
    """The clips, one after another, as `collate_clips` takes them."""
    for place, sample in read_in_processes(ClipReader(clips), indices, num_workers):
        if isinstance(sample, ProcessDied):
            index = indices[place]
            yield {"index": index, "label": -1, "error": describe_death(sample, clips.name(index))}
        elif clips.input_name in sample:
            yield sample | {clips.input_name: torch.from_numpy(sample[clips.input_name])}
        else:
            yield sample


def _in_batches(samples: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass
class Scored:
    """A list that was scored.

    Attributes:
        scores: [n, c]; a row of NaN for a clip that could not be read.
        labels: true classes, [n].
        unread: (clip, reason) of those that could not be read.
        decoders: number of clips that each library read.
    """

    scores: np.ndarray
    labels: np.ndarray
    unread: list[tuple[str, str]]
    decoders: Counter


def gather_scores(log: ScoreLog, part: int, clips: VideoClips, num_classes: int, accelerator: Accelerator) -> Scored:
    """A list's scores from all processes, the same on each of them.

    Args:
        log: of this process.
        part: number of the list in the protocol.
        clips: the list.
        num_classes: c.
        accelerator: the processes.
    """
    rows = [row for (of, _), row in log.rows.items() if of == part]
    if accelerator.num_processes > 1:
        rows = gather_object(rows)
    found = {row["index"]: row for row in rows}  # what was scored before, every process has
    scores = np.full((len(clips), num_classes), np.nan)
    for index, row in found.items():
        if "scores" in row:
            scores[index] = row["scores"]
    unread = [(clips.name(index), found[index]["error"]) for index in sorted(found) if "error" in found[index]]
    decoders = Counter(row["decoder"] for row in found.values() if "decoder" in row)
    return Scored(scores, np.asarray(clips.rows["label"]), unread, decoders)


__all__ = ["ClipReader", "ClipScorer", "ScoreLog", "Scored", "gather_scores", "score_clips"]
