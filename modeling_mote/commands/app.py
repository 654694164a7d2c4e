"""Serve a web page: drop a video, type labels, get scores, a timeline and the frames that the model saw.

    mote app --model runs/moving_shapes/model
    MOTE_MODEL=org/mote-vitb16 mote app          # as a Space names the model, see examples/space

Prints the address to open in a browser, `http://127.0.0.1:7860` unless that is taken. Needs Gradio
(`pip install "mote-transformers[app]"`) and, once the model is on the disk, no internet. Uploads stay on this machine;
they are deleted when they are `--keep_seconds` old and when the app stops, and nothing is reported to anybody. What
visitors may ask for has limits, the options that begin with `--max_`.
"""

import argparse
import dataclasses
import importlib.util
import os
import signal
import sys
from typing import Any

from ..web_limits import Limits
from .command_line import add_device, add_flag, add_model, check_model, number, run_command


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "MoTE checkpoint: folder or Hub id; MOTE_MODEL by default", default=os.environ.get("MOTE_MODEL"))
    parser.add_argument("--port", type=number(1, 65535), help="by default the first free one from 7860 on")
    add_flag(parser, "share", "open a public tunnel through Gradio's servers")
    seconds = number(0, kind=float, above=True)
    parser.add_argument("--window", type=seconds, default=4.0, help="seconds; longer videos get a timeline of windows")
    parser.add_argument("--stride", type=seconds, default=1.0, help="seconds from one window to the next")
    parser.add_argument("--concurrency", type=number(1), default=2, help="videos at a time; the others queue")
    parser.add_argument("--keep_seconds", type=number(1), default=3600, help="age at which uploads are deleted")
    for limit in dataclasses.fields(Limits):
        kind: Any = type(limit.default)
        options = {"type": number(0, kind=kind, above=True), "default": limit.default, **limit.metadata}
        parser.add_argument(f"--{limit.name}", **options)
    add_device(parser)


def check(options: argparse.Namespace) -> None:
    if options.model is None:
        raise ValueError("No model is named: pass --model, or set the variable MOTE_MODEL.")
    check_model(options.model)
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('The app needs Gradio: pip install "mote-transformers[app]"')


def run(options: argparse.Namespace) -> None:
    from ..loading import load_pipeline
    from ..web_app import CSS, build

    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in dataclasses.fields(Limits)})
    settings = {name: getattr(options, name) for name in ("window", "stride", "concurrency", "keep_seconds")}
    page = build(load_pipeline(options.model, options.device), limits, **settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a container deletes the uploads too
    page.launch(
        share=options.share,
        server_port=options.port,
        max_file_size=int(limits.max_megabytes * 1e6),
        ssr_mode=False,
        run_history=False,
        footer_links=["api"],
        css=CSS,
    )


if __name__ == "__main__":
    sys.exit(run_command("app"))
