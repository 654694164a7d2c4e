"""Embed very many videos into Parquet files, each video once: for search, sorting, clustering.

    mote embed my_videos --model mote-vitb16 --output features
    mote embed "s3://bucket/videos/*.mp4" list.csv --model mote-vitb16 --output features --labels "archery, yoga"
    mote embed my_videos --model mote-vitb16 --output features --window 4 --stride 1 --engine ray --address auto

A source is a video, a folder (read with the folders in it), a glob, a URL (of a file; of a folder or glob, wherever
fsspec reaches: s3://, gs://, hf://datasets/owner/name), or a list: a CSV or Parquet file with a column path, and maybe
start and end in seconds.

DIR gets part-*.parquet with the columns path, size, mtime, start, end, embedding, scores, error, warning: a row per
video or, with --window, per window. embeddings.json beside them says what made them, and what the scores belong to. A
file that can't be read is a row with an error.

The same command again goes on where the last run stopped, whatever killed it; it reads new and changed files only.
With --retry, also those that could not be read; with --prune, rows of files that are gone are taken out.

--engine ray (pip install "mote-transformers[ray]") runs on all machines of a Ray cluster, which have the videos and
the model under the same paths; this process writes the files.

Exit code: 0, also if files could not be read (they are counted); 1 if something went wrong, said in one sentence; 2 if
the command line makes no sense; 130 after Ctrl-C, with what was embedded kept.
"""

import argparse
import sys
from pathlib import Path

from ..processing.class_names import describe_renamed
from .classify import read_labels, say
from .command_line import (
    add_device,
    add_flag,
    add_labels,
    add_merge_tokens,
    add_model,
    add_reading,
    check_model,
    number,
    run_command,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    seconds = number(0.001, kind=float)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="video, folder, glob, URL, or list (.csv, .parquet)"
    )
    add_model(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the Parquet files")
    add_labels(parser)
    parser.add_argument("--window", type=seconds, help="a row per window of so many seconds")
    parser.add_argument("--stride", type=seconds, help="seconds from a window's start to the next one's: 1 by default")
    add_flag(parser, "retry", "read again what could not be read")
    add_flag(parser, "prune", "take out the rows of files that no source names any more")
    add_reading(parser, what="videos or windows")
    add_merge_tokens(parser)
    add_device(parser)
    parser.add_argument("--shard_rows", type=number(1), default=4096, help="rows per Parquet file, about")
    parser.add_argument(
        "--shard_seconds", type=number(0, kind=float), default=60.0, help="write one at the latest after so long"
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="what runs it")
    parser.add_argument("--address", help="of the Ray cluster: auto for the one this machine is in; else one is made")


def check(options: argparse.Namespace) -> None:
    check_model(options.model)
    options.names, options.renamed = read_labels(options.labels, options.labels_file)
    if options.window is None and options.stride is not None:
        raise ValueError("--stride needs --window, the length of the windows in seconds.")
    if options.address is not None and options.engine != "ray":
        raise ValueError("--address is of a Ray cluster: add --engine ray.")
    output = Path(options.output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file: name a folder.")


def run(options: argparse.Namespace) -> int:
    from ..bulk import VideoScorer
    from ..bulk_run import embed_all
    from ..processing.listing import list_items

    say(describe_renamed(options.renamed) if options.renamed else "")
    engine = None
    if options.engine == "ray":
        from ..bulk_ray import ray_engine

        engine = ray_engine(options.address)
    scorer = VideoScorer(
        options.model,
        options.names,
        window=options.window,
        stride=options.stride or 1.0,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=options.device,
        merge_tokens=options.merge_tokens,
    )
    done = embed_all(
        scorer,
        list_items(options.sources),
        options.output,
        engine=engine,
        shard_rows=options.shard_rows,
        shard_seconds=options.shard_seconds,
        retry=options.retry,
        prune=options.prune,
        show_progress=True,
    )
    new = done.listed - done.before
    print(
        f"{options.output}: {done.listed} videos; {done.before} were there, {new} new or changed, of which "
        f"{done.failed} could not be read (column error)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command("embed"))
