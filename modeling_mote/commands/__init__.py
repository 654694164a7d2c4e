"""`mote`: one command for each thing that is done with a checkpoint. Nothing here needs PyTorch before work begins."""

import sys
from collections.abc import Sequence

from .command_line import report_error, run_command, suggestion

COMMANDS = {
    "classify": "score videos against labels",
    "explain": "show why a video has a label's score: frames, patches, shares",
    "search": "index a folder of videos, then find videos by a text",
    "embed": "embed very many videos into Parquet files, each video once",
    "train": "train MoTE on your own videos or on a benchmark",
    "evaluate": "score a checkpoint under a protocol of the paper, or on your own clips",
    "calibrate": "learn from labelled clips what scores mean",
    "check": "read every video of a data set once, and list what is wrong with it",
    "convert": "turn the authors' .pt checkpoint into a folder that transformers loads",
    "export": "write a checkpoint as ONNX or torch.export graphs, checked against PyTorch",
    "push": "publish a checkpoint on the Hugging Face Hub",
    "app": "serve a web page that classifies videos",
}

USAGE = "\n".join(
    [
        "usage: mote COMMAND [OPTIONS]",
        "",
        "MoTE: video classification with CLIP and a mixture of temporal experts (arXiv 2410.10589).",
        "",
        "commands:",
        *(f"  {name:10}{text}" for name, text in COMMANDS.items()),
        "",
        "`mote COMMAND --help` lists the options of a command.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mote`.

    Args:
        argv: what follows `mote` on the command line; that of this process by default.

    Returns:
        the exit code: 0; 1 if something went wrong, said in one sentence; 2 if the command line makes no sense.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    name, *rest = given
    if name == "--version":
        from .. import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        return report_error(
            f"there is no command {name!r}{suggestion(name, COMMANDS)}; `mote --help` lists them", code=2
        )
    return run_command(name, rest)
