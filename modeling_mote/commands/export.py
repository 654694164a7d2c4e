"""Export a checkpoint out of PyTorch, as ONNX graphs or torch.export programs, checked on real clips.

    mote export --model runs/moving_shapes/model --output mote-onnx
    mote export --model mote-vitb16 --output mote-b16 --format both --quantize --videos *.mp4

Three graphs, the experts folded: video, text, and a classifier that modulates and scores what the first gave, for one
list of labels after another. Batch, frames (1 to 77), classes, texts and their length are free. Search takes the
`video_embeds` of the first graph, which depend on the video alone. `docs/export.md` has the numpy.

Prints a table: graph, inputs, largest difference of each output to the checkpoint in PyTorch. If one exceeds
`--tolerance`, the command exits with 1 and leaves nothing. ONNX needs `mote-transformers[export]`.
"""

import argparse
import sys
from pathlib import Path

from .command_line import add_flag, add_model, check_model, number, run_command

FORMATS = ("onnx", "torch", "both")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="torch writes .pt2 of torch.export")
    parser.add_argument("--opset", type=number(18), help="ONNX opset, 18 or later; PyTorch's by default")
    add_flag(parser, "quantize", "also write video.int8.onnx and text.int8.onnx, and print how far off they are")
    parser.add_argument(
        "--videos",
        nargs="+",
        default=[],
        help="clips to check on; example.mp4 beside the checkpoint, or synthetic ones",
    )
    parser.add_argument(
        "--tolerance", type=number(0, kind=float), default=1e-4, help="largest difference to PyTorch that is accepted"
    )


def check(options: argparse.Namespace) -> None:
    check_model(options.model)
    if Path(options.output).exists():
        raise ValueError(f"--output {options.output} exists: name a folder that doesn't, or remove it.")
    for video in options.videos:
        if not video.startswith(("http://", "https://")) and not Path(video).is_file():
            raise FileNotFoundError(f"--videos {video} does not exist.")


def run(options: argparse.Namespace) -> int:
    from ..export import export_checkpoint

    export_checkpoint(
        options.model,
        options.output,
        format=options.format,
        opset=options.opset,
        quantize=options.quantize,
        videos=options.videos,
        tolerance=options.tolerance,
        say=print,
    )
    for file in sorted(Path(options.output).iterdir()):
        print(f"{file.stat().st_size / 2**20:8.1f} MiB  {file}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("export"))
