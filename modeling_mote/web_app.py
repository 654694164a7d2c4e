"""A web app: drop a video, type labels, get scores, a timeline and the frames that the model saw.

>>> build(load_pipeline("org/mote-vitb16")).launch(css=CSS)

Needs Gradio (`pip install "mote-transformers[app]"`) and no internet. What visitors may ask for has limits.
"""

import html
import io
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from .processing import VideoDecodeError, classify_windows, parse_labels, plot_timeline
from .processing.class_names import unlike_words
from .processing.video_size import measure_video
from .web_limits import Limits

# One view of a video, and of a short one repeated frames, whatever the checkpoint's processor would do.
VIEW: dict[str, Any] = {"num_clips": 1, "num_crops": 1, "short_video": "loop"}

# Trimming is hidden: it would fetch FFmpeg from the internet. Hundreds of scores scroll.
CSS = """
#video [aria-label="Trim video to selection"] { display: none }
#scores { max-height: 600px; overflow-y: auto }
#frames .grid-wrap { min-height: 0; padding-top: 2rem }
#timeline .image-container { padding-top: 1.5rem }
"""


def answer(
    classify: Any,
    video: str | None,
    text: str | None,
    limits: Limits,
    progress: Any,
    window: float = 4.0,
    stride: float = 1.0,
) -> Iterator[tuple[dict[str, float], list[tuple[Image.Image, str]], Image.Image | None]]:
    """What the page shows for one video and one text of labels, twice if the timeline comes later.

    Args:
        classify: The zero-shot pipeline; calls at the same time may share it.
        video: Path of the upload.
        text: Labels, separated by commas or new lines.
        limits: What is refused.
        progress: A `gr.Progress`.
        window: Seconds of a window of the timeline.
        stride: Seconds from one window to the next.

    Yields:
        {label: score} over all labels, the frames [h, w] that they are of with their times, and the timeline: None
        until it is drawn, and for a video of at most one window.

    Raises:
        ValueError: If there is no video, no label or a repeated one, for what the limits refuse, and for a video that
            cannot be decoded.
    """
    if video is None:
        raise ValueError("No video was given: drop one first.")
    labels = read_labels(text, limits)
    check_size(video, limits)
    frames, metadata = see(classify, video)
    seconds = metadata.duration or 0.0
    check_seconds(seconds, limits)
    scores, shown = score(classify, frames, labels), pictures(frames, metadata)
    yield scores, shown, None
    if seconds > window:
        windows = classify_windows(classify, video, labels, window=window, stride=stride, **VIEW)
        total = 1 + math.ceil((seconds - window) / stride)
        in_time = until(windows, limits.max_working_seconds)
        yield scores, shown, draw(list(progress.tqdm(in_time, total=total, desc="Timeline", unit="windows")))


def until(windows: Iterator[dict[str, Any]], seconds: float) -> Iterator[dict[str, Any]]:
    """The windows that are there in time; a visitor is told where they end."""
    end = time.monotonic() + seconds
    for window in windows:
        yield window
        if time.monotonic() > end:
            gr.Warning(f"The timeline ends at {window['end']:.0f} s, after {seconds:g} s of work.")
            return


def read_labels(text: str | None, limits: Limits) -> list[str]:
    """Labels separated by commas or new lines; blank ones, which typing leaves behind, are dropped."""
    names = [name for name in re.split(r"[,\n]", text or "") if name.strip()]
    if not names:
        raise ValueError("No label was given: type one or more, separated by commas or new lines.")
    if len(names) > limits.max_labels:
        raise ValueError(f"{len(names)} labels were given: this app takes up to {limits.max_labels}.")
    labels = parse_labels(names, limits.max_letters)
    for name, words in unlike_words(labels).items():
        gr.Info(html.escape(f"Labels are read as they are written: did you mean “{words}” rather than “{name}”?"))
        break
    return labels


