"""Read every video of a data set once, as training will, and list what is wrong with it.

    mote check clip.mp4 'more/*.mp4'                             # videos: files, folders of videos, globs, URLs
    mote check my_clips/ --output report.csv                     # one folder per class
    mote check my_clips.csv                                      # a list with the columns path and label
    mote check ucf101 --data_dir /data/ucf101 --data_name split1 --num_frames 16

The report is CSV: path, split, label, problem, num_frames, detail. Problems are: missing, unreadable, broken off,
damaged, too short, mended (a clock that had to be), empty class; and, with nothing wrong, left out (a file without a
video's suffix, or beside the folders of classes) and empty folder (which makes no class). It is written whole when all
is checked; without --output it is printed. Training repeats frames of a video that is too short if the processor says
`short_video="loop"`, as it does unless told otherwise.

Exit code: 0 if nothing is wrong with any video or class; 1 if something is, or the data set can't be read; 2 if the
command line makes no sense; 130 after Ctrl-C.
"""

import argparse
import csv
import glob
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..processing.sources import find_videos
from .command_line import check_data, check_output, number, run_command


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        nargs="+",
        help="folder, CSV list, or kinetics, ucf101 or hmdb51 with --data_dir; or video files, globs and URLs",
    )
    parser.add_argument("--data_name", help="configuration of a benchmark, such as split1 or kinetics600_split2")
    parser.add_argument("--data_dir", help="folder of the videos; of a CSV list, what its paths are relative to")
    parser.add_argument("--list_dir", help="folder of a benchmark's official lists, if not below --data_dir")
    parser.add_argument("--labels_file", help="class names of a CSV list or a folder")
    parser.add_argument("--split", help="check this split only")
    parser.add_argument("--num_frames", type=number(1), default=8, help="fewer decodable frames are too short")
    parser.add_argument("--output", help="CSV file for the report; printed by default")
    cores = os.cpu_count() or 1
    parser.add_argument("--num_workers", type=number(0), default=cores, help="processes that read videos")


def check(options: argparse.Namespace) -> None:
    if "moving_shapes" in options.data:
        raise ValueError("moving_shapes draws its videos itself; there are no files to check.")
    if options.data_dir is not None and not Path(options.data_dir).expanduser().is_dir():
        raise FileNotFoundError(f"--data_dir {options.data_dir}: there is no such folder.")
    if is_data_set(options.data):
        check_data(options.data[0])
    else:
        find_videos(options.data)
    check_output("output", options.output, (".csv",))


def is_data_set(data: Sequence[str]) -> bool:
    """Whether one benchmark, list or folder of classes is named, rather than videos."""
    if len(data) > 1:
        return False
    path = Path(data[0]).expanduser()
    if path.is_dir():
        return any(each.is_dir() and not each.name.startswith(".") for each in path.iterdir())
    is_name = data[0] == path.name and not path.suffix and not path.exists() and not glob.has_magic(data[0])
    return path.suffix.lower() == ".csv" or is_name


def run(options: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from ..processing.check_videos import LEFT_OUT, Finding

    num_videos, results, classes_are_found = _findings(options)
    findings: list[Finding] = []
    with tqdm(total=num_videos, unit="video", desc="check") as bar:
        for finding in results:
            bar.update(finding is None or bool(finding.path and finding.problem not in LEFT_OUT))
            findings += [finding] if finding is not None else []
    findings.sort(key=lambda each: (each.problem in LEFT_OUT, each.path == ""))
    # A split may lack a class of the folders or lists that it comes from: training says so and goes on.
    wrong = [each for each in findings if each.problem not in LEFT_OUT]
    wrong = [each for each in wrong if each.problem != "empty class" or not classes_are_found]
    write_report(Finding._fields, findings, options.output)
    counts = Counter(each.problem for each in findings)
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing wrong"
    print(f"{num_videos} videos checked: {summary}.", file=sys.stderr)
    return 1 if wrong else 0


def _findings(options: argparse.Namespace) -> tuple[int, Any, bool]:
    """The number of videos, what is found out about them, and whether the classes are those that were found."""
    from ..processing import check_videos
    from ..processing.builders import video_builder

    if not is_data_set(options.data):
        videos = find_videos(options.data)
        return len(videos.files), check_videos.check_files(videos, options.num_frames, options.num_workers), True
    given = {"data_dir": options.data_dir, "list_dir": options.list_dir, "label_file": options.labels_file}
    given = {name: value for name, value in given.items() if value is not None}
    if options.split is not None:
        given["splits"] = (options.split,)
    config: Any = video_builder(options.data[0], options.data_name, allow_empty_classes=True, **given).config
    for note in config.notes:
        print(note, file=sys.stderr)
    found = check_videos.check_data(config, options.num_frames, options.num_workers)
    return sum(map(len, config.clips.values())), found, config.classes_are_found


def write_report(columns: Sequence[str], rows: Sequence[Sequence[object]], output: str | None) -> None:
    """Write the report to a file, or print it."""
    from ..processing.files import write_whole

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    if output is None:
        print(text.getvalue(), end="")
    else:
        write_whole(Path(output).expanduser(), text.getvalue())


if __name__ == "__main__":
    sys.exit(run_command("check"))
