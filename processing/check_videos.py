"""Read every video of a data set once, and list what cannot be read, is missing, broken off or too short.

    python -m modeling_mote.processing.check_videos my_clips.csv --output report.csv
    python -m modeling_mote.processing.check_videos my_clips/                                  # a folder a class
    python -m modeling_mote.processing.check_videos ucf101 --data-dir /data/ucf101 --name split1 --num-frames 16

The report is CSV: path, split, label, problem (missing, unreadable, broken off, too short), num_frames, detail. It is
written whole when all is checked, or not at all; without --output it is printed. The exit code is 0 if nothing is
wrong with any video, 1 otherwise. Training and scoring repeat frames of a video that is too short only where the
processor says `short_video="loop"`.
"""

import argparse
import csv
import io
import os
import sys
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from tqdm.auto import tqdm

from .builders import ClipListConfig, video_builder
from .video_decoding import VideoDecodeError, VideoNotFoundError, decode_video

COLUMNS = ("path", "split", "label", "problem", "num_frames", "detail")

Item = TypeVar("Item")


class Problem(NamedTuple):
    """What is wrong with a video, in two words and in a sentence, and its decodable frames where they are known."""

    problem: str
    detail: str
    num_frames: int | None = None


class Check(NamedTuple):
    """A video to check: the file, frames wanted, and start and end in seconds of the part that counts."""

    file: str
    num_frames: int
    start: float | None = None
    end: float | None = None


def check_video(check: Check) -> Problem | None:
    """Decode one video from beginning to end.

    Returns:
        What is wrong with it, or None.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, metadata = decode_video(check.file, [0], start=check.start, end=check.end)
    except VideoNotFoundError as error:
        return Problem("missing", str(error))
    except (VideoDecodeError, OSError) as error:
        return Problem("unreadable", str(error))
    num_frames = metadata.total_num_frames
    if caught:
        return Problem("broken off", str(caught[0].message), num_frames)
    if num_frames < check.num_frames:
        return Problem("too short", f"{check.file} has {num_frames} frames, {check.num_frames} are asked.", num_frames)
    return None


def check_all(
    items: Sequence[Item], check: Callable[[Item], Problem | None], num_workers: int
) -> Iterator[tuple[int, Problem | None]]:
    """Check items in processes; one that kills its process is found out and reported, and the others go on.

    Args:
        items: What to check.
        check: Function of one item, importable in another process.
        num_workers: Processes.

    Yields:
        Index of an item and what is wrong with it, in the order in which they are done.
    """
    waiting = deque(range(len(items)))
    while waiting:
        running: dict[Future, int] = {}
        with ProcessPoolExecutor(num_workers) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * num_workers:
                        running[pool.submit(check, items[waiting[0]])] = waiting[0]
                        waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield running.pop(future), result
            except BrokenProcessPool:
                pass
        for index in running.values():  # one of these killed its process: each in a process of its own
            with ProcessPoolExecutor(1) as alone:
                try:
                    yield index, alone.submit(check, items[index]).result()
                except BrokenProcessPool:
                    yield index, Problem("unreadable", "Reading it kills the process (a crash, or out of memory).")


def write_report(rows: Iterable[Sequence[object]], output: Path | None) -> None:
    """Write the report to a file, whole or not at all, or print it.

    Args:
        rows: Values of `COLUMNS`.
        output: The file, replaced if there is one; None for standard output.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    if output is None:
        print(text.getvalue(), end="")
        return
    handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
        os.replace(temporary, output)
    except BaseException:
        os.unlink(temporary)
        raise


def run(args: argparse.Namespace) -> int:
    """Check the data set of the command line and report; returns the exit code."""
    output = Path(args.output).expanduser() if args.output else None
    if output is not None and not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output: the folder {output.absolute().parent} does not exist; make it first.")
    if args.num_frames < 1 or args.num_workers < 1:
        raise ValueError("--num-frames and --num-workers must be at least 1.")
    options = {"data_dir": args.data_dir, "list_dir": args.list_dir, "label_file": args.label_file}
    options = {option: value for option, value in options.items() if value is not None}
    if args.split is not None:
        options["splits"] = (args.split,)
    if args.source == "moving_shapes":
        raise ValueError("moving_shapes draws its videos itself; there are no files to check.")
    # Whether every class has a clip is no question of reading videos.
    config = cast(ClipListConfig, video_builder(args.source, args.name, allow_empty_classes=True, **options).config)

    clips = [(split, clip) for split, listed in config.clips.items() for clip in listed]
    checks = [Check(str(config.root / clip.path), args.num_frames, clip.start, clip.end) for _, clip in clips]
    problems: dict[int, Problem] = {}
    results = check_all(checks, check_video, args.num_workers)
    for index, problem in tqdm(results, total=len(checks), unit="video", desc="check"):
        if problem is not None:
            problems[index] = problem
    rows = []
    for index, problem in sorted(problems.items()):
        split, clip = clips[index]
        name = config.label_set.classes[clip.label]
        rows.append((clip.path, split, name, problem.problem, problem.num_frames, problem.detail))
    write_report(rows, output)
    counts = Counter(problem.problem for problem in problems.values())
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing wrong"
    print(f"{len(checks)} videos checked: {summary}.", file=sys.stderr)
    return 1 if problems else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m modeling_mote.processing.check_videos",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="kinetics, ucf101 or hmdb51 with --data-dir; a CSV list; or a folder of videos")
    parser.add_argument("--name", help="configuration of a benchmark, for example split1 or kinetics600_split2")
    parser.add_argument("--data-dir", help="folder of the videos; of a CSV list, what its paths are relative to")
    parser.add_argument("--list-dir", help="folder of a benchmark's official lists, if not below --data-dir")
    parser.add_argument("--label-file", help="class names of a CSV list or a folder")
    parser.add_argument("--split", help="check this split only")
    parser.add_argument("--num-frames", type=int, default=8, help="fewer decodable frames are too short (default 8)")
    parser.add_argument("--output", help="CSV file for the report; printed by default")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
