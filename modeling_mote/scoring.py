"""Clips to scores, which are kept on disk as they come: what was scored once is not scored again.

Shapes: b clips of a batch, n clips of a list, v views, t frames, c candidate classes, d = `projection_dim`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import CLIPModel

from .modeling_mote import MoTEModel
from .processing.clips import VideoClips, collate_clips
from .processing.protocols import mean_views, score_views
from .processing.reading import ProcessDied, describe_death, read_in_processes

COSINE_DIGITS = 7  # that a float32 below 1 has


class ScoreLog:
    """Scores of clips on disk as they are computed, one file per process: `scores-RUN.PROCESS.jsonl`.

    Attributes:
        rows: {(part, index): row} of all that was scored, in this run or before: `scores` {variant: [c]}, `cosines`
            [c] and `decoder`, or `error`.

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
        """Append rows: `part`, `index`, and `scores`, `cosines` and `decoder`, or `error`."""
        with open(self.path, "ab", buffering=0) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        for row in rows:
            self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        scores = {name: np.array(each, dtype=np.float64) for name, each in row.get("scores", {}).items()}
        self.rows[row["part"], row["index"]] = row | {"scores": scores}

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
class Variant:
    """One way to score a clip's frames: texts for the classes, and how much of the temporal layers.

    Attributes:
        class_embeds: L2-normalised features of the candidate classes, [c, d].
        rho: what the temporal layers' part is multiplied by; None for the model's own modulation.
        clip: whose image tower encodes the frames; None for the model's own.
    """

    class_embeds: torch.Tensor
    rho: float | None = None
    clip: CLIPModel | None = None


@dataclass
class ClipScorer:
    """Scores of pixels by a protocol's rule, in one variant or several of the same frames.

    A clip's frames go through the image tower and the temporal layers once, however many variants there are: what the
    classes change comes after these (the frames of a variant's own CLIP apart).

    Attributes:
        model: in evaluation mode.
        variants: by name; the first is the protocol's own.
        rule: `views` or `half_classes`, see [`Protocol`][modeling_mote.processing.protocols.Protocol].
        accelerator: device and precision.
    """

    model: MoTEModel
    variants: Mapping[str, Variant]
    rule: str
    accelerator: Accelerator

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Scores {variant: [b, c]} in float64, and the cosines [b, c] of the first, averaged over the views.

        Args:
            pixels: normalised, [b, t, 3, h, w] or [b, v, t, 3, h, w].

        Raises:
            ValueError: if a score is no finite number.
        """
        pixels = pixels.unsqueeze(1) if pixels.dim() == 5 else pixels  # [b, v, t, 3, h, w]
        with self.accelerator.autocast():
            frames = self.model.get_frame_features(pixels, return_dict=True).pooler_output  # [b, v, t, d]
            temporal = self.model.get_temporal_features(frames, return_dict=True).last_hidden_state
            cosines = {name: self.cosines(each, pixels, frames, temporal) for name, each in self.variants.items()}
        scores = {
            name: (mean_views(each) if self.rule == "half_classes" else score_views(each)).double().cpu().numpy()
            for name, each in cosines.items()
        }
        if not all(np.isfinite(each).all() for each in scores.values()):
            raise ValueError("The checkpoint gives scores that are no finite numbers: its weights are damaged.")
        return scores, next(iter(cosines.values())).mean(dim=1).cpu().numpy()

    def cosines(
        self, variant: Variant, pixels: torch.Tensor, frames: torch.Tensor, temporal: torch.Tensor
    ) -> torch.Tensor:
        """Cosines of every view to the classes, float32 [b, v, c], of frame and temporal features [b, v, t, d]."""
        if variant.clip is not None:
            flat = variant.clip.get_image_features(pixel_values=pixels.flatten(0, 2), return_dict=True).pooler_output
            frames = flat.unflatten(0, pixels.shape[:3])
        # A view is scored as a video of its own: `score` would average over them.
        frames, temporal = frames.flatten(0, 1), temporal.flatten(0, 1)
        if variant.rho is None:
            logits, _, _ = self.model.score_modulated(frames, temporal, variant.class_embeds)
        else:
            rho = frames.new_full(frames.shape[:1], variant.rho, dtype=torch.float32)
            logits = self.model.score(self.model.modulate(frames, temporal, rho).mean(-2), variant.class_embeds)
        return (logits / self.model.logit_scale.float().exp()).unflatten(0, pixels.shape[:2])


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
                scores, cosines = score(clips.inputs(batch, accelerator.device)[clips.input_name])
                rows += [
                    {
                        "part": part,
                        "index": index,
                        "decoder": decoder,
                        "scores": {name: each[place].tolist() for name, each in scores.items()},
                        "cosines": np.round(cosines[place].astype(np.float64), COSINE_DIGITS).tolist(),
                    }
                    for place, (index, decoder) in enumerate(
                        zip(batch["indices"].tolist(), batch["decoders"], strict=True)
                    )
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
        scores: {variant: [n, c]}; a row of NaN for a clip that could not be read.
        cosines: of the first variant, averaged over the views, [n, c]; NaN as in the scores.
        labels: true classes, [n].
        unread: (clip, reason) of those that could not be read.
        decoders: number of clips that each library read.
    """

    scores: dict[str, np.ndarray]
    cosines: np.ndarray
    labels: np.ndarray
    unread: list[tuple[str, str]]
    decoders: Counter


def gather_scores(
    log: ScoreLog, part: int, clips: VideoClips, num_classes: int, names: Sequence[str], accelerator: Accelerator
) -> Scored:
    """A list's scores from all processes, the same on each of them.

    Args:
        log: of this process.
        part: number of the list in the protocol.
        clips: the list.
        num_classes: c.
        names: of the variants.
        accelerator: the processes.
    """
    rows = [row for (of, _), row in log.rows.items() if of == part]
    if accelerator.num_processes > 1:
        rows = gather_object(rows)
    found = {row["index"]: row for row in rows}  # what was scored before, every process has
    scores = {name: np.full((len(clips), num_classes), np.nan) for name in names}
    cosines = np.full((len(clips), num_classes), np.nan)
    for index, row in found.items():
        if "cosines" in row:
            cosines[index] = row["cosines"]
            for name in names:
                scores[name][index] = row["scores"][name]
    unread = [(clips.name(index), found[index]["error"]) for index in sorted(found) if "error" in found[index]]
    decoders = Counter(row["decoder"] for row in found.values() if "decoder" in row)
    return Scored(scores, cosines, np.asarray(clips.rows["label"]), unread, decoders)


__all__ = ["ClipReader", "ClipScorer", "ScoreLog", "Scored", "Variant", "gather_scores", "score_clips"]
