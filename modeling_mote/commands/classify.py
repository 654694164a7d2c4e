"""Scores one video, or every video of a folder, against labels of your choice; a long video window by window.

    python examples/classify.py clip.mp4 --labels "archery, yoga" --model mote-vitb16
    python examples/classify.py my_videos --labels_file labels.txt --model mote-vitb16 --output scores.csv
    python examples/classify.py match.mp4 --labels "serving, resting" --model mote-vitb16 \\
        --window 4 --stride 1 --output match.json --timeline match.png

Prints a table of the best labels of each video or, with --window, of the segments of each video that share a best
label. Without labels, the classes are those that the model was trained on. Scores over the labels sum to 1, so one
label alone always has 1.

CSV (--output x.csv) has the columns video, start, end, label, score, error, warning: a row for each of the best labels
of a video, best first, or for each segment, with its start and end in seconds. JSON has the same and, with --window,
the scores of every window. A file that cannot be read is a row with an error; one that breaks off is scored as far as
it goes, with a warning. Exit code: 0 if every file was read, 1 if some were not or an argument makes no sense, 2 if
the command line cannot be parsed.
"""

import argparse
import csv
import io
import json
import math
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import torch
import transformers
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import pipeline

import modeling_mote  # noqa: F401  (registers MoTE with transformers)
from modeling_mote.processing import (
    ZeroShotVideoClassificationPipeline,
    classify_windows,
    merge_windows,
    parse_labels,
    plot_timeline,
    smooth_windows,
)
from modeling_mote.processing.label_sets import read_label_file
from modeling_mote.processing.sources import VIDEO_SUFFIXES, walk

COLUMNS = ("video", "start", "end", "label", "score", "error", "warning")
LEAST = {"top_k": 1, "batch_size": 1, "num_workers": 0, "window": 0.001, "stride": 0.001, "smooth": 0}
KEPT_THUMBNAILS = 64  # of a video at least; a timeline shows a few


class TrainedClassesPipeline(ZeroShotVideoClassificationPipeline):
    """The pipeline over the classes that the model was trained on, by the features that it was trained with."""

    def class_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.model.seen_classes.weight


class VideoFiles(Dataset):
    """Files as the pipeline's inputs, read in DataLoader workers; what cannot be read is an item with its error."""

    def __init__(self, classify: ZeroShotVideoClassificationPipeline, files: Sequence[Path]) -> None:
        self.classify, self.files = classify, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with caught_warnings() as caught:
            try:
                item: dict[str, Any] = dict(self.classify.preprocess(str(self.files[index])))
            except (ValueError, OSError) as error:
                item = {"error": str(error)}
        return item | {"index": index, "warning": "; ".join(caught) or None}


