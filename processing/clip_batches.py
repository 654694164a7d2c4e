"""Batches of clips that other processes read; one that dies is an error that names the clip."""

import gc
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from .clips import collate_clips

Key = int | tuple[int, int]  # index, or (epoch, index)
# What PyTorch's errors begin with, wherever the main process is at that moment: they come by a signal.
DEATH = "DataLoader worker"


class ClipBatches:
    """The batches of a data set of clips, one after another, read ahead by processes.

    Use it as a context, so that the death of a reading process, which PyTorch reports in the middle of whatever goes
    on, becomes an error that names the clip:

        with ClipBatches(clips, batches, num_workers=2) as read:
            for batch in read:
                ...

    Args:
        clips: data set of clips with `name(index)` and `input_name`, such as
            [`VideoClips`][modeling_mote.processing.clips.VideoClips].
        batches: lists of indices, or of (epoch, index).
        num_workers: processes that read; 0 for this one.
    """

    def __init__(self, clips: Any, batches: Iterable[Sequence[Key]], num_workers: int = 0):
        self.clips = clips
        self.reading = torch.full((max(num_workers, 1), 2), -1).share_memory_()  # [workers, (process, index)]
        self.loader: DataLoader = DataLoader(
            _Watched(clips, self.reading),
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=partial(collate_clips, input_name=clips.input_name),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.loader.num_workers:
            gc.collect()  # a fork that collects an open container of PyAV waits for its threads for ever
        return iter(self.loader)

    def __enter__(self) -> "ClipBatches":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # A process that dies while it is spoken to shows as a broken connection first.
        if is_worker_death(error) or (isinstance(error, (ConnectionError, EOFError)) and self._dead()):
            raise ChildProcessError(self._describe(str(error))) from error

    def _dead(self) -> list[int]:
        """Indices of the clips that processes read which are no longer there."""
        return [index for process, index in self.reading.tolist() if process != -1 and not _is_alive(process)]

    def _describe(self, message: str) -> str:
        found = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", message)
        died = found[1].split(", ") if found else []
        indices = [index for process, index in self.reading.tolist() if str(process) in died] or self._dead()
        what = f"while it read {self.clips.name(indices[0])}" if indices else "while it read videos"
        said = (message.strip() or "its connection broke").rstrip(".").splitlines()[0]
        return (
            f"A reading process died {what} ({said}): the machine may be out of memory, or the file "
            "breaks the decoder. Read with fewer processes (num_workers), or take the file out."
        )


def is_worker_death(error: BaseException | None) -> bool:
    """Whether an error is PyTorch's report of a reading process that died."""
    return isinstance(error, RuntimeError) and str(error).startswith(DEATH)


def _is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class _Watched(Dataset):
    """Notes which process reads which clip, where the main process sees it."""

    def __init__(self, clips: Any, reading: torch.Tensor):
        self.clips, self.reading = clips, reading

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        worker = get_worker_info()
        if worker is not None:
            index = key[1] if isinstance(key, tuple) else key
            self.reading[worker.id] = torch.tensor([os.getpid(), index])
        return self.clips[key]


__all__ = ["ClipBatches", "is_worker_death"]
