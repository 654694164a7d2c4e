"""Score a checkpoint under one of the paper's protocols, on one process or many.

    mote evaluate --protocol half-classes --model runs/mine/model --data my_test.csv --alpha 1
    accelerate launch examples/evaluate.py --protocol ucf101-zero-shot --model mote-vitb16 --data_dir /data/ucf101
    torchrun --nproc_per_node 2 examples/evaluate.py --protocol kinetics400-4x3 --model mote-vitb16 ...

Data, views, prompts, alpha, score rule and metrics come from the protocol's name; what an option changes is recorded
in the result and in its name. Prints a table; leaves in `--output`: `result.json`, `per_class.csv`, `confusion.png`,
`reliability.png`, `bad_videos.csv`. A video that can't be read counts as wrong; the accuracy over those scored is
printed beside. Scores are kept as they come: after an interruption, the same command goes on with what is missing.

Beside top-1 stand two numbers about the scores themselves, as the pipeline gives them. ECE, the expected calibration
error: how far a score is from how often it is right. "AUROC, label listed": how well the largest cosine, or the
checkpoint's calibration, tells a clip whose label is in the list from the same clip with its label left out; 0.5 is
guessing, 1 is never wrong.

    mote evaluate --protocol own-data --data my_videos --model runs/mine/model --baseline
    mote evaluate --protocol own-data --data my_videos --model runs/mine/model --wordings short.csv described.csv
"""

import argparse
import shlex
import sys
import warnings
from pathlib import Path

from .command_line import (
    add_flag,
    add_merge_tokens,
    add_model,
    add_reading,
    check_model,
    number,
    run_command,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol", required=True, help="own-data, half-classes, kinetics400-1x1, ucf101-zero-shot, ..."
    )
    add_model(parser)
    parser.add_argument("--data_dir", help="folder of the videos and official lists; for a CSV, its own by default")
    parser.add_argument("--list_dir", help="folder of the official lists, if they are not below data_dir")
    parser.add_argument("--data", help="CSV, or folder with one folder per class, if the protocol leaves the choice")
    parser.add_argument("--split", default="test", help="split of --data")
    parser.add_argument("--output", help="folder of the result; results/PROTOCOL/CHECKPOINT-FINGERPRINT by default")
    parser.add_argument("--card", help="model card (README.md) to write the result into, as model-index")
    add_flag(parser, "baseline", "put beside it: CLIP by the mean over frames, and these weights with rho = 0 and 1")
    parser.add_argument(
        "--wordings",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files as of --labels_file: the number under each of them",
    )
    parser.add_argument("--cache_dir", help="folder of cached class features; the Hugging Face home by default")
    add_reading(parser, what="videos per process")
    # What follows changes the protocol, and is named in the result.
    parser.add_argument(
        "--alpha", type=number(0, 1, float), help="weight of the fine-tuned image tower against CLIP's"
    )
    parser.add_argument(
        "--clip", help="the CLIP of --alpha and --baseline; the one named in the checkpoint by default"
    )
    add_flag(parser, "no_modulation", "score with rho = 1")
    parser.add_argument("--merge_temperature", help="merge the experts at this temperature, not uniformly")
    add_merge_tokens(parser)
    parser.add_argument(
        "--labels_file",
        help="CSV of the class names and descriptions (columns `name`, `description`), or other names, in their order",
    )
    add_flag(parser, "allow_empty_classes", "accept a part of a benchmark, with classes that have no clip")


def check(options: argparse.Namespace) -> None:
    check_model(options.model)
    if options.card is not None and not Path(options.card).is_file():
        raise FileNotFoundError(f"--card {options.card}: there is no such file.")


def run(options: argparse.Namespace) -> int:
    import torch
    from accelerate import Accelerator
    from transformers import logging

    from ..evaluation import evaluate
    from ..results import beside_table, full_name, per_class_table, results_table, update_card

    # Without `cpu`, torchrun's processes would not know of one another on a machine without accelerator.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if not accelerator.is_main_process:
        logging.set_verbosity_error()
        warnings.simplefilter("ignore")
    result, folder = evaluate(
        options.protocol,
        options.model,
        accelerator=accelerator,
        data=options.data,
        data_dir=options.data_dir,
        list_dir=options.list_dir,
        split=options.split,
        labels=options.labels_file,
        wordings=options.wordings,
        allow_empty_classes=options.allow_empty_classes,
        alpha=options.alpha,
        clip=options.clip,
        baseline=options.baseline,
        modulate=not options.no_modulation,
        merge_temperature=options.merge_temperature,
        merge_tokens=options.merge_tokens,
        output=options.output,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        cache_dir=options.cache_dir,
        command=shlex.join(sys.argv),
        say=accelerator.print,
    )
    if accelerator.is_main_process:
        print(results_table({full_name(result): result}))
        if beside := beside_table(result):
            print(f"\n{beside}\n")
        if "top1_all_classes" in result["parts"][0]:
            top1, top5 = (100 * result["parts"][0][f"{metric}_all_classes"] for metric in ("top1", "top5"))
            print(f"over all classes at once, not halves: top-1 {top1:.1f} %, top-5 {top5:.1f} %")
        if options.protocol == "own-data":
            print(f"\n{per_class_table(folder)}\n")
        print(f"of {result['checkpoint']}; written to {folder}")
        if options.card is not None:
            update_card(Path(options.card), result)
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(run_command("evaluate"))
