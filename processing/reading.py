"""Many videos read by several processes: one that dies, or takes too long, costs its own video and no other."""

import gc
import multiprocessing
import os
import signal
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing.connection import Connection, wait
from types import GeneratorType
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
        function: Function of one item, that can be sent to another process, as its results can. A generator function
            gives several results per item, each as soon as it is there; it waits while those before it are not taken.
        items: What to call it on.
        num_workers: Processes; with 0, this one does all, and dies of what it dies of.

    Yields:
        Index of an item, and what the function gave for it, or a `ProcessDied`.

    Raises:
        Exception: What the function raises.
    """
    with ReadingProcesses(function, min(num_workers, len(items))) as processes:
        yield from processes.read(items)


class ReadingProcesses:
    """The processes of `read_in_processes`, for several lists of items one after another.

    Use it as a context, or `close` it; the processes start at the first list.

    Args:
        function: See `read_in_processes`.
        num_workers: See there.
        context: How processes start, of `multiprocessing.get_context`; the machine's own way by default.
    """

    def __init__(self, function: Callable[[Any], Any], num_workers: int, context: Any = multiprocessing) -> None:
        self.function, self.num_workers, self.context = function, num_workers, context
        self.workers: list[_Worker] = []

    def __enter__(self) -> "ReadingProcesses":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.stop()
        self.workers = []

    def kill(self) -> None:
        """End the items at hand, from another thread: what stands for their results is a `ProcessDied`."""
        for worker in self.workers:
            worker.process.kill()

    def read(self, items: Sequence[Any]) -> Generator[tuple[int, Any], None, None]:
        """See `read_in_processes`. One list at a time; if it is not read to its end, the processes end.

        Raises:
            Exception: What the function raises.
        """
        if not self.num_workers:
            for index, item in enumerate(items):
                yield from ((index, result) for result in _results(self.function(item)))
            return
        if not self.workers:
            gc.collect()  # a fork that collects an open container of PyAV waits for its threads for ever
            self.workers = [_Worker(self.function, self.context) for _ in range(self.num_workers)]
        for number, worker in enumerate(self.workers):
            if not worker.process.is_alive():  # it died while it waited, which is no item's fault
                worker.stop()
                self.workers[number] = _Worker(self.function, self.context)
        finished = False
        try:
            yield from self._read(items)
            finished = True
        finally:
            if not finished:
                self.close()

    def _read(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        held: defaultdict[int, deque[Any]] = defaultdict(deque)  # results of items before whose turn it is
        complete: set[int] = set()
        sent = given = 0
        while given < len(items):
            for worker in self.workers:
                # Not too far ahead of a slow item: results are held until those before them are there.
                if worker.index is None and sent < min(len(items), given + 4 * self.num_workers):
                    worker.send(sent, items[sent])
                    sent += 1
            # An item that is not due has one result here at most; the next ones wait in its process.
            due = [
                each
                for each in self.workers
                if each.index is not None and (each.index == given or not held[each.index])
            ]
            signs: list[Any] = [sign for worker in due for sign in worker.signs]
            ready = set(wait(signs))
            for number, worker in enumerate(self.workers):
                if worker not in due or not ready.intersection(worker.signs):
                    continue
                assert worker.index is not None
                index, (result, is_last) = worker.index, worker.receive()
                held[index].append(result)
                if is_last:
                    complete.add(index)
                    worker.index = None
                if isinstance(result, ProcessDied):
                    worker.stop()
                    self.workers[number] = _Worker(self.function, self.context)
            while held[given] or given in complete:
                while held[given]:
                    result = held[given].popleft()
                    if isinstance(result, Exception):
                        raise result
                    if result is not _NOTHING:
                        yield given, result
                if given not in complete:
                    break
                del held[given]
                complete.remove(given)
                given += 1


class _Nothing(Enum):
    """What ends the results of a generator; an enumeration's member is itself in every process."""

    NOTHING = 0


_NOTHING = _Nothing.NOTHING


def _results(answer: Any) -> Iterator[Any]:
    """The results of one call: its answer, or those that it generates."""
    if isinstance(answer, GeneratorType):
        yield from answer
    else:
        yield answer


class _Worker:
    """A process that calls the function on one item after another."""

    def __init__(self, function: Callable[[Any], Any], context: Any) -> None:
        self.index: int | None = None  # of the item that it has
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(function, other, self.connection), daemon=True)
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

    def receive(self) -> tuple[Any, bool]:
        """A result of its item, the error that the function raised, or how the process died; and if it is the last."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            if code is not None and code < 0:
                return ProcessDied(f"signal {signal.Signals(-code).name}"), True
            return ProcessDied(f"exit code {code}"), True

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
            for message in _messages(function, item):
                connection.send(message)


def _messages(function: Callable[[Any], Any], item: Any) -> Iterator[tuple[Any, bool]]:
    """(result, whether it is the last) of one call; an error is a result, and the last."""
    try:
        answer = function(item)
        if isinstance(answer, GeneratorType):
            yield from ((result, False) for result in answer)
            answer = _NOTHING
    except Exception as error:
        answer = error
    yield answer, True


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


class VideoPart(NamedTuple):
    """A video to read, or a part of it.

    Attributes:
        video: A path, a URL, bytes or a {"path", "bytes"} dict.
        name: What messages call it.
        start: Where the part starts, in seconds; at the video's beginning if None.
        end: Where it ends, in seconds; at the video's end if None.
    """

    video: Any
    name: str
    start: float | None = None
    end: float | None = None


@dataclass
class PixelReader:
    """A video → the pixels of the frames that the model sees, not yet normalised; its errors are results.

    Attributes:
        video_processor: Decodes, samples, resizes and crops, by its own options.
        num_frames: Frames per clip, t.
        options: Reading options that are not the processor's own, see `READING_OPTIONS`.
    """

    video_processor: Any
    num_frames: int | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, video: str | VideoPart) -> Reading:
        """Read one video, whatever it holds."""
        part = VideoPart(video, video) if isinstance(video, str) else video
        with recorded_warnings() as warned:
            try:
                options = self.video_processor.reading_options(**{"num_frames": self.num_frames, **self.options})
                views, metadata = self.video_processor.read(
                    part.video, part.name, options=options, start=part.start, end=part.end
                )
            except Exception as error:  # whatever escapes a decoder is this file's
                return Reading(error=describe_error(error, part.name))
        return Reading(
            pixels=(views[0] if len(views) == 1 else views).numpy(),  # tensors travel by handles, which run out
            num_frames=len(metadata.frames_indices or ()),
            seconds=metadata.duration,
            warning=warned(),
        )


@contextmanager
def recorded_warnings() -> Iterator[Callable[[], str | None]]:
    """Keep the warnings of a block from the screen; what is given tells them, on one line, or None."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield lambda: "; ".join(" ".join(str(warning.message).split()) for warning in caught) or None


def describe_error(error: BaseException, file: str) -> str:
    """An error as one line that names the file."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if os.path.basename(file) in message else f"{file} can't be read: {message}"


def describe_death(died: ProcessDied, file: str) -> str:
    """The error of a file whose process died."""
    return f"{file} can't be read: reading it kills the process ({died.reason}), of a crash or for want of memory"


__all__ = [
    "PixelReader",
    "ProcessDied",
    "Reading",
    "ReadingProcesses",
    "VideoPart",
    "describe_death",
    "describe_error",
    "read_in_processes",
    "recorded_warnings",
]
