"""Publish a checkpoint on the Hugging Face Hub: everything that loads it, and its card, in one commit.

    mote push --model runs/mine/model --repo org/mote-mine --dry_run    # shows files and card, uploads nothing
    mote push --model runs/mine/model --repo org/mote-mine --results results/*/*

Prints every file with its size, then the commit that pins them. Uploads weights, config, processor, tokenizer,
`labels.txt`, the code for `trust_remote_code=True` and for Inference Endpoints, the records of `mote train` or
`mote convert`, `curves.png`, results of `mote evaluate`, and the card. An upload that fails leaves the repository as
it was. It is signed with the token of `hf auth login` or of the variable HF_TOKEN, which needs write access and is
never printed.
"""

import argparse
import sys
from functools import partial

from .command_line import add_flag, add_model, run_command


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "folder of a MoTE checkpoint")
    parser.add_argument("--repo", required=True, help="repository on the Hub, org/name; made if there is none")
    add_flag(parser, "private", "only for those with access to the repository")
    add_flag(parser, "merged", "fold the experts into one feed-forward per layer: smaller, the same scores")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        help="results of `mote evaluate` for the card: folders or result.json files",
    )
    parser.add_argument("--card", help="card to publish; the checkpoint's own README.md by default")
    parser.add_argument("--license", help="licence of the weights, such as mit or apache-2.0; the card's by default")
    parser.add_argument("--revision", help="branch to commit to, made if there is none; main by default")
    parser.add_argument("--commit_message", default="Upload MoTE", help="title of the commit")
    parser.add_argument("--max_shard_size", default="5GB", help="largest file of weights, such as 500MB")
    add_flag(parser, "dry_run", "only print what would be uploaded, with the card")


def run(options: argparse.Namespace) -> int:
    from ..publish import publish_checkpoint

    published = publish_checkpoint(
        options.model,
        options.repo,
        private=options.private,
        merged=options.merged,
        results=options.results,
        card=options.card,
        license=options.license,
        revision=options.revision,
        commit_message=options.commit_message,
        max_shard_size=options.max_shard_size,
        dry_run=options.dry_run,
        say=partial(print, flush=True),
    )
    if options.dry_run:
        print(f"\n{published.card}\nnothing was uploaded to {options.repo}")
    if "\nlicense: other\n" in published.card:
        print("The card names no licence: choose one with --license.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("push"))
