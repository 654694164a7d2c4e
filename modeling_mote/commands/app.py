"""Serve a web page and an HTTP interface: a video and labels in, scores, segments, a timeline and why out.

    mote app --model runs/moving_shapes/model
    MOTE_MODEL=org/mote-vitb16 mote app          # as a Space names the model, see examples/space
    curl -F file=@clip.mp4 -F "labels=archery, yoga" http://127.0.0.1:7860/v1/classify

Prints the address to open in a browser, `http://127.0.0.1:7860` unless that is taken. Needs Gradio
(`pip install "mote-transformers[app]"`) and, once the model is on the disk, no internet. Uploads stay on this machine;
they are deleted when they are `--keep_seconds` old and when the app stops, and nothing is reported to anybody. What
visitors may ask for has limits, the options that begin with `--max_`; a video is read in a process that is ended if it
takes too long. `POST /v1/classify` takes a file, base64 or a public URL, `GET /health` says that the server is there,
and /docs describes both. With `--mcp`, agents find the tool `classify` at /gradio_api/mcp/.
"""

import argparse
import dataclasses
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ..processing.limits import WINDOW_SECONDS, Limits
from ..processing.sources import find_videos
from .command_line import add_device, add_engine, add_flag, add_model, check_model, engine_of, number, run_command


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "MoTE checkpoint: folder or Hub id; MOTE_MODEL by default", default=os.environ.get("MOTE_MODEL"))
    parser.add_argument("--port", type=number(1, 65535), help="by default the first free one from 7860 on")
    add_flag(parser, "share", "open a public tunnel through Gradio's servers")
    seconds = number(0, kind=float, above=True)
    parser.add_argument(
        "--window",
        type=seconds,
        help="seconds; longer videos are scored in windows (default: the length of the training clips)",
    )
    parser.add_argument("--stride", type=seconds, default=1.0, help="seconds from one window to the next")
    parser.add_argument("--concurrency", type=number(1), default=2, help="videos at a time; the others queue")
    parser.add_argument("--keep_seconds", type=number(1), default=3600, help="age at which uploads are deleted")
    parser.add_argument("--examples", help="folder of videos to click, in a folder per label")
    add_flag(parser, "mcp", "serve the Model Context Protocol for agents as well")
    for limit in dataclasses.fields(Limits):
        kind: Any = type(limit.default)
        options = {"type": number(0, kind=kind, above=True), "default": limit.default, **limit.metadata}
        parser.add_argument(f"--{limit.name}", **options)
    add_device(parser)
    add_engine(parser)


def check(options: argparse.Namespace) -> None:
    if options.model is None:
        raise ValueError("No model is named: pass --model, or set the variable MOTE_MODEL.")
    check_model(options.model)
    options.engine = engine_of(options)
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('The app needs Gradio: pip install "mote-transformers[app]"')
    if options.mcp and importlib.util.find_spec("mcp") is None:
        raise ImportError('--mcp needs the package mcp: pip install "mote-transformers[mcp]"')
    if options.examples is not None:
        find_videos([options.examples])  # says what is wrong with it


def run(options: argparse.Namespace) -> None:
    from ..loading import load_pipeline, read_record
    from ..web_answers import Answers
    from ..web_app import CSS, build, examples_of
    from ..web_http import http_routes

    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in dataclasses.fields(Limits)})
    classify = load_pipeline(options.model, options.device, engine=options.engine, say=print)
    window = options.window or read_record(options.model, "training.json").get("clip_seconds") or WINDOW_SECONDS
    answers = Answers(classify, limits, window, options.stride, options.concurrency)
    name = options.model if not Path(options.model).exists() else model_name(Path(options.model))
    examples = examples_of(answers, options.examples)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a container deletes the uploads too
    try:
        build(answers, name, examples, options.keep_seconds).launch(
            share=options.share,
            server_port=options.port,
            max_file_size=int(limits.max_megabytes * 1e6),
            ssr_mode=False,
            run_history=False,
            footer_links=["api"],
            css=CSS,
            mcp_server=options.mcp,
            app_kwargs={"routes": list(http_routes(answers, name).routes)},  # before Gradio's own
        )
    finally:
        answers.close()
        for example in examples:
            Path(example.video).unlink(missing_ok=True)


def model_name(folder: Path) -> str:
    """The last parts of a folder's path that say what it is: `moving_shapes/model`, not `model`."""
    return "/".join(folder.expanduser().resolve().parts[-2:])


if __name__ == "__main__":
    sys.exit(run_command("app"))
