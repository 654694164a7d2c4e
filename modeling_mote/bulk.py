"""Embeddings and scores of many videos: one object that Ray Data, Daft, `datasets` and plain processes can call.

>>> scorer = VideoScorer("org/mote-vitb16", labels=["archery", "yoga"])
>>> scorer({"path": ["a.mp4", "broken.mp4"]})
{'path': [...], 'embedding': [array([...]), None], 'scores': [array([0.98, 0.02]), None], 'error': [None, '...'], ...}
>>> ray.data.from_items([{"path": "a.mp4"}]).map_batches(scorer, batch_format="pyarrow")
>>> dataset.map(scorer, batched=True)  # of `datasets`

`bulk_run` runs it over millions of files, and `shards` is what that leaves on disk.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .batches import Scored, columns_of, parts_of, rows_of, with_columns
from .feature_cache import reading_version, video_features_key
from .loading import fold_experts, load_pipeline
from .processing import ZeroShotVideoClassificationPipeline
from .processing.answers import AnswerOptions, score_labels
from .processing.class_names import parse_candidates
from .processing.prompts import get_prompt_set
from .processing.reading import (
    PixelReader,
    ProcessDied,
    Reading,
    ReadingProcesses,
    VideoPart,
    describe_death,
    describe_error,
    read_in_processes,
    recorded_warnings,
)
from .processing.video_options import READING_OPTIONS
from .processing.windows import WINDOW_OPTIONS, WindowEncoder, WindowReader, Windows, check_window
from .shards import RECORD_FORMAT
from .video_features import embed_frames, embed_videos

SCORING = ("calibration", "modulation_scope", "modulation_temperature", "modulation_top_k")  # of the model's config


class VideoScorer:
    """A batch of videos in, the same rows out with their embeddings and scores.

    It is small to send to another process, and loads the model there at its first call, once per process. Videos are
    read by processes of its own, beside the model: a file that kills its reader is a row with an error. (It is read
    twice before that is believed, since a process may be killed from outside too.)

    Args:
        model: Folder or Hub id of a MoTE.
        labels: Candidate labels, as the pipeline takes them; without any, there are embeddings and no scores.
        window: Seconds of a window; by default a video, or a part of one, is seen as a whole.
        stride: Seconds from a window's start to the next one's.
        prompts: A prompt set's name, or templates, for the labels.
        batch_size: Videos or windows in one forward.
        num_workers: Processes that read; with 0, this one does, and dies of a file that kills it.
        device: See `load_model`.
        merge_tokens: Pairs of tokens that each layer of the image tower merges, see `load_pipeline`.
        **reading: `READING_OPTIONS` (`num_frames`, `num_clips`, …) that are not the checkpoint's own.

    Raises:
        ValueError: For options that make no sense.
    """

    def __init__(
        self,
        model: str,
        labels: Any = None,
        *,
        window: float | None = None,
        stride: float = 1.0,
        prompts: str | Sequence[str] = "mote_28",
        batch_size: int = 8,
        num_workers: int = 1,
        device: str | None = None,
        merge_tokens: int = 0,
        **reading: Any,
    ) -> None:
        known = READING_OPTIONS if window is None else WINDOW_OPTIONS
        if unknown := sorted(reading.keys() - set(known)):
            raise ValueError(f"unknown argument {unknown[0]!r} of VideoScorer: it reads by {', '.join(known)}")
        check_window(1.0 if window is None else window, stride, batch_size)
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
            raise ValueError(f"num_workers is {num_workers!r}: pass a whole number from 0 on")
        # A folder is the same one for a process that works elsewhere.
        self.model = os.path.abspath(model) if os.path.isdir(model) else model
        self.candidates = None if labels is None else parse_candidates(labels)
        self.window, self.stride = window, stride
        self.prompts = get_prompt_set(prompts)
        self.batch_size, self.num_workers, self.device = batch_size, num_workers, device
        self.merge_tokens = merge_tokens
        self.reading = {name: value for name, value in sorted(reading.items()) if value is not None}
        self._ready: _Ready | None = None

    @property
    def labels(self) -> list[str] | None:
        """What the numbers in `scores` belong to, in their order."""
        return None if self.candidates is None else list(self.candidates)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": None}

    def __call__(self, batch: Any) -> Any:
        """Score a batch.

        Args:
            batch: Columns: a dict of lists or arrays (as Ray, `datasets` and PyTorch give), a `pyarrow.Table`, or a
                pandas `DataFrame`. `path` (paths and URLs), `bytes` (of files) or `video` (either of these, or
                {"path", "bytes"}, as `datasets` has them undecoded); and, if parts of videos are meant, `start` and
                `end` in seconds.

        Returns:
            The same kind of batch with `embedding` (float32 [d]), `scores` (float32 [c], in the order of `labels`),
            `error` and `warning`. With an error, embedding and scores are None. A batch keeps its rows, but with
            `window`: each becomes one row per window, with `start` and `end`.

        Raises:
            ValueError: If there is no column to read from, and for bad labels and options.
            CheckpointError: If the model can't be used (a ValueError too).
        """
        if isinstance(batch, pa.Table):
            return pa.concat_tables([self._attach(batch.slice(0, 0), []), *self.tables(batch)])
        columns = columns_of(batch)
        results = [result for _, result in self.score(parts_of(columns, self.window is not None))]
        rows, scored = rows_of(results, self.window is not None)
        if hasattr(batch, "iloc"):
            return batch.iloc[rows].reset_index(drop=True).assign(**scored)
        return {name: [values[row] for row in rows] for name, values in columns.items()} | scored

    def tables(self, table: pa.Table) -> Iterator[pa.Table]:
        """Score an Arrow table of any length, see `__call__`: some of its rows at a time, in order.

        Args:
            table: The columns of a batch.

        Yields:
            Its next rows with the columns of results; a video's windows are in one table.

        Raises:
            ValueError: See `__call__`.
        """
        parts = parts_of(table.to_pydict(), self.window is not None)
        given, results = 0, []
        for index, result in self.score(parts):
            results.append(result)
            if len(results) == self.batch_size or index == len(parts) - 1:
                yield self._attach(table.slice(given, len(results)), results)
                given, results = index + 1, []

    def _attach(self, table: pa.Table, results: Sequence[Scored]) -> pa.Table:
        rows, scored = rows_of(results, self.window is not None)
        return with_columns(table.take(pa.array(rows, pa.int64())), scored, self.ready.dim)

    @property
    def ready(self) -> "_Ready":
        """The model and the reading processes; made when they are first asked for."""
        if self._ready is None:
            if self.num_workers and multiprocessing.current_process().daemon:
                raise ValueError(
                    "A daemonic process, as those of multiprocessing.Pool are, can't start the processes that read: "
                    "use concurrent.futures.ProcessPoolExecutor, or num_workers=0."
                )
            self._ready = _Ready(self)
        return self._ready

    def record(self) -> dict[str, Any]:
        """What made the rows, for `shards.write_record`."""
        from . import __version__

        config = self.ready.model.config
        described = {name: texts for name, texts in (self.candidates or {}).items() if texts}
        return {
            "format": RECORD_FORMAT,
            "model": self.model,
            "key": self.ready.key,
            "dim": self.ready.dim,
            "labels": self.labels,
            "descriptions": {name: list(texts) for name, texts in described.items()},
            "prompts": None if self.candidates is None else list(self.prompts),
            "scoring": None if self.candidates is None else {name: getattr(config, name) for name in SCORING},
            "window": self.window,
            "stride": None if self.window is None else self.stride,
            "reading": self.reading,
            "merge_tokens": self.merge_tokens or None,
            "versions": {
                "modeling_mote": __version__,
                "torch": torch.__version__,
                "reading": reading_version(),
            },
        }

    def score(self, parts: Sequence[VideoPart]) -> Iterator[tuple[int, Scored]]:
        """Score videos one after another, while those that follow are read.

        Args:
            parts: The videos, or parts of them.

        Yields:
            Index of a part and what it gave, in order.

        Raises:
            ValueError: See `__call__`.
        """
        yield from self._score_whole(parts) if self.window is None else self._score_windows(parts)

    def _score_whole(self, parts: Sequence[VideoPart]) -> Iterator[tuple[int, Scored]]:
        batch: list[tuple[int, Reading]] = []
        for index, reading in self.ready.processes.read(parts):
            if isinstance(reading, ProcessDied):  # of the file, or killed by somebody: alone, it will show
                [(_, reading)] = read_in_processes(self.ready.reader, [parts[index]], 1)
            if isinstance(reading, ProcessDied):
                reading = Reading(error=describe_death(reading, parts[index].name))
            batch.append((index, reading))
            if len(batch) == self.batch_size:
                yield from self._score_batch(parts, batch)
                batch = []
        yield from self._score_batch(parts, batch)

    def _score_batch(
        self, parts: Sequence[VideoPart], batch: Sequence[tuple[int, Reading]]
    ) -> Iterator[tuple[int, Scored]]:
        ready = self.ready
        read = [torch.from_numpy(reading.pixels) for _, reading in batch if reading.pixels is not None]
        rows: Iterator[tuple[np.ndarray, np.ndarray | None]] = iter(())
        if read:
            rows = ready.rows(*embed_videos(ready.model, ready.video_processor, read, ready.class_embeds))
        for index, reading in batch:
            embeds, scores = (None, None) if reading.pixels is None else next(rows)
            span = parts[index].start, parts[index].end
            yield index, Scored([span], embeds, scores, reading.error, reading.warning)

    def _score_windows(self, parts: Sequence[VideoPart]) -> Iterator[tuple[int, Scored]]:
        for index, pieces in groupby(self.ready.processes.read(parts), key=itemgetter(0)):
            result = self._score_video(pieces)
            if isinstance(result, ProcessDied):  # as above
                result = self._score_video(read_in_processes(self.ready.reader, [parts[index]], 1))
            if isinstance(result, ProcessDied):
                result = Scored([(None, None)], error=describe_death(result, parts[index].name))
            yield index, result

    def _score_video(self, pieces: Iterator[tuple[int, Any]]) -> Scored | ProcessDied:
        """All the windows of one video, which come in pieces; with an error, none of them."""
        ready = self.ready
        encoder = WindowEncoder(ready.model, ready.video_processor, ready.num_frames)
        spans: list[tuple[float | None, float | None]] = []
        rows: list[tuple[np.ndarray, np.ndarray | None]] = []
        for _, piece in pieces:
            if isinstance(piece, ProcessDied):
                return piece
            if isinstance(piece, Reading):  # the last
                if piece.error is not None:
                    return Scored([(None, None)], error=piece.error)
                scores = [each for _, each in rows if each is not None]
                embeds = np.concatenate([each for each, _ in rows])
                return Scored(spans, embeds, np.concatenate(scores) if scores else None, warning=piece.warning)
            spans += piece.spans
            rows += ready.rows(*embed_frames(ready.model, encoder(piece), ready.class_embeds))
        raise AssertionError("the last piece of a video is a Reading")


class _Ready:
    """What a scorer works with in one process: the model, what its labels became, and the processes that read."""

    def __init__(self, scorer: VideoScorer) -> None:
        self.classify, self.key = _load(scorer.model, scorer.device, scorer.merge_tokens)
        self.model, self.video_processor = self.classify.model, self.classify.processor.video_processor
        self.dim = self.model.config.projection_dim
        self.class_embeds = (
            None if scorer.candidates is None else self.classify.class_features(scorer.candidates, scorer.prompts)
        )
        own_frames = self.video_processor.frames_per_clip(self.model.config)
        self.num_frames = scorer.reading.get("num_frames", own_frames or self.model.config.num_frames)
        self.video_processor.reading_options(**scorer.reading)  # a bad one is no fault of the files
        self.reader: PixelReader | _WindowsOfFile = PixelReader(self.video_processor, own_frames, scorer.reading)
        if scorer.window is not None:
            settings = (scorer.window, scorer.stride, scorer.batch_size, scorer.reading)
            self.reader = _WindowsOfFile(WindowReader(self.video_processor, self.num_frames, *settings))
        self.processes = ReadingProcesses(self.reader, scorer.num_workers)

    def rows(
        self, embeds: torch.Tensor, logits: torch.Tensor | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Embedding [1, d] of each of b videos or windows, and its scores [1, c] if there are labels."""
        if logits is None:
            yield from ((embed[None], None) for embed in embeds.numpy())
            return
        scale, calibration = self.classify.logit_scale, self.classify.calibration
        scores, _ = score_labels(logits / scale, scale, calibration, AnswerOptions())
        yield from zip(embeds.numpy()[:, None], scores.float().numpy()[:, None], strict=True)


@dataclass
class _WindowsOfFile:
    """A video → its `Windows`, some at a time, and at the end a `Reading` with the error or the warning."""

    reader: WindowReader

    def __call__(self, part: VideoPart) -> Iterator[Windows | Reading]:
        with recorded_warnings() as warned:
            try:
                yield from self.reader.read(self.reader.open(part.video, part.name))
            except Exception as error:  # whatever escapes a decoder is this file's
                yield Reading(error=describe_error(error, part.name))
                return
        yield Reading(warning=warned())


@cache
def _load(model: str, device: str | None, merge_tokens: int) -> tuple[ZeroShotVideoClassificationPipeline, str]:
    """The pipeline of a checkpoint, once per process, and the key of the features that it gives."""
    classify = load_pipeline(model, device, merge=False, merge_tokens=merge_tokens)
    key = video_features_key(classify.model, classify.processor.video_processor)
    fold_experts(classify.model)
    return classify, key


__all__ = ["VideoScorer"]
