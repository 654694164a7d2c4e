"""Turn the authors' MoTE checkpoint into a folder that transformers, both pipelines and every command take.

    mote convert --model MoTE_B16.pt --clip openai/clip-vit-base-patch16 --output mote-vitb16
    mote convert --model MoTE_L14.pt --clip openai/clip-vit-large-patch14 --output mote-vitl14

`MoTE_B16.pt` and `MoTE_L14.pt` are files of the authors' release page, https://github.com/ZMHH-H/MoTE/releases/tag/v1.0.
They hold no text tower: it is that of the CLIP they were trained from, which --clip names. The file is read without
running code from it. --output appears whole or not at all.
"""

import argparse
import sys
from pathlib import Path

from .command_line import add_model, check_model, number, run_command


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "the authors' .pt file")
    parser.add_argument("--clip", required=True, help="the CLIP it was trained from: folder or Hub id")
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument(
        "--alpha",
        type=number(0, 1, float),
        default=0.99,
        help="share of the fine-tuned image tower, the rest is CLIP's; the authors score with the default",
    )
    parser.add_argument(
        "--labels_file",
        help="names of the training classes in their order, one per line, or CSV with a column `name`; "
        "those of Kinetics-400 are known",
    )
    parser.add_argument("--num_frames", type=number(1), default=8, help="frames that it was trained with")


def check(options: argparse.Namespace) -> None:
    if not Path(options.model).is_file():
        raise FileNotFoundError(f"--model {options.model}: there is no such file.")
    check_model(options.clip, "clip")
    if options.labels_file is not None and not Path(options.labels_file).is_file():
        raise FileNotFoundError(f"--labels_file {options.labels_file}: there is no such file.")


def run(options: argparse.Namespace) -> None:
    from ..convert_mote_original import convert

    model = convert(
        options.model,
        options.clip,
        options.output,
        alpha=options.alpha,
        labels=options.labels_file,
        num_frames=options.num_frames,
    )
    temporal = model.config.temporal_config
    experts = "one feed-forward each" if temporal.experts_merged else f"{temporal.num_experts} experts"
    print(
        f"{options.output}: {temporal.num_hidden_layers} temporal layers of {experts}, {model.config.num_labels} "
        f"training classes, alpha {options.alpha} (image tower = {options.alpha} · fine-tuned + "
        f"{1 - options.alpha:.4g} · CLIP)"
    )


if __name__ == "__main__":
    sys.exit(run_command("convert"))
