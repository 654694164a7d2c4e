"""Score videos against labels of your choice; a long video window by window.

    mote classify clip.mp4 --labels "archery, yoga" --model mote-vitb16
    mote classify my_videos --labels_file labels.txt --model mote-vitb16 --output scores.csv
    mote classify my_videos --examples few_clips --model mote-vitb16  # a folder of a few videos per label
    mote classify match.mp4 --labels "serving, resting" --model mote-vitb16 \\
        --window 4 --stride 1 --output match.json --timeline match.png

Prints a table of the best labels of each video or, with --window, of the segments of each video that share a best
label. Without labels, they are those of --examples, else the classes that the model was trained on. Scores over the
labels sum to 1, so one label alone always has 1. A checkpoint with a calibration (`mote train` and `mote calibrate`
fit one) can say "none of these" (--unknown), score each label by itself (--multi_label), or give the smallest set of
labels that holds the true one with a probability (--coverage 0.9). Examples are a few videos of each label, in a
folder per label: they correct what the label's text says, without training.

On a CPU, --fast runs the image tower by the engine that is fastest on the machine (PyTorch, ONNX Runtime, OpenVINO; as
far as they are installed), and --engine by one that you name; docs/speed.md has what they pay and cost.

CSV (--output x.csv) has the columns video, start, end, label, score, similarity, error, warning: one row for each of
the best labels of a video, best first, or for each segment, with its start and end in seconds; the similarity is the
cosine between the video and the label. JSON has the same and, with --window, the scores of every window. A file that
cannot be read is a row with an error; one that breaks off is scored as far as it goes, with a warning; a video of
which --threshold or --coverage leave no label is a row without one. Beside the output, x.csv.progress keeps what is
done: the same command again goes on from there, after Ctrl-C or with more videos. Remove it to score everything anew.

A live stream is answered window by window, as JSON lines on the standard output, until it ends or Ctrl-C:

    mote classify rtsp://camera.local/1 --labels "falling, walking" --model mote-vitb16 --window 4 --stride 1
    mote classify http://camera.local/video --live --labels "falling, walking" --model mote-vitb16
    mote classify /dev/video0 --labels "waving, clapping" --model mote-vitb16
    ffmpeg -i SOMETHING -c copy -f mpegts - | mote classify - --labels "falling, walking" --model mote-vitb16

rtsp://, rtsps://, /dev/video0 (Linux) and - (the standard input) are live by nature; an http address is that of a file
unless --live is given. Windows have 4 s unless --window is given. A line has time (when the window was complete, by
this machine's clock), start and end (seconds since the first frame), segment, frames, scores, delay (seconds from time
to the answer), dropped_frames and skipped_windows (left out since the line before, because they came too late). What
happens to the stream, such as a stall or a new segment, is a line with time, event and message, and is said on the
standard error too.

Exit code: 0; 1 if a file could not be read or something went wrong, said in one sentence; 2 if the command line makes
no sense; 130 after Ctrl-C, with what was scored kept.
"""

import argparse
import json
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..processing.class_names import describe_renamed, parse_labels
from ..processing.sources import find_videos, is_live, some_of
from .command_line import (
    add_device,
    add_engine,
    add_flag,
    add_labels,
    add_merge_tokens,
    add_model,
    add_reading,
    add_videos,
    check_model,
    check_output,
    engine_of,
    number,
    run_command,
)

SHOWN_LABELS = 5
ANSWER_FLAGS = ("function_to_apply", "unknown", "multi_label", "threshold", "coverage")


def add_options(parser: argparse.ArgumentParser) -> None:
    seconds = number(0.001, kind=float)
    add_videos(parser)
    add_model(parser)
    add_labels(parser)
    parser.add_argument("--examples", help="folder with a folder of videos per label, or a saved set of examples")
    parser.add_argument("--output", help="file to write, .csv or .json")
    parser.add_argument(
        "--top_k",
        type=number(1),
        help="best labels given per video or window: 5 by default, with --coverage the whole set",
    )
    parser.add_argument("--function_to_apply", choices=("softmax", "sigmoid", "none"), help="how scores are made")
    add_flag(parser, "unknown", 'add a row "none of these"; needs a calibration')
    add_flag(parser, "multi_label", "score each label by itself; needs a calibration")
    parser.add_argument("--threshold", type=float, help="leave out labels with a score below")
    parser.add_argument(
        "--coverage",
        type=float,
        help="smallest set of labels that holds the true one so often, such as 0.9, on classes like the calibration's",
    )
    parser.add_argument("--window", type=seconds, help="score sliding windows of so many seconds")
    parser.add_argument("--stride", type=seconds, help="seconds from a window's start to the next one's: 1 by default")
    parser.add_argument("--smooth", type=number(0, kind=float), help="average scores over so many seconds")
    parser.add_argument("--timeline", help="PNG file of the scores over time, for one video")
    add_flag(parser, "live", "the source is a live stream, also if it is an http address or a named pipe")
    parser.add_argument(
        "--timeout",
        type=number(0, kind=float, above=True),
        help="live: seconds without a frame after which it has stalled, and is connected to again: 10 by default",
    )
    parser.add_argument(
        "--retries", type=number(0), help="live: attempts in a row to connect again; any number by default"
    )
    add_reading(parser, what="videos or windows")
    add_merge_tokens(parser)
    add_device(parser)
    add_engine(parser)


