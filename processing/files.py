"""Files and folders that are there whole or not at all, and an output that belongs to one run at a time.

Everything the package writes for a user goes through here: it is written under another name beside its place, flushed
to the disk, and then renamed. A process that is killed on the way leaves what was there before.
"""

import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"  # in an output folder, while a run writes to it and after

_writes = itertools.count()  # tells the threads of a process apart


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends without an error.

    Several processes may write the same file at once: the last one to end wins, and every reader finds a whole file.

    Args:
        path: The file to make or replace; its folder is made if there is none.

    Yields:
        A path in the same folder that does not exist yet.

    Raises:
        OSError: If it can't be written; what was at `path` is still there then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a text (as UTF-8) or bytes as a file that is there whole or not at all.

    Args:
        path: The file to make or replace; its folder is made if there is none.
        content: Text or bytes. File names that are not UTF-8 keep their bytes.

    Raises:
        OSError: If it can't be written; what was at `path` is still there then.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    with whole_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty folder to fill, which becomes `path` when the block ends without an error.

    A folder that was at `path` is moved aside first and deleted last. If the second of the two renames fails, it is
    moved back; if the process is killed between them, the next `whole_folder` of this path moves it back.

    Args:
        path: The folder to make or replace; the folder it lies in is made if there is none.

    Yields:
        A folder beside it.

    Raises:
        OSError: If it can't be written; what was at `path` is still there then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old")
    restore_folder(path)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if not file.is_symlink():
                _flush(file)
        _flush(partial)
        shutil.rmtree(old, ignore_errors=True)
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(partial, path)
        except BaseException:
            restore_folder(path)
            raise
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def restore_folder(path: str | os.PathLike[str]) -> None:
    """Put back the folder that a process killed within `whole_folder` had moved aside, if there is one.

    Args:
        path: The folder that `whole_folder` was to replace.
    """
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    if old.is_dir() and not path.exists():
        os.replace(old, path)


@contextmanager
def only_run(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a folder for this run: a second run on it is refused while this one goes on.

    Args:
        folder: The output folder of a run; made if there is none. It keeps an empty file `.lock`.

    Raises:
        ValueError: If another run writes to it now.
        OSError: If it can't be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(
        folder, folder / LOCK_NAME, f"Another run is writing to {folder}: wait for it, or choose another folder."
    ):
        yield


@contextmanager
def only_writer(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a file that is written again and again for this run: a second run on it is refused while this one goes on.

    Args:
        path: The file, there or not; a hidden file lies beside it meanwhile.

    Raises:
        ValueError: If another run writes to it now.
        OSError: If nothing can be written beside it.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}{LOCK_NAME}")
    with _locked(path, lock, f"Another run is writing to {path}: wait for it, or choose another file."):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, file: Path, message: str) -> Iterator[None]:
    try:
        open(file, "ab").close()  # FileLock takes some places that can't be written to for another run's
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(message) from None
    try:
        yield
    finally:
        lock.release()


def _partial(path: Path) -> Path:
    """The name to write under, after deleting what processes of this machine left there when they were killed."""
    host = socket.gethostname()
    for left in path.parent.glob(f".{_escaped(path.name)}.{_escaped(host)}.*.partial"):
        process = left.name.removesuffix(".partial").rpartition(".")[2].partition("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    while True:  # in a container, an earlier process may have had the same number
        partial = path.with_name(f".{path.name}.{host}.{os.getpid()}-{next(_writes)}.partial")
        if not os.path.lexists(partial):
            return partial


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is no question but Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _flush(path: Path) -> None:
    """Make sure that a file's content, or a folder's list of names, is on the disk before a rename promises it."""
    if os.name == "nt" and path.is_dir():  # which Windows can't open
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        # Some file systems of networks flush no folders.
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
