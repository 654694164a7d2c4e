"""Reading by several processes: in order, whatever dies; and the pixels that a reader gives."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from modeling_mote.processing.reading import (
    PixelReader,
    ProcessDied,
    ReadingProcesses,
    describe_death,
    describe_error,
    read_in_processes,
)


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def die_on_some(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number in (9, 10):
        os._exit(3)
    return square(number)


def fail_on_five(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return square(number)


@pytest.mark.parametrize("num_workers", [0, 1, 3, 100])
def test_results_come_in_order(num_workers):
    assert list(read_in_processes(square, range(30), num_workers)) == [(n, n * n) for n in range(30)]
    assert list(read_in_processes(square, [], num_workers)) == []


def test_a_process_that_dies_costs_its_own_item():
    results = dict(read_in_processes(die_on_some, range(40), 3))
    died = {7: ProcessDied("signal SIGKILL"), 9: ProcessDied("exit code 3"), 10: ProcessDied("exit code 3")}
    assert results == {n: died.get(n, n * n) for n in range(40)}
    assert list(results) == list(range(40))
    assert "a.mp4 can't be read: reading it kills the process (signal SIGKILL)" in describe_death(results[7], "a.mp4")


def test_an_error_comes_after_the_results_before_it():
    given = []
    with pytest.raises(ValueError, match="five"):
        given.extend(result for _, result in read_in_processes(fail_on_five, range(40), 3))
    assert not multiprocessing.active_children()


def test_no_process_is_left_when_the_reader_is_dropped():
    readings = read_in_processes(square, range(1000), 2)
    assert next(readings) == (0, 0) and len(multiprocessing.active_children()) == 2
    readings.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "run.py").write_text(
        "import multiprocessing, os, time\n"
        "from modeling_mote.processing.reading import read_in_processes\n"
        "def wait(n): return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    readings = read_in_processes(wait, range(100), 2)\n"
        "    print(*{pid for _, (_, pid) in zip(range(20), readings)}, flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children and not any(is_running(pid) for pid in children)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # ended, and nobody has asked
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
def test_proc_is_what_is_running_reads():
    assert is_running(os.getpid()) and not is_running(2**22 + 1)


def test_pixels_are_the_processors(processor, tmp_path, write_video):
    file = str(write_video(tmp_path / "a.mp4", num_frames=20))
    reading = PixelReader(processor.video_processor, 4)(file)
    expected = processor.video_processor(file, num_frames=4, do_rescale=False, do_normalize=False, return_tensors="pt")
    assert reading.pixels.dtype == np.uint8 and reading.error is None and reading.warning is None
    assert torch.equal(torch.from_numpy(reading.pixels), expected["pixel_values_videos"][0].byte())
    assert (reading.num_frames, reading.seconds) == (4, pytest.approx(2.5))


def test_what_cannot_be_read_is_a_result(processor, tmp_path, write_video):
    reader = PixelReader(processor.video_processor, 4)
    assert "gone.mp4 does not exist" in reader(str(tmp_path / "gone.mp4")).error
    whole = write_video(tmp_path / "cut.avi", num_frames=60, codec="mpeg4", gop=1)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    cut = reader(str(whole))
    assert cut.pixels is not None and "cut.avi breaks off after" in cut.warning and "\n" not in cut.warning


def test_an_error_of_a_decoder_names_the_file():
    assert describe_error(IndexError("tuple\nindex"), "/videos/a.mp4") == "/videos/a.mp4 can't be read: tuple index"
    assert describe_error(ValueError("a.mp4 is odd"), "/videos/a.mp4") == "a.mp4 is odd"
    assert describe_error(KeyError(), "a.mp4") == "a.mp4 can't be read: KeyError"


def count_to(number: int):
    for count in range(number):
        if (number, count) == (5, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        if (number, count) == (6, 2):
            raise ValueError("six")
        yield count


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_generator_gives_its_results_one_by_one_in_order(num_workers):
    numbers = [3, 0, 1, 4, 0, 2] * 3
    wanted = [(index, count) for index, number in enumerate(numbers) for count in range(number)]
    assert list(read_in_processes(count_to, numbers, num_workers)) == wanted


def test_a_generator_that_dies_keeps_what_it_gave():
    results = list(read_in_processes(count_to, [2, 5, 1], 2))
    assert results == [(0, 0), (0, 1), *((1, n) for n in range(3)), (1, ProcessDied("signal SIGKILL")), (2, 0)]
    with pytest.raises(ValueError, match="six"):
        list(read_in_processes(count_to, [2, 6, 1], 2))


def test_a_generator_that_is_not_due_waits(tmp_path):
    """Only one result of a later item is held; the others stay in its process until their turn."""

    def large(item: str):
        for count in range(5):
            (tmp_path / f"{item}{count}").touch()
            if item == "first" and count == 4:
                while not (tmp_path / "go").exists():
                    time.sleep(0.01)
            yield np.zeros(1 << 20, np.uint8)  # more than a pipe holds

    results = read_in_processes(large, ["first", "second"], 2)
    given = [index for index, _ in zip((next(results)[0] for _ in range(4)), range(4), strict=True)]
    time.sleep(0.3)
    assert given == [0] * 4
    assert not (tmp_path / "second2").exists()
    (tmp_path / "go").touch()
    assert [index for index, _ in results] == [0] + [1] * 5


def test_the_same_processes_read_several_lists():
    with ReadingProcesses(with_process, 2) as processes:
        first = {process for _, process in processes.read(range(8))}
        assert {process for _, process in processes.read(range(8))} <= first
        next(processes.read(range(8)))  # dropped on the way: what is still to come must not come later
        assert [index for index, _ in processes.read(range(8))] == list(range(8))
    assert not multiprocessing.active_children()


def with_process(_: int) -> int:
    time.sleep(0.02)
    return os.getpid()
