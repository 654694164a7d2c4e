"""Search videos by text or by video, and find those that are there twice.

    mote search index my_videos --model mote-vitb16 --index my.index
    mote search query "flipping a pancake" --index my.index --top_k 5
    mote search query --video like_this.mp4 --index my.index
    mote search duplicates my.index --least 0.98

For very many videos, embed them first, on as many machines as you have, and build the index of that:

    mote embed my_videos --model mote-vitb16 --output features --window 4 --stride 1
    mote search build my.index --from features

`index` reads every video, keeps its embedding in my.index/features, and builds the index; run again, it reads what is
new or changed and what could not be read, drops what is gone, and goes on after an interruption. `build` does the same
for the folders of `mote embed`: run again (--from may be left out then), it puts in the files that are new, and takes
out those that are gone. From 100,000 rows on, an index needs faiss (pip install "mote-transformers[search]").

`query` prints the best videos, or windows, with their cosines and reads no other video; without a text, it answers one
per line of standard input. Windows of one video that touch and are about as near are one answer. `duplicates` prints
groups of videos whose cosine is at least --least. `recall` prints recall at 1, 5 and 10 and the median rank for a CSV
of `path,caption`: a path as `query` prints it, or its last parts.

Modulation is off: a feature in an index has to be the same whatever is asked.

Exit code: 0; 1 if a file could not be read (it is named, and the index made of the others) or something went wrong,
said in one sentence; 2 if the command line makes no sense; 130 after Ctrl-C, with what was read kept.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..processing.sources import find_videos
from .command_line import (
    add_device,
    add_flag,
    add_merge_tokens,
    add_model,
    add_reading,
    add_videos,
    check_model,
    number,
    run_command,
)

if TYPE_CHECKING:
    from ..video_index import Built, Hit

COMMANDS = {
    "index": "read videos and make an index of them",
    "build": "make an index of the folders of `mote embed`",
    "query": "print the best videos for a text or a video",
    "duplicates": "print groups of videos that look nearly the same",
    "recall": "print recall and median rank over captions",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    index, build, query, duplicates, recall = (
        commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()
    )
    add_videos(index)
    add_model(index)
    add_reading(index)
    add_merge_tokens(index)
    index.add_argument("--save_every", type=number(0, kind=float), default=60.0, help="seconds per saving")
    add_device(index)
    for command in (build, duplicates):
        command.add_argument("index", metavar="INDEX", help="the index, a folder")
    build.add_argument("--from", nargs="+", dest="sources", metavar="DIR", help="folders of `mote embed`")
    duplicates.add_argument(
        "--least", type=number(0, 1, kind=float, above=True), default=0.98, help="cosine from which on two are alike"
    )
    query.add_argument("text", nargs="*", help="what to look for; by default, a text per line of the input")
    query.add_argument("--video", nargs="+", metavar="FILE", help="look for videos like these, in place of a text")
    query.add_argument("--top_k", type=number(1), default=10, help="videos printed")
    recall.add_argument("--captions", required=True, help="CSV file of path,caption")
    for command in (query, recall):
        add_model(command, "where the model of the index is now, if it was moved", default=None)
        default = "mote_28" if command is query else "plain"
        command.add_argument("--prompts", nargs="+", default=[default], help="prompt set, or templates with {}")
        add_device(command)
    for command in (query, duplicates, recall):
        add_flag(command, "json", "print JSON")
    for command in (index, query, recall):
        command.add_argument("--index", required=True, help="the index, a folder")


def check(options: argparse.Namespace) -> None:
    if getattr(options, "model", None) is not None:
        check_model(options.model)
    index = Path(options.index)
    if index.is_file():
        raise ValueError(f"Index {index} is a file, as older releases made: remove it, and make the index again.")
    if options.command == "index":
        options.note = find_videos(options.videos).note
    if options.command in ("index", "build") and not index.absolute().parent.is_dir():
        raise FileNotFoundError(f"Index {index}: the folder it is to lie in does not exist; make it first.")
    if options.command == "build":
        for source in options.sources or ():
            if not Path(source).is_dir():
                raise FileNotFoundError(f"--from {source}: there is no such folder; make it with `mote embed`.")
    elif options.command != "index" and not index.exists():
        raise FileNotFoundError(f"Index {index} does not exist: make it with `mote search index`.")
    if options.command == "recall" and not Path(options.captions).is_file():
        raise FileNotFoundError(f"--captions {options.captions} does not exist.")
    if options.command == "query" and options.text and options.video:
        raise ValueError("Give a text or --video, not both.")


def run(options: argparse.Namespace) -> int:
    if options.command == "index":
        names = ("batch_size", "num_workers", "save_every", "device", "merge_tokens")
        reading = {name: getattr(options, name) for name in names}
        return make(options.index, options.videos, options.model, options.note, **reading)
    if options.command == "build":
        from ..video_index import build_index

        print(built_line(options.index, build_index(options.index, options.sources, show_progress=True)))
        return 0
    if options.command == "duplicates":
        from ..video_index import open_index

        print_groups(open_index(options.index).duplicates(options.least, show_progress=True), options.json)
        return 0
    from ..processing.prompts import get_prompt_set
    from ..video_search import VideoSearch, read_captions

    prompts = options.prompts[0] if len(options.prompts) == 1 else options.prompts
    get_prompt_set(prompts)
    search = VideoSearch(options.index, options.model, options.device)
    if options.command == "recall":
        result = search.recall(read_captions(options.captions, search.index), prompts) | {"prompts": prompts}
        print(json.dumps(result) if options.json else recall_table(result))
        return 0
    for video in options.video or ():
        print_hits("video", video, search.by_video(video, options.top_k), options.json)
    if not options.video:
        for text in options.text or filter(str.strip, sys.stdin):
            print_hits("text", text.strip(), search.by_text(text.strip(), options.top_k, prompts), options.json)
    return 0


def make(index: str, videos: Sequence[str], model: str, note: str, **options: Any) -> int:
    """Make or update an index and say what was done; returns the exit code."""
    from ..video_search import index_videos

    done = index_videos(index, videos, model, show_progress=True, **options)
    if done.gone:
        more = ", …" if len(done.gone) > 10 else ""
        print(f"no longer there, dropped: {', '.join(done.gone[:10])}{more}", file=sys.stderr)
    for why in done.unread.values():
        print(f"not read: {why}", file=sys.stderr)
    if note:
        print(note, file=sys.stderr)
    listed, new = done.embedded.listed, done.embedded.listed - done.embedded.before
    print(
        f"{index}: {listed - len(done.unread)} of {listed} videos; {new} new or changed, {len(done.gone)} dropped, "
        f"{len(done.unread)} not read"
    )
    if done.built.contents.lists:
        print(built_line(index, done.built))
    return 1 if done.unread else 0


def built_line(index: str, built: "Built") -> str:
    """What a build did, and how much its lists miss."""
    contents = built.contents
    said = f"{index}: {contents.num_alive:,} rows; {built.added:,} came, {built.removed:,} went"
    if contents.num_failed:
        said += f"; {contents.num_failed:,} files could not be read"
    if built.remade:
        said += f"\nmade anew: {built.remade}"
    if contents.lists is None:
        return f"{said}\nexact: every row is compared"
    lists = contents.lists
    rows, between = lists["recall"]
    return (
        f"{said}\n{lists['kind']}, {lists['probes']} lists looked at per query: recall@10 against exact search "
        f"{rows:.3f} for rows left out of their own answer, {between:.3f} midway between two rows"
        f"{'' if built.recall is not None else ' (when the lists were made)'}"
    )


def as_dict(hit: "Hit") -> dict[str, Any]:
    """A hit as JSON gives it."""
    return {"video": hit.path, "start": hit.start, "end": hit.end, "score": hit.score}


def as_line(hit: "Hit") -> str:
    """A hit as a line: its cosine, its path and, if it is a part, its seconds."""
    if hit.start is None and hit.end is None:
        return f"  {hit.score:.4f}  {hit.path}"
    end = "" if hit.end is None else f"{hit.end:g}"
    return f"  {hit.score:.4f}  {hit.path}  {hit.start or 0:g}-{end} s"


def print_hits(kind: str, asked: str, hits: Sequence["Hit"], as_json: bool) -> None:
    """Print the answer to a query."""
    if as_json:
        print(json.dumps({kind: asked, "videos": [as_dict(hit) for hit in hits]}), flush=True)
    else:
        print(asked, *map(as_line, hits), sep="\n", flush=True)


def print_groups(groups: Sequence[Sequence["Hit"]], as_json: bool) -> None:
    """Print groups of duplicates."""
    for group in groups:
        if as_json:
            print(json.dumps({"videos": [as_dict(hit) for hit in group]}))
        else:
            print(f"{len(group)} alike", *map(as_line, group), sep="\n")
    if not as_json:
        print(f"{len(groups)} groups")


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
