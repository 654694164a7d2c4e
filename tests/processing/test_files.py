"""Files and folders that are there whole or not at all, with faults injected and real processes killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modeling_mote.processing import files
from modeling_mote.processing.files import (
    only_run,
    only_writer,
    restore_folder,
    whole_file,
    whole_folder,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """A process of its own, whose code has `kill()` and the functions under test."""
    head = (
        "import os, signal, sys\n"
        "sys.argv[0] = 'mote'\n"  # a command imports no PyTorch before its work
        "from pathlib import Path\n"
        "from modeling_mote.processing import files\n"
        "from modeling_mote.processing.files import *\n"
        "def kill(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})


def fill(folder: Path, content: str) -> None:
    with whole_folder(folder) as partial:
        (partial / "below").mkdir()
        (partial / "below" / "a.txt").write_text(content)
        (partial / "b.txt").write_text(content)


def read(folder: Path) -> set[str]:
    return {(folder / "below" / "a.txt").read_text(), (folder / "b.txt").read_text()}


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("content", "expected"), [("é\n", "é\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_a_file_is_written_whole(tmp_path, content, expected):
    path = tmp_path / "new" / "x.txt"
    write_whole(path, content)
    write_whole(path, content)
    assert path.read_bytes() == expected and names(path.parent) == ["x.txt"]


def test_names_of_any_bytes_stay_what_they_are(tmp_path):
    write_whole(tmp_path / "x.txt", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "x.txt").read_bytes() == b"caf\xe9"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, error):
    write_whole(tmp_path / "x.txt", "old")
    with pytest.raises(error), whole_file(tmp_path / "x.txt") as partial:
        partial.write_text("half")
        raise error
    assert (tmp_path / "x.txt").read_text() == "old" and names(tmp_path) == ["x.txt"]


def test_a_rename_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "x.txt", "old")

    def fail(*_):
        raise OSError("no rename today")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no rename today"):
        write_whole(tmp_path / "x.txt", "new")
    assert (tmp_path / "x.txt").read_text() == "old" and names(tmp_path) == ["x.txt"]


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("flush"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    write_whole(tmp_path / "x.txt", "new")
    assert order == ["flush", "rename", "flush"]  # the file, and then the folder that has its name
    order.clear()
    fill(tmp_path / "folder", "new")
    assert order == ["flush"] * 4 + ["rename", "flush"]


def test_a_process_that_is_killed_leaves_the_old_file_and_its_litter_goes(tmp_path):
    write_whole(tmp_path / "x.txt", "old")
    killed = run(
        "with whole_file(sys.argv[1]) as partial:\n    partial.write_text('half')\n    kill()\n", tmp_path / "x.txt"
    )
    assert killed.returncode == -signal.SIGKILL and len(names(tmp_path)) == 2
    assert (tmp_path / "x.txt").read_text() == "old"
    write_whole(tmp_path / "x.txt", "new")
    assert names(tmp_path) == ["x.txt"] and (tmp_path / "x.txt").read_text() == "new"


def test_what_others_write_is_not_litter(tmp_path):
    ours = tmp_path / ".x.txt.partial"  # a name that a person may give
    theirs = tmp_path / f".x.txt.another-machine.{os.getpid()}-0.partial"
    living = tmp_path / f".x.txt.{os.uname().nodename}.{os.getppid()}-0.partial"
    for path in (ours, theirs, living):
        path.write_text("keep")
    write_whole(tmp_path / "x.txt", "new")
    assert all(path.exists() for path in (ours, theirs, living))


def test_threads_and_processes_may_write_one_file(tmp_path):
    path = tmp_path / "x.txt"
    contents = [str(number) * 100_000 for number in range(8)]
    threads = [
        threading.Thread(target=lambda text=text: [write_whole(path, text) for _ in range(20)]) for text in contents
    ]
    for thread in threads:
        thread.start()
    other = run("for _ in range(20): write_whole(sys.argv[1], 'x' * 100_000)", path)
    for thread in threads:
        thread.join()
    assert other.returncode == 0, other.stderr
    assert path.read_text() in [*contents, "x" * 100_000] and names(tmp_path) == ["x.txt"]


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_written_whole_and_replaced(tmp_path):
    fill(tmp_path / "new" / "model", "one")
    (tmp_path / "new" / "model" / "more.txt").touch()
    fill(tmp_path / "new" / "model", "two")
    assert read(tmp_path / "new" / "model") == {"two"} and names(tmp_path / "new") == ["model"]
    assert names(tmp_path / "new" / "model") == ["b.txt", "below"]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch, failing, error):
    """The first of the two renames moves the old folder aside, the second puts the new one in its place."""
    fill(tmp_path / "model", "old")
    calls, replace = [], os.replace

    def fail_once(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise error("no rename today")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_once)
        with pytest.raises(error):
            fill(tmp_path / "model", "new")
    assert read(tmp_path / "model") == {"old"} and names(tmp_path) == ["model"]
    fill(tmp_path / "model", "new")
    assert read(tmp_path / "model") == {"new"} and names(tmp_path) == ["model"]


def test_an_interruption_just_after_the_old_folder_was_moved_aside(tmp_path, monkeypatch):
    fill(tmp_path / "model", "old")
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        if str(target).endswith(".old"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "model", "new")
    assert read(tmp_path / "model") == {"old"} and names(tmp_path) == ["model"]


KILLED_AT_RENAME = (
    "replace, calls = os.replace, []\n"
    "def replace_or_die(*paths):\n"
    "    calls.append(paths)\n"
    "    if len(calls) == int(sys.argv[2]): kill()\n"
    "    replace(*paths)\n"
    "os.replace = replace_or_die\n"
    "with whole_folder(sys.argv[1]) as partial:\n"
    "    (partial / 'below').mkdir()\n"
    "    (partial / 'below' / 'a.txt').write_text('new')\n"
    "    (partial / 'b.txt').write_text('new')\n"
)


@pytest.mark.parametrize("rename", [1, 2])
def test_a_process_that_is_killed_between_the_renames_loses_nothing(tmp_path, rename):
    fill(tmp_path / "model", "old")
    killed = run(KILLED_AT_RENAME, tmp_path / "model", rename)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "model").exists() == (rename == 1)
    restore_folder(tmp_path / "model")
    assert read(tmp_path / "model") == {"old"}
    fill(tmp_path / "model", "newer")
    assert read(tmp_path / "model") == {"newer"} and names(tmp_path) == ["model"]


def test_the_next_writer_restores_before_it_writes(tmp_path):
    fill(tmp_path / "model", "old")
    run(KILLED_AT_RENAME, tmp_path / "model", 2)
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model"):
        raise RuntimeError
    assert read(tmp_path / "model") == {"old"} and names(tmp_path) == ["model"]


def test_an_older_processes_name_is_not_taken(tmp_path, monkeypatch):
    """In a container, where processes have the same numbers again."""
    monkeypatch.setattr(files, "_writes", iter(range(100)))
    for number in range(2):
        (tmp_path / f".model.{os.uname().nodename}.{os.getpid()}-{number}.partial").mkdir()
    fill(tmp_path / "model", "new")
    assert read(tmp_path / "model") == {"new"}


# --------------------------------------------------------------------------------------------------------------- locks


def test_a_second_run_on_a_folder_is_refused(tmp_path):
    code = "try:\n    with only_run(sys.argv[1]): print('in')\nexcept ValueError as error: print(error)"
    with only_run(tmp_path / "runs"):
        assert run(code, tmp_path / "runs").stdout.startswith(f"Another run is writing to {tmp_path / 'runs'}: wait")
        assert run(code, tmp_path / "others").stdout == "in\n"
    assert run(code, tmp_path / "runs").stdout == "in\n"


def test_a_place_that_cannot_be_written_to_is_not_called_another_run_s(tmp_path):
    for place in ("nowhere/x.csv", "/proc/x.csv") if sys.platform == "linux" else ("nowhere/x.csv",):
        with pytest.raises(OSError) as raised, only_writer(tmp_path / place):
            pass
        assert raised.value.filename == str(tmp_path / place)  # not that of the lock


def test_a_lock_goes_with_a_process_that_is_killed(tmp_path):
    for lock in ("only_run", "only_writer"):
        assert run(f"with {lock}(sys.argv[1]): kill()", tmp_path / lock).returncode == -signal.SIGKILL
    with only_run(tmp_path / "only_run"), only_writer(tmp_path / "only_writer"):
        pass


def test_a_second_writer_of_a_file_is_refused_and_nothing_is_left(tmp_path):
    code = "try:\n    with only_writer(sys.argv[1]): print('in')\nexcept ValueError as error: print(error)"
    with only_writer(tmp_path / "x.csv"):
        assert run(code, tmp_path / "x.csv").stdout.startswith(f"Another run is writing to {tmp_path / 'x.csv'}: wait")
        assert run(code, tmp_path / "y.csv").stdout == "in\n"
    assert run(code, tmp_path / "x.csv").stdout == "in\n"
    assert names(tmp_path) == []
