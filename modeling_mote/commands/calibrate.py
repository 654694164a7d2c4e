"""Learn from labelled clips what the scores of a checkpoint mean, and write it into the checkpoint.

    mote calibrate --model mote-vitb16 --data labelled.csv
    mote calibrate --model mote-vitb16 --data my_videos --split train --output mote-vitb16-calibrated

With a calibration, scores are probabilities on clips like these, and `mote classify` takes --unknown, --coverage and
--multi_label. `mote train` fits one by itself to its validation clips. Take clips that the model was not trained on:
of those it is too sure. A longer or shorter list of labels, and videos of another kind, shift what was learned.

Only config.json changes; with --output, a copy of the checkpoint has it.
"""

import argparse
import sys
from pathlib import Path

from .command_line import add_device, add_model, add_reading, check_model, run_command


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--data", required=True, help="CSV of clips and labels, or folder with one folder per class")
    parser.add_argument("--data_dir", help="folder of the videos of a CSV; its own by default")
    parser.add_argument("--split", default="test", help="split of --data")
    parser.add_argument("--output", help="folder for a calibrated copy; by default --model itself is calibrated")
    add_reading(parser, what="clips")
    add_device(parser)


def check(options: argparse.Namespace) -> None:
    check_model(options.model)
    if not Path(options.data).exists():
        raise FileNotFoundError(f"--data {options.data}: there is no such file or folder.")


def run(options: argparse.Namespace) -> int:
    from accelerate import Accelerator

    from ..calibrate import calibrate

    found, measured = calibrate(
        options.model,
        options.data,
        split=options.split,
        data_dir=options.data_dir,
        output=options.output,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        accelerator=Accelerator(cpu=options.device == "cpu"),
    )
    for name, why in measured["bad_clips"].items():
        print(f"left out {name}: {why}", file=sys.stderr)
    print(
        f"{options.output or options.model}: calibrated on {found.num_clips} clips of {found.num_labels} classes, "
        f"top-1 {100 * measured['accuracy']:.1f} %; temperature {found.temperature:.4g} of the cosines"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command("calibrate"))
