"""Search videos by text: index them once, then ask.

    mote search index my_videos --model mote-vitb16 --index my_videos.safetensors
    mote search query "flipping a pancake" --index my_videos.safetensors --top_k 5
    mote search recall --index my_videos.safetensors --captions captions.csv

`index` reads every video and writes its feature; run again, it reads what is new or changed and what could not be
read, drops what is gone, and goes on after an interruption. `query` prints the best videos with their cosines and
reads no video; without a text, it answers one per line of standard input. `recall` prints recall at 1, 5 and 10 and
the median rank for a CSV of `path,caption`: a path as `query` prints it or relative to the folder that was indexed.

Modulation is off: a feature in an index has to be the same whatever is asked.

Exit code: 0; 1 if a file could not be read (it is named, and the index made of the others) or something went wrong,
said in one sentence; 2 if the command line makes no sense; 130 after Ctrl-C, with what was read kept.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..processing.sources import Videos, find_videos
from .command_line import add_device, add_flag, add_model, add_reading, add_videos, check_model, number, run_command


def add_options(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", required=True, metavar="index | query | recall")
    for name, text in (
        ("index", "read videos and write their features"),
        ("query", "print the best videos for a text"),
        ("recall", "print recall and median rank over captions"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if name == "index":
            add_videos(command)
            add_model(command)
            add_reading(command)
            command.add_argument("--save_every", type=number(0, kind=float), default=60.0, help="seconds per saving")
        else:
            add_model(command, "where the model of the index is now, if it was moved", default=None)
            default = "mote_28" if name == "query" else "plain"
            command.add_argument("--prompts", nargs="+", default=[default], help="prompt set, or templates with {}")
            add_flag(command, "json", "print JSON")
        if name == "query":
            command.add_argument("text", nargs="*", help="what to look for; by default, a text per line of the input")
            command.add_argument("--top_k", type=number(1), default=10, help="videos printed")
        if name == "recall":
            command.add_argument("--captions", required=True, help="CSV file of path,caption")
        command.add_argument("--index", required=True, help="the index, a safetensors file")
        add_device(command)


def check(options: argparse.Namespace) -> None:
    if options.model is not None:
        check_model(options.model)
    index = Path(options.index)
    if options.command == "index":
        options.found = find_videos(options.videos)
        if not index.absolute().parent.is_dir():
            raise FileNotFoundError(f"--index {index}: its folder does not exist; make it first.")
    elif not index.exists():
        raise FileNotFoundError(f"--index {index} does not exist: make it with `mote search index`.")
    if index.is_dir():
        raise ValueError(f"--index {index} is a folder: name a file.")
    if options.command == "recall" and not Path(options.captions).is_file():
        raise FileNotFoundError(f"--captions {options.captions} does not exist.")


def run(options: argparse.Namespace) -> int:
    if options.command == "index":
        names = ("batch_size", "num_workers", "save_every", "device")
        root = options.videos[0] if len(options.videos) == 1 and Path(options.videos[0]).is_dir() else ""
        reading = {name: getattr(options, name) for name in names}
        return make(options.index, options.found, options.model, root=root, **reading)
    from ..processing.prompts import get_prompt_set
    from ..video_index import open_index, read_captions

    prompts = options.prompts[0] if len(options.prompts) == 1 else options.prompts
    get_prompt_set(prompts)
    index = open_index(options.index, options.model, options.device)
    if options.command == "recall":
        result = index.recall(read_captions(options.captions, index.index), prompts) | {"prompts": prompts}
        print(json.dumps(result) if options.json else recall_table(result))
        return 0
    for text in options.text or filter(str.strip, sys.stdin):
        found = index.search(text.strip(), options.top_k, prompts)
        if options.json:
            videos = [{"path": each.file, "cosine": each.cosine} for each in found]
            print(json.dumps({"text": text.strip(), "videos": videos}), flush=True)
        else:
            print(text.strip(), *(f"  {each.cosine:.4f}  {each.file}" for each in found), sep="\n", flush=True)
    return 0


def make(index: str, videos: Videos, model: str, **options: Any) -> int:
    """Make or update an index and say what was done; returns the exit code."""
    from ..video_index import update_index

    done = update_index(index, videos, model, show_progress=True, **options)
    if done.gone:
        more = ", …" if len(done.gone) > 10 else ""
        print(f"no longer there, dropped: {', '.join(done.gone[:10])}{more}", file=sys.stderr)
    for why in done.index.errors.values():
        print(f"not read: {why}", file=sys.stderr)
    if videos.note:
        print(videos.note, file=sys.stderr)
    print(
        f"{index}: {len(done.index.features)} of {len(videos.files)} videos; {len(done.new)} new or changed, "
        f"{len(done.gone)} dropped, {len(done.index.errors)} not read"
    )
    return 1 if done.index.errors else 0


def recall_table(result: dict[str, Any]) -> str:
    """Recall and ranks as a table in Markdown."""
    lines = [
        f"{result['num_texts']} texts, {result['num_videos']} videos, {result['num_videos_described']} with a text "
        f"and {result['num_videos_unread']} could not be read; prompts {result['prompts']}",
        "| | R@1 % | R@5 % | R@10 % | median rank |",
        "|---|---|---|---|---|",
    ]
    for name in ("text_to_video", "video_to_text"):
        shares = " | ".join(f"{100 * result[f'{name}_r{k}']:.1f}" for k in (1, 5, 10))
        lines.append(f"| {name.replace('_', ' ')} | {shares} | {result[f'{name}_median_rank']:g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command("search"))