def check(options: argparse.Namespace) -> None:
    options.live = options.live or any(map(is_live, options.videos))
    if options.live:
        check_live(options)
    else:
        options.found = find_videos(options.videos)
        for name in ("timeout", "retries"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} is for a live stream: if this is one, add --live.")
    check_model(options.model)
    options.names, options.renamed = read_labels(options.labels, options.labels_file)
    if options.examples is not None and not Path(options.examples).exists():
        raise FileNotFoundError(f"--examples {options.examples}: there is no such folder or file.")
    check_output("output", options.output, (".csv", ".json"))
    check_output("timeline", options.timeline, (".png",))
    for name in ("stride", "smooth", "timeline"):
        if options.window is None and not options.live and getattr(options, name) is not None:
            raise ValueError(f"--{name} needs --window, the length of the windows in seconds.")
    for name in ("threshold", "coverage"):
        if options.window is not None and not options.live and getattr(options, name) is not None:
            raise ValueError(f"--{name} is for whole videos: leave it or --window out.")
    # A set that is cut short no longer holds the true label as surely as it says.
    if options.top_k is None and options.coverage is None:
        options.top_k = SHOWN_LABELS
    given = {name: getattr(options, name) for name in ANSWER_FLAGS}
    options.engine = engine_of(options)
    options.answering = {name: value for name, value in given.items() if value not in (None, False)}
    if options.timeline is not None and len(options.found.files) > 1:
        raise ValueError(f"--timeline draws one video, and {len(options.found.files)} are named: name one file.")


def check_live(options: argparse.Namespace) -> None:
    """Refuse what does not go with a live stream.

    Raises:
        ValueError, FileNotFoundError: naming the option or the source.
    """
    from ..processing.live_source import LiveSource

    if len(options.videos) > 1:
        raise ValueError(f"{len(options.videos)} sources are named, one of them live: a live stream is read alone.")
    LiveSource(options.videos[0])
    for name in ("output", "timeline", "smooth"):
        if getattr(options, name) is not None:
            hint = ": write the standard output to a file, mote classify … > answers.jsonl" if name == "output" else ""
            raise ValueError(f"--{name} is for files, not for a live stream{hint}.")


def read_labels(labels: str | None, file: str | None) -> tuple[Any, Mapping[str, str]]:
    """The labels, None for the training classes; and {name in the file: label} of the names that became words.

    They are names, or, if the file describes any, {name: the texts that describe it}.
    """
    from ..processing.label_sets import read_label_file

    if labels is not None and file is not None:
        raise ValueError("--labels and --labels_file exclude each other: pass one of them.")
    if file is not None:
        label_set = read_label_file(file)
        return label_set.candidates if label_set.descriptions else list(label_set.classes), label_set.renamed
    return (None if labels is None else parse_labels(labels)), {}


def run(options: argparse.Namespace) -> int:
    from ..loading import load_pipeline
    from ..video_scores import load_examples, over_training_classes

    labels, examples = options.names, None
    classify = load_pipeline(
        options.model, options.device, merge_tokens=options.merge_tokens, engine=options.engine, say=say
    )
    if options.examples is not None:
        examples, notes = load_examples(classify, options.examples, options.num_workers)
        labels = list(examples.labels) if labels is None else labels
        for note in notes:
            say(note)
        say(f"{len(examples)} example videos of {len(examples.labels)} of the {len(labels)} labels.")
    if labels is None:
        classify, labels = over_training_classes(classify)
        say(f"No labels given: scoring the {len(labels)} classes that the model was trained on.")
    say(describe_renamed(options.renamed) if options.renamed else "")
    alone = len(labels) == 1 and not options.answering
    say("One label alone always has the score 1: name others to choose from, or ask with --unknown." if alone else "")
    return (run_live if options.live else run_files)(options, classify, labels, examples)


