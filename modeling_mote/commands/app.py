"""A web app: drop a video, type labels, get scores, a timeline and the frames that the model saw.

    python examples/app.py --model runs/moving_shapes/model
    MOTE_MODEL=org/mote-vitb16 python examples/app.py          # as a Space names the model, see examples/space

Prints the address to open in a browser, `http://127.0.0.1:7860` unless that is taken. Needs Gradio
(`pip install "mote-transformers[app]"`) and, once the model is on the disk, no internet. Uploads stay on this machine;
they are deleted when they are `--keep_seconds` old and when the app stops, and nothing is reported to anybody.
"""

import html
import io
import math
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import HfArgumentParser, pipeline

import modeling_mote  # noqa: F401  registers MoTE with transformers
from modeling_mote.processing import VideoDecodeError, parse_labels
from modeling_mote.processing.long_video import classify_windows, plot_timeline

try:
    import gradio as gr
except ModuleNotFoundError:
    sys.exit('error: the app needs Gradio: pip install "mote-transformers[app]"')

# One view of a video, and of a short one repeated frames, whatever the checkpoint's processor would do.
VIEW: dict[str, Any] = {"num_clips": 1, "num_crops": 1, "short_video": "loop"}

# Trimming is hidden: it would fetch FFmpeg from the internet. Hundreds of scores scroll.
CSS = """
#video [aria-label="Trim video to selection"] { display: none }
#scores { max-height: 600px; overflow-y: auto }
#frames .grid-wrap { min-height: 0; padding-top: 2rem }
#timeline .image-container { padding-top: 1.5rem }
"""


@dataclass
class Arguments:
    """What the command line takes."""

    model: str = field(
        default_factory=lambda: os.environ.get("MOTE_MODEL", "runs/moving_shapes/model"),
        metadata={"help": "folder or Hub name of a MoTE checkpoint; where not given, the variable MOTE_MODEL"},
    )
    share: bool = field(default=False, metadata={"help": "open a public tunnel through Gradio's servers"})
    port: int | None = field(default=None, metadata={"help": "by default the first free one from 7860 on"})
    window: float = field(default=4.0, metadata={"help": "seconds of a window; longer videos get a timeline of them"})
    stride: float = field(default=1.0, metadata={"help": "seconds from one window to the next"})
    max_seconds: float = field(default=300.0, metadata={"help": "longer videos are refused"})
    max_megabytes: int = field(default=500, metadata={"help": "larger files are refused"})
    max_labels: int = field(default=1000, metadata={"help": "more labels are refused"})
    concurrency: int = field(default=2, metadata={"help": "videos classified at a time; the others queue"})
    keep_seconds: int = field(default=3600, metadata={"help": "age at which uploads and results are deleted"})

    def __post_init__(self) -> None:
        numbers = ("window", "stride", "max_seconds", "max_megabytes", "max_labels", "concurrency", "keep_seconds")
        for name in numbers:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} is {getattr(self, name)}: pass a number above 0.")
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"--port is {self.port}: pass a number from 1 to 65535.")


def answer(
    classify: Any, arguments: Arguments, video: str | None, text: str | None, progress: Any
) -> Iterator[tuple[dict[str, float], list[tuple[Image.Image, str]], Image.Image | None]]:
    """What the page shows for one video and one text of labels, twice where the timeline comes later.

    Args:
        classify: The zero-shot pipeline; calls at the same time may share it.
        arguments: Limits, and the windows of the timeline.
        video: Path of the upload.
        text: Labels, separated by commas or new lines.
        progress: A `gr.Progress`.

    Yields:
        {label: score} over all labels, the frames [h, w] that they are of with their times, and the timeline: None
        until it is drawn, and for a video of at most one window.

    Raises:
        ValueError: Where there is no video, no label or a repeated one, for too many labels, and for a video that is
            too long or cannot be decoded.
    """
    if video is None:
        raise ValueError("No video was given: drop one first.")
    labels = read_labels(text, arguments.max_labels)
    check_length(length_by_packets(video), arguments.max_seconds)
    frames, metadata = see(classify, video)
    check_length(metadata.duration, arguments.max_seconds)
    scores, shown = score(classify, frames, labels), pictures(frames, metadata)
    yield scores, shown, None
    seconds = metadata.duration or 0.0
    if seconds > arguments.window:
        windows = classify_windows(classify, video, labels, window=arguments.window, stride=arguments.stride, **VIEW)
        total = 1 + math.ceil((seconds - arguments.window) / arguments.stride)
        yield scores, shown, draw(list(progress.tqdm(windows, total=total, desc="Timeline", unit="windows")))


def read_labels(text: str | None, most: int) -> list[str]:
    """Labels separated by commas or new lines; blank ones, which typing leaves behind, are dropped."""
    names = [name for name in re.split(r"[,\n]", text or "") if name.strip()]
    if not names:
        raise ValueError("No label was given: type one or more, separated by commas or new lines.")
    if len(names) > most:
        raise ValueError(f"{len(names)} labels were given: this app takes up to {most}.")
    return parse_labels(names)


def check_length(seconds: float | None, limit: float) -> None:
    if seconds is not None and seconds > limit:
        raise ValueError(f"The video is {seconds:.1f} s long: this app takes up to {limit:g} s, so cut it first.")


def length_by_packets(video: str) -> float | None:
    """Seconds from the first to the last packet, found without decoding; None where the file does not say."""
    start, end = math.inf, -math.inf
    with suppress(av.FFmpegError, ValueError, IndexError), av.open(video) as container:  # decoding will say why
        for packet in container.demux(video=0):
            if packet.pts is not None and packet.time_base is not None:
                start = min(start, float(packet.pts * packet.time_base))
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end - start if end > start else None