def check_size(video: str, limits: Limits) -> None:
    """Refuse a file that takes too long, before anything of it is decoded."""
    megabytes = Path(video).stat().st_size / 1e6
    if megabytes > limits.max_megabytes:
        raise ValueError(f"The file has {megabytes:.0f} MB: this app takes up to {limits.max_megabytes:g} MB.")
    size = measure_video(video)
    check_seconds(size.seconds, limits)
    if size.gigapixels > limits.max_gigapixels:
        raise ValueError(
            f"The video has {size.num_frames} frames of {size.width} × {size.height} pixels: this app takes up to "
            f"{limits.max_gigapixels:g} billion pixels, so make it smaller or cut it first."
        )


def check_seconds(seconds: float, limits: Limits) -> None:
    if seconds > limits.max_seconds:
        most = f"{limits.max_seconds:g}"
        raise ValueError(f"The video is {seconds:.1f} s long: this app takes up to {most} s, so cut it first.")


def see(classify: Any, video: str) -> tuple[torch.Tensor, Any]:
    """The frames of a video that the model gets, uint8 [t, 3, h, w], and the video's metadata.

    A file that breaks off is taken as far as it goes, and who dropped it is told.
    """
    processor = classify.processor.video_processor
    view = VIEW | {"num_frames": processor.frames_per_clip(classify.model.config) or classify.model.config.num_frames}
    try:
        views, metadata = processor.read(video, video, options=processor.reading_options(strict=True, **view))
    except VideoDecodeError as error:  # without `strict`, it raises if nothing can be decoded
        views, metadata = processor.read(video, video, options=processor.reading_options(strict=False, **view))
        gr.Warning(f"{sentence(error, video)} Only these are used.")
    return views[0], metadata


def score(classify: Any, frames: torch.Tensor, labels: list[str]) -> dict[str, float]:
    """Scores of frames [t, 3, h, w] that are as the model gets them: those of the pipeline for their video."""
    pixels = classify.processor.video_processor.normalize_pixels(frames[None].to(classify.device)).to(classify.dtype)
    outputs = classify.forward({"pixel_values_videos": pixels}, candidate_labels=tuple(labels))
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


def build(
    classify: Any,
    limits: Limits = Limits(),  # noqa: B008  it is frozen
    *,
    window: float = 4.0,
    stride: float = 1.0,
    concurrency: int = 2,
    keep_seconds: int = 3600,
) -> gr.Blocks:
    """The page. It keeps nothing between calls: results depend on a visitor's own video and labels alone.

    Args:
        classify: The zero-shot pipeline.
        limits: What visitors may ask for.
        window: Seconds of a window; longer videos get a timeline of them.
        stride: Seconds from one window to the next.
        concurrency: Videos classified at a time; the others queue.
        keep_seconds: Age at which uploads and results are deleted.

    Returns:
        The page, to `launch` with `css=CSS` and `max_file_size=`.
    """
    config = classify.model.config
    num_frames = classify.processor.video_processor.frames_per_clip(config) or config.num_frames

    def on_click(video: str | None, text: str | None, progress=gr.Progress()) -> Iterator[tuple]:  # noqa: B008
        yield None, None, gr.Image(visible=False)  # no old result beside a new error
        try:
            for scores, frames, timeline in answer(classify, video, text, limits, progress, window, stride):
                yield scores, frames, gr.Image(timeline, visible=timeline is not None)
        except (ValueError, OSError) as error:
            raise gr.Error(sentence(error, video), print_exception=False) from error
        except Exception as error:  # whatever escapes a decoder is this video's, and the server's log has it
            raise gr.Error(f"The video can't be classified ({type(error).__name__}).") from error

    with gr.Blocks(title="MoTE", analytics_enabled=False, delete_cache=(keep_seconds, keep_seconds)) as page:
        gr.Markdown(
            "# MoTE: which of these labels fits the video?\n"
            f"The scores are over the labels that you type, and add up to 1. The model sees {num_frames} frames, "
            f"spread over the video; a video of more than {window:g} s is scored window by window as well. "
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
    return page.queue(max_size=32, default_concurrency_limit=concurrency)


__all__ = ["CSS", "answer", "build"]