def run_files(options: argparse.Namespace, classify: Any, labels: Any, examples: Any) -> int:
    """Score files, and print and keep what they score."""
    from ..video_scores import SavedScores, score_all, settings_of

    videos = options.found
    scoring: dict[str, Any] = {"top_k": options.top_k, "answering": options.answering}
    if examples is not None:
        scoring["examples"] = examples
        own = {os.path.abspath(name) for name in examples.names}.intersection(map(os.path.abspath, videos.files))
        say(f"{some_of(sorted(own), 'video')} to score among the examples: their scores flatter." if own else "")
    say(videos.note)
    if options.window is not None:
        scoring |= {"window": options.window, "stride": options.stride or 1.0, "smooth": options.smooth or 0.0}
    facts = {
        name: getattr(options, name) for name in ("model", "examples", "window", "stride", "smooth", "merge_tokens")
    } | options.answering
    facts |= {"labels": labels, "renamed": options.renamed}
    if options.timeline is not None:
        scoring["timeline"] = options.timeline
    with SavedScores(options.output, settings_of(classify, labels, **scoring), facts, videos.names) as saved:
        before = sum(saved.find(file) is not None for file in videos.files)
        say(f"{before} of {len(videos.files)} videos were scored before: {saved.progress} has them." if before else "")
        reading = {"batch_size": options.batch_size, "num_workers": options.num_workers, "show_progress": True}
        score_all(classify, labels, videos, saved, **scoring, **reading)
    return report(saved.ordered())


def run_live(options: argparse.Namespace, classify: Any, labels: Any, examples: Any) -> int:
    """Print the answers of a live stream, and what happens to it, as JSON lines."""
    from ..processing import classify_stream

    def tell(event: Any) -> None:
        say(event.message)
        print_line(time=isoformat(event.time), event=event.kind, message=event.message)

    given = {"window": options.window, "stride": options.stride, "timeout": options.timeout, "examples": examples}
    given = {name: value for name, value in given.items() if value is not None} | options.answering
    source = options.videos[0]
    with classify_stream(
        classify, source, labels, top_k=options.top_k, retries=options.retries, on_event=tell, **given
    ) as answers:
        for answer in answers:
            print_line(**answer | {"time": isoformat(answer["time"].timestamp())})
        counts = answers.counts
    say(f"{counts.frames} frames, {counts.dropped_frames} dropped; {counts.skipped_windows} windows skipped.")
    return 0


def print_line(**values: Any) -> None:
    print(json.dumps(values, ensure_ascii=False), flush=True)


def isoformat(seconds: float) -> str:
    """A time in seconds since 1970 as `2026-11-28T13:25:11.123+01:00`."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")


def say(text: str) -> None:
    """Something that is worth a line of its own, if there is something."""
    if text:
        print(text, file=sys.stderr)


# ------------------------------------------------------------------------------------------------------------ results


def report(results: Sequence[Mapping[str, Any]]) -> int:
    """Print the table, and below it what there is to say about the files; returns the exit code."""
    from ..video_scores import LONG_SECONDS

    print_table(results)
    for result in results:
        say(f"warning: {result['warning']}" if result["warning"] else "")
    if long := [each for each in results if "scores" in each and (each["seconds"] or 0) > LONG_SECONDS]:
        first = long[0]
        say(
            f"{some_of([each['video'] for each in long], 'video')} scored whole: {first['frames']} frames spread over "
            f"{first['seconds']:.0f} s make the score of {first['video']}; --window scores it piece by piece."
        )
    unread = sum(result["error"] is not None for result in results)
    say(f"error: {unread} of {len(results)} files could not be read." if unread else "")
    return 1 if unread else 0


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """The results in columns, a video's name at its first row."""
    from ..video_scores import rows_of

    table = [["video", "start", "end", "score", "label"]]
    for result in results:
        for position, row in enumerate(rows_of(result)):
            times = [f"{row[name]:.2f}" if name in row else "" for name in ("start", "end")]
            score = f"{row['score']:.3f}" if "score" in row else "-"
            label = row.get("label") or (f"error: {row['error']}" if row["error"] else "no label is left")
            table.append(["" if position else row["video"], *times, score, label])
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]  # no times without --window
    widths = [max(map(width, column)) for column in columns]
    for name, *numbers, label in zip(*columns, strict=True):
        padded = [text.rjust(space) for text, space in zip(numbers, widths[1:-1], strict=True)]
        print("  ".join([name + " " * (widths[0] - width(name)), *padded, label]))


def width(text: str) -> int:
    """Columns that a terminal needs for a text; two for a Chinese character."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


if __name__ == "__main__":
    sys.exit(run_command("classify"))