@contextmanager
def caught_warnings() -> Iterator[list[str]]:
    """Texts of the warnings given within, such as that a file breaks off."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield texts
        texts += [" ".join(str(warning.message).split()) for warning in caught]


def parse_arguments() -> argparse.Namespace:
    description, _, epilog = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", help="video file, or folder, read with the folders in it")
    parser.add_argument("--model", required=True, help="MoTE checkpoint: folder or Hub id")
    parser.add_argument("--labels", help="names with commas between them")
    parser.add_argument("--labels_file", help="text file with a name a line, or CSV with a column `name`")
    parser.add_argument("--output", help="file to write, .csv or .json")
    parser.add_argument("--top_k", type=int, default=5, help="best labels given of a video or window (default 5)")
    parser.add_argument("--window", type=float, help="score sliding windows of so many seconds")
    parser.add_argument("--stride", type=float, help="seconds from a window's start to the next one's (default 1)")
    parser.add_argument("--smooth", type=float, help="average the scores of the windows within so many seconds")
    parser.add_argument("--timeline", help="PNG file of the scores over time, for one video")
    parser.add_argument("--batch_size", type=int, default=8, help="videos or windows a forward (default 8)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read a folder (default 2)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; an accelerator where there is one by default")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what would only fail after all the work."""
    if not Path(arguments.video).exists():
        raise FileNotFoundError(f"{arguments.video} does not exist.")
    model = arguments.model
    if not Path(model).is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise FileNotFoundError(f"--model {model}: there is no such folder.")
    if arguments.labels is not None and arguments.labels_file is not None:
        raise ValueError("--labels and --labels_file exclude each other: pass one of them.")
    for name, suffixes in (("output", (".csv", ".json")), ("timeline", (".png",))):
        path = getattr(arguments, name)
        if path is not None and Path(path).suffix.lower() not in suffixes:
            raise ValueError(f"--{name} {path} must end in {' or '.join(suffixes)}.")
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"--{name} {path}: its folder does not exist; make it first.")
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value < float("inf"):
            raise ValueError(f"--{name} is {value}: pass a number from {least} on.")
    if arguments.window is None:
        for name in ("stride", "smooth", "timeline"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} needs --window, the length of the windows in seconds.")
    elif arguments.stride is None:
        arguments.stride = 1.0
    if arguments.timeline is not None and Path(arguments.video).is_dir():
        raise ValueError(f"--timeline draws one video, and {arguments.video} is a folder: name a file in it.")
    if arguments.device is not None:
        try:
            torch.empty(0, device=arguments.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {arguments.device} does not work here: {error}") from error


def load(arguments: argparse.Namespace) -> tuple[ZeroShotVideoClassificationPipeline, tuple[str, ...]]:
    """The pipeline, and the labels that it scores."""
    labels = None
    if arguments.labels is not None:
        labels = tuple(parse_labels(arguments.labels))
    elif arguments.labels_file is not None:
        labels = read_label_file(arguments.labels_file).classes
    kind = TrainedClassesPipeline if labels is None else ZeroShotVideoClassificationPipeline
    try:
        classify: Any = pipeline(
            "zero-shot-video-classification",  # type: ignore[call-overload]
            model=arguments.model,
            pipeline_class=kind,
            device=arguments.device,
        )
    except RuntimeError as error:
        raise ValueError(f"--model {arguments.model}: its weights do not fit its config.json.") from error
    config = classify.model.config
    if labels is None:
        if not config.training_classes_set:
            raise ValueError(f"{arguments.model} has no training classes: name labels with --labels.")
        labels = tuple(config.id2label[index] for index in range(config.num_labels))
        print(f"No labels given: scoring the {len(labels)} classes that the model was trained on.", file=sys.stderr)
    return classify, labels


def list_files(video: Path) -> list[str]:
    """The videos of a folder, relative to it."""
    names = walk(video)
    files = [name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES]
    others = [name for name in names if name not in set(files)]
    if others:
        more = ", ..." if len(others) > 3 else ""
        print(f"{len(others)} files without a video's suffix left out: {', '.join(others[:3])}{more}", file=sys.stderr)
    if not files:
        raise FileNotFoundError(f"{video} holds no file with the suffix of a video ({' '.join(VIDEO_SUFFIXES)}).")
    return files


def score_videos(
    classify: Any, labels: tuple[str, ...], files: Sequence[Path], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The best labels of each file; workers read the next files while the model scores these."""
    results: list[dict[str, Any]] = [{} for _ in files]
    loader = DataLoader(
        VideoFiles(classify, files),
        batch_size=arguments.batch_size,
        num_workers=min(arguments.num_workers, len(files) - 1),  # none for a single file
        collate_fn=list,
    )
    with tqdm(total=len(files), unit="video") as bar:
        for items in loader:
            read = [item for item in items if "error" not in item]
            for item in items:
                results[item["index"]] = {"error": item.get("error"), "warning": item["warning"]}
            if read:
                pixels = torch.cat([item["pixel_values_videos"] for item in read])  # [b, (v), t, 3, h, w]
                logits = classify.forward({"pixel_values_videos": pixels}, candidate_labels=labels)["logits"]
                for item, row in zip(read, logits, strict=True):
                    scores = classify.postprocess({"logits": row[None]}, labels, arguments.top_k)
                    results[item["index"]]["scores"] = scores
            bar.update(len(items))
    return results


def score_windows(classify: Any, labels: tuple[str, ...], file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Segments and windows of one file, and its timeline where one is asked for."""
    options = {name: getattr(arguments, name) for name in ("window", "stride", "batch_size")}
    windows: list[dict[str, Any]] = []
    with caught_warnings() as caught, tqdm(total=seconds_of(file), unit="s", desc=file.name) as bar:
        try:
            for window in thin_thumbnails(classify_windows(classify, str(file), labels, **options)):
                windows.append(window)
                bar.n = round(window["end"], 1)
                bar.update(0)
        except (ValueError, OSError) as error:
            return {"error": str(error), "warning": None}
    windows = smooth_windows(windows, arguments.smooth or 0)
    if arguments.timeline is not None:
        picture = io.BytesIO()
        plot_timeline(windows, top_k=arguments.top_k).savefig(picture, format="png")
        write_whole(Path(arguments.timeline), picture.getvalue())
    best = [
        {"start": each["start"], "end": each["end"], "scores": dict(list(each["scores"].items())[: arguments.top_k])}
        for each in windows
    ]
    return {"segments": merge_windows(windows), "windows": best, "error": None, "warning": "; ".join(caught) or None}


def thin_thumbnails(windows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The windows as they come, with thumbnails left on a few only: those of an hour would fill the memory."""
    given: list[dict[str, Any]] = []
    every = 1
    for number, window in enumerate(windows):
        if number % every:
            window["thumbnail"] = None
        given.append(window)
        if number == KEPT_THUMBNAILS * every:
            every *= 2
            for index, earlier in enumerate(given):
                if index % every:
                    earlier["thumbnail"] = None
        yield window


def seconds_of(file: Path) -> float | None:
    """How long the header says that a video is, for the progress bar."""
    with suppress(Exception), av.open(f"file:{file}") as container:
        return round(container.duration / av.time_base, 1) if container.duration else None
    return None


# ------------------------------------------------------------------------------------------------------------- results


def rows_of(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A result as rows of the CSV."""
    common = {name: result[name] for name in ("video", "error", "warning")}
    for scored in result.get("segments") or result.get("scores") or [{}]:
        yield common | scored


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """The results in columns, a video's name at its first row."""
    table = [["video", "start", "end", "score", "label"]]
    for result in results:
        for number, row in enumerate(rows_of(result)):
            times = [f"{row[name]:.2f}" if name in row else "" for name in ("start", "end")]
            score = f"{row['score']:.3f}" if "score" in row else "-"
            table.append(["" if number else row["video"], *times, score, row.get("label") or f"error: {row['error']}"])
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]  # no times without --window
    widths = [max(map(width, column)) for column in columns]
    for name, *numbers, label in zip(*columns, strict=True):
        padded = [number.rjust(space) for number, space in zip(numbers, widths[1:-1], strict=True)]
        print("  ".join([name + " " * (widths[0] - width(name)), *padded, label]))


def width(text: str) -> int:
    """Columns that a terminal needs for a text; two for a Chinese character."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def write_results(
    path: Path, results: list[dict[str, Any]], labels: Sequence[str], arguments: argparse.Namespace
) -> None:
    if path.suffix.lower() == ".json":
        facts = {name: getattr(arguments, name) for name in ("model", "window", "stride", "smooth")}
        content = json.dumps(facts | {"labels": labels, "videos": results}, indent=2)
    else:
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for result in results for row in rows_of(result))
        content = table.getvalue()
    write_whole(path, content.encode("utf-8", "surrogateescape"))  # file names may be any bytes


def write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def run(arguments: argparse.Namespace) -> int:
    check_arguments(arguments)
    video = Path(arguments.video)
    names = list_files(video) if video.is_dir() else [str(video)]
    files = [video / name for name in names] if video.is_dir() else [video]
    classify, labels = load(arguments)
    if arguments.window is None:
        results = score_videos(classify, labels, files, arguments)
    else:
        results = [score_windows(classify, labels, file, arguments) for file in files]
    results = [{"video": name} | result for name, result in zip(names, results, strict=True)]
    if any(math.isnan(row.get("score", 0)) for result in results for row in rows_of(result)):
        raise ValueError(f"{arguments.model} gives scores that are no numbers: its weights are damaged.")
    if arguments.output is not None:
        write_results(Path(arguments.output), results, labels, arguments)
    print_table(results)
    for result in results:
        if result["warning"]:
            print(f"warning: {result['warning']}", file=sys.stderr)
    unread = sum(result["error"] is not None for result in results)
    if unread:
        print(f"error: {unread} of {len(results)} files could not be read.", file=sys.stderr)
    return 1 if unread else 0


def main() -> None:
    transformers.logging.disable_progress_bar()
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a name's characters
    try:
        sys.exit(run(parse_arguments()))
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
