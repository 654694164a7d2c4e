"""The one dialect of all commands: how options are written, what they are called, and how a run ends.

A command is a module with a docstring, `add_options(parser)`, `check(options)` if anything can be found wrong before
PyTorch is loaded, and `run(options)`, which turns the options into plain values for the library. Options are written
with `_`; `-` is accepted. Only `run` imports what takes seconds.
"""

import argparse
import difflib
import importlib
import os
import select
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ..processing.sources import BENCHMARKS

# `engines.ENGINES`, which can't be asked before PyTorch is loaded.
ENGINES = ("torch", "torch-bfloat16", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-bfloat16")

# What people type who know other tools, or an older release of this one.
OTHER_NAMES = {
    "checkpoint": "model",
    "ckpt": "model",
    "data_folder": "data",
    "name": "data_name",
    "out": "output",
    "workers": "num_workers",
}


class Parser(argparse.ArgumentParser):
    """argparse with `-` for `_`, no abbreviations, and one sentence for an error.

    Args:
        name: Of the command.
        documentation: Its docstring: the first line describes it, the rest follows the list of options.
        **options: What argparse passes to the parser of a subcommand.
    """

    def __init__(self, name: str = "", documentation: str = "", **options: Any):
        description, _, epilog = documentation.partition("\n\n")
        own: dict[str, Any] = {"prog": f"mote {name}", "description": description, "epilog": epilog}
        super().__init__(**{**own, "formatter_class": _HelpFormatter, "allow_abbrev": False} | options)
        self.complete: Callable[[list[str]], list[str]] = list  # what a command puts before the options given

    def parse_known_args(self, args=None, namespace=None):
        given = self.complete([_with_underscores(each) for each in (sys.argv[1:] if args is None else args)])
        if self._subparsers is None:  # an unknown name is said before what is missing: it may be that, misspelt
            for each in given[: given.index("--")] if "--" in given else given:
                if each.startswith("--") and each.partition("=")[0] not in self._option_string_actions:
                    self._refuse(each.partition("=")[0])
        return super().parse_known_args(given, namespace)

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown and not unknown[0].startswith("-"):
            self.error(f"{unknown[0]!r} is one argument too many; quote what holds spaces")
        if unknown:
            self._refuse(unknown[0])
        return options

    def _refuse(self, name: str) -> NoReturn:
        other = f"--{OTHER_NAMES.get(name[2:])}"
        known = self._option_string_actions
        self.error(
            f"there is no option {name}{f'; did you mean {other}?' if other in known else suggestion(name, known)}"
        )

    def option_names(self) -> list[str]:
        """The options there are, such as `--model`."""
        return list(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        self.exit(report_error(f"{message} (see `{self.prog} --help`)", code=2))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The documentation as it is written, and defaults that are worth knowing."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=min(119, int(os.environ.get("COLUMNS", 100))))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.default in (None, argparse.SUPPRESS, False) or action.required:
            return text
        return f"{text} (default {_shown(action.default)})"


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _with_underscores(given: str) -> str:
    """`--batch-size=8` as `--batch_size=8`; values stay as they are."""
    if not given.startswith("--"):
        return given
    name, equals, value = given.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def suggestion(name: str, known: Iterable[str]) -> str:
    """ "; did you mean …?" if a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


# ----------------------------------------------------------------------------------------------------- kinds of values


def number(
    least: float, most: float = float("inf"), kind: Callable[[str], float] = int, above: bool = False
) -> Callable[[str], Any]:
    """A kind of value for argparse: a number from `least` to `most`, or above `least` and not equal to it."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        if not least <= value <= most or (above and value == least) or value == float("inf"):
            upper = "" if most == float("inf") else f" and at most {most:g}"
            lower = f"above {least:g}" if above else f"at least {least:g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {lower}{upper}")
        return value

    return read


def truth(text: str) -> bool:
    """A kind of value for argparse: true or false."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return value


def add_flag(parser: argparse.ArgumentParser, name: str, text: str, default: bool = False) -> None:
    """An option that is true where it stands alone: `--name`, `--name true`, `--name false`."""
    parser.add_argument(f"--{name}", type=truth, nargs="?", const=True, default=default, metavar="BOOL", help=text)


# ---------------------------------------------------------------------------------- options that several commands have


def add_videos(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="video file, folder (read with the folders in it), glob, or URL"
    )


def add_model(
    parser: argparse.ArgumentParser, text: str = "MoTE checkpoint: folder or Hub id", **options: Any
) -> None:
    options = options if "default" in options else {"required": True, **options}
    parser.add_argument("--model", help=text, **options)


def add_labels(parser: argparse.ArgumentParser, text: str = "names with commas between them") -> None:
    parser.add_argument("--labels", help=text)
    parser.add_argument(
        "--labels_file",
        help="text file of one name per line, or CSV with the columns `name` and, if wanted, `description`",
    )


def add_reading(parser: argparse.ArgumentParser, batch_size: int = 8, what: str = "videos") -> None:
    """How much is read and computed at a time, and where."""
    parser.add_argument("--batch_size", type=number(1), default=batch_size, help=f"{what} in one forward")
    parser.add_argument("--num_workers", type=number(0), default=2, help="processes that read videos")


def add_merge_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--merge_tokens",
        type=number(0),
        default=0,
        metavar="N",
        help="pairs of tokens that each layer of the image tower merges: faster, and other scores",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, …; an accelerator by default, if there is one")


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=ENGINES, help="what runs the image tower on a CPU; PyTorch by default")
    add_flag(parser, "fast", "run it by the engine that is fastest on this machine, which is measured once")


def engine_of(options: argparse.Namespace) -> str | None:
    """The engine that `add_engine`'s options ask for.

    Raises:
        ValueError: if both do.
    """
    if options.fast and options.engine is not None:
        raise ValueError("--fast chooses the engine: leave it or --engine out.")
    return "fastest" if options.fast else options.engine


# ---------------------------------------------------------------------------------------------- checks before the work


def check_model(model: str, option: str = "model") -> None:
    """Refuse a folder that does not exist, rather than ask the Hub for it.

    Raises:
        FileNotFoundError: naming the option and the folder.
    """
    path, owner = Path(model).expanduser(), model.partition("/")[0]
    is_hub_id = model.count("/") == 1 and not model.endswith("/") and not model.startswith((".", "/", "~"))
    # `runs/model`, if there is a folder `runs`, is a folder misspelt.
    if not path.exists() and (not is_hub_id or "\\" in model or Path(owner).is_dir()):
        hint = "" if "/" in model else "; a model on the Hub is named owner/name"
        raise FileNotFoundError(f"--{option} {model}: there is no such folder{hint}.")


def check_data(data: str, option: str | None = None) -> None:
    """Refuse a data set that is neither on the disk nor known by name.

    Raises:
        FileNotFoundError: naming the option, if it is one, and the data set.
    """
    if data not in BENCHMARKS and not Path(data).expanduser().exists():
        named = f"--{option} {data}" if option else data
        hint = suggestion(data, BENCHMARKS) or "."
        raise FileNotFoundError(f"{named}: there is no such folder or list, and no data set of this name{hint}")


def check_output(name: str, path: str | None, suffixes: Sequence[str]) -> None:
    """Refuse an output file of a wrong kind, or in a folder that does not exist, before the work.

    Raises:
        ValueError, FileNotFoundError: naming the option and the file.
    """
    if path is None:
        return
    if Path(path).suffix.lower() not in suffixes:
        raise ValueError(f"--{name} {path} must end in {' or '.join(suffixes)}.")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"--{name} {path}: its folder does not exist; make it first.")


# ------------------------------------------------------------------------------------------------------ how a run ends


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command from its command line to its exit code.

    Args:
        name: of the command, `modeling_mote.commands.<name>`.
        argv: its options; those of this process by default.

    Returns:
        0 or what the command returns; 1 after an error, said in one sentence on stderr (`MOTE_DEBUG=1` adds the
        traceback); 2 if the command line makes no sense; 130 after Ctrl-C.
    """
    command: ModuleType = importlib.import_module(f".{name}", __package__)
    parser = Parser(name, command.__doc__ or "")
    command.add_options(parser)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may lack a file name's characters
    try:
        options = parser.parse_args(argv)
        if hasattr(command, "check"):
            command.check(options)
        _quiet()
        return command.run(options) or 0
    except SystemExit as stop:  # argparse, after --help and after an error
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return report_error("interrupted", code=130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 1
        if not isinstance(error, _expected()):
            raise
        if os.environ.get("MOTE_DEBUG"):
            traceback.print_exc()
        return report_error(_sentence(error))


def _reader_is_gone() -> bool:
    """Whether nobody reads the output any more, as in `mote … | head`; Python must not try again when it ends."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        return False
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        poll.register(output, 0)
        if not poll.poll(0):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _sentence(error: Exception) -> str:
    """What an error says; the system's own, such as `[Errno 17] File exists: 'runs'`, names the file first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror[0].lower()}{error.strerror[1:]}."
    return str(error) or type(error).__name__


def _expected() -> tuple[type[Exception], ...]:
    """Errors whose message is written for the person who typed the command."""
    kinds: list[type[Exception]] = [ValueError, OSError, ImportError]
    for library, name in (("safetensors", "SafetensorError"), ("torch", "OutOfMemoryError")):
        if library in sys.modules:
            kinds.append(getattr(sys.modules[library], name))
    return tuple(kinds)


def report_error(message: str, code: int = 1) -> int:
    """Say what is wrong on one line of stderr; returns the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _quiet() -> None:
    """Load what every command needs; each warning is one line, and progress bars are the commands' own."""
    importlib.import_module("modeling_mote.registration")
    logging = importlib.import_module("transformers").logging
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