def see(classify: Any, video: str) -> tuple[torch.Tensor, Any]:
    """The frames of a video that the model gets, uint8 [t, 3, h, w], and the video's metadata.

    A file that breaks off is taken as far as it goes, and who dropped it is told.
    """
    processor = classify.processor.video_processor
    load = partial(
        processor,
        video,
        num_frames=classify.processor.num_frames or classify.model.config.num_frames,
        do_rescale=False,
        do_normalize=False,
        return_metadata=True,
        return_tensors="pt",
        **VIEW,
    )
    try:
        loaded = load(strict=True)
    except VideoDecodeError as error:
        loaded = load(strict=False)  # raises where nothing can be decoded
        gr.Warning(f"{sentence(error, video)} Only these are used.")
    return loaded["pixel_values_videos"][0], loaded["video_metadata"][0]


def score(classify: Any, frames: torch.Tensor, labels: list[str]) -> dict[str, float]:
    """Scores of frames [t, 3, h, w] that are as the model gets them: those of the pipeline for their video."""
    inputs = classify.processor.video_processor(
        frames, do_sample_frames=False, do_resize=False, do_center_crop=False, num_crops=1, return_tensors="pt"
    )
    outputs = classify.forward(dict(inputs.to(classify.dtype)), candidate_labels=tuple(labels))
    return {row["label"]: row["score"] for row in classify.postprocess(outputs, tuple(labels))}


def pictures(frames: torch.Tensor, metadata: Any) -> list[tuple[Image.Image, str]]:
    """Frames [t, 3, h, w] with the times at which they are shown; small ones enlarged pixel by pixel."""
    times = max(1, round(224 / frames.shape[-1]))
    large = frames.repeat_interleave(times, -1).repeat_interleave(times, -2).permute(0, 2, 3, 1).numpy()
    captions = (f"{index / metadata.fps:.2f} s" if metadata.fps else "" for index in metadata.frames_indices)
    return [(Image.fromarray(image), caption) for image, caption in zip(large, captions, strict=True)]


def draw(windows: list[dict[str, Any]]) -> Image.Image:
    file = io.BytesIO()
    plot_timeline(windows).savefig(file, format="png")
    return Image.open(file)


def sentence(error: Exception, video: str | None) -> str:
    """An error for the page: the file's name in place of its path on this machine, and no HTML but our own."""
    message = " ".join(str(error).split())
    return html.escape(message.replace(video, Path(video).name) if video else message)


def build(classify: Any, arguments: Arguments) -> gr.Blocks:
    """The page. It keeps nothing between calls: results depend on a visitor's own video and labels alone."""
    config = classify.model.config
    num_frames = classify.processor.num_frames or config.num_frames

    def on_click(video: str | None, text: str | None, progress=gr.Progress()) -> Iterator[tuple]:  # noqa: B008
        yield None, None, gr.Image(visible=False)  # no old result beside a new error
        try:
            for scores, frames, timeline in answer(classify, arguments, video, text, progress):
                yield scores, frames, gr.Image(timeline, visible=timeline is not None)
        except (ValueError, OSError) as error:
            raise gr.Error(sentence(error, video), print_exception=False) from error

    with gr.Blocks(
        title="MoTE", analytics_enabled=False, delete_cache=(arguments.keep_seconds, arguments.keep_seconds)
    ) as page:
        gr.Markdown(
            "# MoTE: which of these labels fits the video?\n"
            f"The scores are over the labels that you type, and add up to 1. The model sees {num_frames} frames, "
            f"spread over the video; a video of more than {arguments.window:g} s is scored window by window as well. "
            "A video that your browser cannot play can still be classified."
        )
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Video", sources=["upload"], height=260, elem_id="video")
                known = list(config.id2label.values())[:3] if config.training_classes_set else []
                text = gr.Textbox(
                    label="Labels, separated by commas or new lines", lines=3, placeholder="\n".join(known)
                )
                button = gr.Button("Classify", variant="primary")
            with gr.Column():
                scores = gr.Label(label="Scores", elem_id="scores")
        frames = gr.Gallery(
            label="Frames the model saw",
            columns=8,
            height="auto",
            format="png",
            interactive=False,
            buttons=[],
            elem_id="frames",
        )
        timeline = gr.Image(label="Timeline", visible=False, buttons=["download", "fullscreen"], elem_id="timeline")
        button.click(
            on_click,
            [video, text],
            [scores, frames, timeline],
            show_progress_on=scores,
            trigger_mode="always_last",  # a click while a timeline is computed counts once that is done
            api_name="classify",
        )
    return page.queue(max_size=32, default_concurrency_limit=arguments.concurrency)


def load(model: str) -> Any:
    """The zero-shot pipeline of a checkpoint.

    Raises:
        ValueError: Where there is none, naming it.
    """
    try:
        return pipeline("zero-shot-video-classification", model=model)  # type: ignore[call-overload]
    except (ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"--model {model} cannot be loaded: {error}") from error


def main() -> None:
    try:
        parser = HfArgumentParser(Arguments, description=__doc__.splitlines()[0])  # type: ignore[arg-type]
        arguments = parser.parse_args_into_dataclasses()[0]
        page = build(load(arguments.model), arguments)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a container deletes the uploads too
        page.launch(
            share=arguments.share,
            server_port=arguments.port,
            max_file_size=f"{arguments.max_megabytes}mb",
            ssr_mode=False,
            run_history=False,
            footer_links=["api"],
            css=CSS,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
