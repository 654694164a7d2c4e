"""Show why a video has a label's score: each frame's share of it, its effect, and a map of what it rests on.

    mote explain clip.mp4 --label archery --labels "archery, yoga" --model mote-vitb16 --output why.png
    mote explain clip.mp4 --model mote-vitb16 --output why.mp4     # the best of the classes it was trained on
    mote explain clip.mp4 --label archery --against yoga --labels "archery, yoga" --model mote-vitb16 --output why.png

Prints the similarity of the video to the label, a cosine; what each frame adds to it, its share; and what would be
lost if the frame were blank, its effect. The picture (.png) shows the frames that the model saw, under each the map of
what counts in it, and the two numbers as bars; the film (.mp4) goes through the frames one by one. With --against it
explains why --label rather than that label. docs/explain.md says how to read them.

Exit code: 0; 1 if something went wrong, said in one sentence; 2 if the command line makes no sense.
"""

import argparse
import itertools
import sys
from typing import TYPE_CHECKING

from ..processing.sources import find_videos
from .classify import read_labels
from .command_line import add_device, add_labels, add_model, check_model, check_output, number, run_command

if TYPE_CHECKING:
    from ..explanation import Explanation


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="video file or URL")
    add_model(parser)
    parser.add_argument("--label", help="what to explain; the best label by default")
    add_labels(parser, "names with commas between them, --label among them; the training classes by default")
    parser.add_argument("--against", help="explain why --label rather than this one")
    parser.add_argument("--output", required=True, help="file to write, .png or .mp4")
    parser.add_argument("--num_frames", type=number(1), help="frames to look at; as the checkpoint says by default")
    add_device(parser)


def check(options: argparse.Namespace) -> None:
    found = find_videos([options.video])
    if len(found.files) != 1:
        raise ValueError(f"{options.video} holds {len(found.files)} videos: name one file.")
    options.video = found.files[0]
    check_model(options.model)
    options.names, _ = read_labels(options.labels, options.labels_file)
    check_output("output", options.output, (".png", ".mp4"))


def run(options: argparse.Namespace) -> int:
    from ..explanation import explain
    from ..loading import load_pipeline

    classify = load_pipeline(options.model, options.device)
    why = explain(
        classify,
        options.video,
        options.label,
        options.names,
        against=options.against,
        num_frames=options.num_frames,
    )
    print_table(why)
    why.save(options.output)
    return 0


def print_table(why: "Explanation") -> None:
    """The label's numbers, then each frame's."""
    beside = f"similarity {why.similarity:.4f}"
    if why.against is not None:
        beside = f"similarity {why.similarity:+.4f} beside {why.against!r}"
    print(f"{why.label!r}: score {why.score:.3f} among {len(why.candidate_labels)} labels, {beside}")
    print("view  frame  seconds    share   effect")
    shares = why.frame_shares.reshape(-1, why.frame_shares.shape[-1])
    effects = why.frame_effects.reshape(shares.shape)
    seconds = None if why.seconds is None else why.seconds.reshape(shares.shape)
    for view, frame in itertools.product(*map(range, shares.shape)):
        time = "" if seconds is None else f"{float(seconds[view, frame]):.2f}"
        numbers = f"{float(shares[view, frame]):+.4f}  {float(effects[view, frame]):+.4f}"
        print(f"{view + 1:4}  {frame + 1:5}  {time:>7}  {numbers}")


if __name__ == "__main__":
    sys.exit(run_command("explain"))
