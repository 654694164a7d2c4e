"""Many videos read by several processes: one that dies, or takes too long, costs its own video and no other."""

import gc
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


class ProcessDied(NamedTuple):
    """What stands for the result of an item whose process died."""

    reason: str


def read_in_processes(
    function: Callable[[Item], Any], items: Sequence[Item], num_workers: int = 0
) -> Iterator[tuple[int, Any]]:
    """Call a function on items in processes, and give the results in the order of the items.

    Unlike those of a `DataLoader` or an executor, a process that dies (a crash of a decoder, out of memory) ends
    nothing: its item's result is a `ProcessDied`, another process takes its place, and the others go on.

    Args:
        function: Function of one item, that can be sent to another process, as its results can.
        items: What to call it on.
        num_workers: Processes; with 0, this one does all, and dies of what it dies of.

    Yields:
        Index of an item, and what the function gave for it, or a `ProcessDied`.

    Raises:
        Exception: What the function raises.
    """
    num_workers = min(num_workers, len(items))
    if not num_workers:
        yield from ((index, function(item)) for index, item in enumerate(items))
        return
    gc.collect()  # a fork that collects an open container of PyAV waits for its threads for ever
    workers = [_Worker(function) for _ in range(num_workers)]
    done: dict[int, Any] = {}
    sent = given = 0
    try:
        while given < len(items):
            for worker in workers:
                # Not too far ahead of a slow item: results are held until those before them are there.
                if worker.index is None and sent < min(len(items), given + 4 * num_workers):
                    worker.send(sent, items[sent])
                    sent += 1
            waiting: list[Any] = [each for worker in workers if worker.index is not None for each in worker.signs]
            ready = set(wait(waiting))
            for number, worker in enumerate(workers):
                if worker.index is None or not ready.intersection(worker.signs):
                    continue
                index, worker.index = worker.index, None
                done[index] = worker.receive()
                if isinstance(done[index], ProcessDied):
                    worker.stop()
                    workers[number] = _Worker(function)
            while given in done:
                result = done.pop(given)
                if isinstance(result, Exception):
                    raise result
                yield given, result
                given += 1
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that calls the function on one item after another."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.index: int | None = None  # of the item that it has
        self.connection, other = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_work, args=(function, other, self.connection), daemon=True)
        self.process.start()
        other.close()

    @property
    def signs(self) -> tuple[Connection, int]:
        """What is ready when there is a result, and when the process has died."""
        return self.connection, self.process.sentinel

    def send(self, index: int, item: Any) -> None:
        self.index = index
        with suppress(OSError):  # it died while it waited: `receive` will say so
            self.connection.send(item)

    def receive(self) -> Any:
        """The result of its item, the error that the function raised, or how the process died."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            if code is not None and code < 0:
                return ProcessDied(f"signal {signal.Signals(-code).name}")
            return ProcessDied(f"exit code {code}")

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _work(function: Callable[[Any], Any], connection: Connection, others_end: Connection) -> None:
    others_end.close()  # else this process would keep its own pipe open, and never see the end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle, which stops this one
    torch.set_num_threads(1)  # a fork has lost the other threads of the parent's pool
    parent: Any = multiprocessing.parent_process()
    with suppress(EOFError, OSError):  # the parent wants no more
        while parent.sentinel not in wait([connection, parent.sentinel]):
            item = connection.recv()
            try:
                answer = function(item)
            except Exception as error:
                answer = error
            connection.send(answer)


class Reading(NamedTuple):
    """What a file gave.

    Attributes:
        pixels: uint8 [t, 3, h, w] or, for several views, [v, t, 3, h, w]; None if it could not be read.
        num_frames: Frames that were read, t, of all views together.
        seconds: Length of the video, if it is known.
        error: Why it could not be read.
        warning: What was wrong with it, such as that it breaks off.
    """

    pixels: np.ndarray | None = None
    num_frames: int = 0
    seconds: float | None = None
    error: str | None = None
    warning: str | None = None


@dataclass
class PixelReader:
    """A file → the pixels of the frames that the model sees, not yet normalised; its errors are results.

    Attributes:
        video_processor: Decodes, samples, resizes and crops, by its own options.
        num_frames: Frames per clip, t.
    """

    video_processor: Any
    num_frames: int

    def __call__(self, file: str) -> Reading:
        """Read one file, whatever it holds."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            try:
                options = self.video_processor.reading_options(num_frames=self.num_frames)
                views, metadata = self.video_processor.read(file, file, options=options)
            except Exception as error:  # whatever escapes a decoder is this file's
                return Reading(error=describe_error(error, file))
        return Reading(
            pixels=(views[0] if len(views) == 1 else views).numpy(),  # tensors travel by handles, which run out
            num_frames=len(metadata.frames_indices or ()),
            seconds=metadata.duration,
            warning="; ".join(" ".join(str(warning.message).split()) for warning in caught) or None,
        )


def describe_error(error: BaseException, file: str) -> str:
    """An error as one line that names the file."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if os.path.basename(file) in message else f"{file} can't be read: {message}"


def describe_death(died: ProcessDied, file: str) -> str:
    """The error of a file whose process died."""
    return f"{file} can't be read: reading it kills the process ({died.reason}), of a crash or for want of memory"


__all__ = ["PixelReader", "ProcessDied", "Reading", "describe_death", "describe_error", "read_in_processes"]
