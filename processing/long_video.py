"""Scores over time: sliding windows over a video of any length, each frame encoded once.

>>> classify = pipeline("zero-shot-video-classification", model="org/mote-vitb16")
>>> windows = list(classify_windows(classify, "match.mp4", ["serving", "celebrating", "resting"]))
>>> merge_windows(windows)
[{'start': 0.0, 'end': 6.5, 'label': 'resting', 'score': 0.81}, {'start': 6.5, 'end': 12.5, 'label': 'serving', ...
>>> plot_timeline(windows).savefig("timeline.png")
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .answers import AnswerOptions
from .pipeline_mote import ZeroShotVideoClassificationPipeline
from .video_source import Source
from .windows import WINDOW_OPTIONS, WindowEncoder, WindowReader, check_window

OPTIONS = ("prompts", "examples", "function_to_apply", "unknown", "multi_label", *WINDOW_OPTIONS)


def classify_windows(
    classify: ZeroShotVideoClassificationPipeline,
    video: Any,
    candidate_labels: Iterable[str] | str | None,
    *,
    window: float = 4.0,
    stride: float = 1.0,
    batch_size: int = 8,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Score a long video against labels, window by window, in one pass over the file.

    Windows start at 0, `stride`, 2 · `stride`, ... seconds. A window [start, end) has the frames that are shown first
    within it, by the file's time stamps, and scores as `classify(decode_video(video, start=start, end=end)[0])` does.
    The first window that reaches the end of the video is the last one, and ends there: every frame is in some window
    (if `stride` is at most `window`), only the last is shorter, and a video shorter than `window` is one window. A
    window in which no frame begins is left out.

    Memory does not grow with the video (a URL's apart, which is fetched whole): only the resized frames of the current
    window and the batch are kept. A frame that several windows sample goes through the image tower once.

    Args:
        classify: The zero-shot pipeline.
        video: A path, an http(s) URL, the bytes of a file, a binary file or a `{"path", "bytes"}` dict.
        candidate_labels: Names of the classes, a list or a comma-separated string; None for those that the pipeline
            was made with.
        window: Length of a window, in seconds.
        stride: From the start of one window to that of the next, in seconds.
        batch_size: Windows scored at a time.
        **options: `prompts`, `examples`, `num_frames`, `num_clips`, `num_crops`, `sampling`, `short_video` and
            `strict`, and of an answer's options `function_to_apply`, `unknown` and `multi_label`, as the pipeline
            takes them; its own by default.

    Returns:
        An iterator over the windows, in order: `{"start", "end", "scores", "similarities", "thumbnail"}`, times in
        seconds, `scores` {label: score} over all labels, and "none of these" if `unknown` is set, best first, summing
        to 1 unless the options say otherwise, `similarities` {label: cosine}, None for "none of these", `thumbnail`
        uint8 [h, w, 3], RGB, the middle frame with at most 128 pixels a side.

    Raises:
        ValueError: For bad labels and options, and a window of fewer frames than `num_frames` where `short_video` is
            "error".
        VideoDecodeError: If nothing can be decoded, or the file breaks off and `strict` is set. Without `strict`, the
            windows of what can be decoded are given, and one warning.
        FileNotFoundError: If there is no file at the path (a `VideoDecodeError` too).
        TypeError: If `video` is none of the above kinds.
    """
    reader, encoder, forward, answering = prepare_windows(
        classify, candidate_labels, options, OPTIONS, "classify_windows", window, stride, batch_size, thumbnails=True
    )
    answering = replace(answering, top_k=None, threshold=None, coverage=None)  # a window has all labels
    return _classify(classify, reader, encoder, reader.open(video), forward, answering)


def prepare_windows(
    classify: ZeroShotVideoClassificationPipeline,
    candidate_labels: Iterable[str] | str | None,
    options: Mapping[str, Any],
    known: Sequence[str],
    caller: str,
    window: float,
    stride: float,
    batch_size: int = 1,
    thumbnails: bool = False,
) -> tuple[WindowReader, WindowEncoder, dict[str, Any], AnswerOptions]:
    """What scores the windows of a video: how they are read and encoded, and how `classify.rank` answers.

    Args:
        classify: The pipeline, whose options hold where none is given.
        candidate_labels: Names of the classes; None for those that the pipeline was made with.
        options: Those that were given.
        known: Names of those that are taken.
        caller: The function that takes them.
        window: As in `WindowReader`, as are the others.
        stride: From one window to the next, in seconds.
        batch_size: Windows at a time.
        thumbnails: Whether to make them.

    Returns:
        The reader, the encoder, and the keyword arguments and answer options of `rank`.

    Raises:
        ValueError: For bad labels and options.
    """
    check_window(window, stride, batch_size)
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"unknown argument {unknown[0]!r} of {caller}: it takes {', '.join(known)}")
    processing, forward, post = classify._sanitize_parameters(candidate_labels=candidate_labels, **options)
    processing, forward = classify._preprocess_params | processing, classify._forward_params | forward
    answering = (classify._postprocess_params | post).get("options", AnswerOptions())
    if "candidate_labels" not in forward:
        raise ValueError("candidate_labels is missing: pass a list of names or a comma-separated string")
    processor = classify.processor.video_processor
    own_frames = processor.frames_per_clip(classify.model.config)
    num_frames = processing.get("num_frames", own_frames or classify.model.config.num_frames)
    reader = WindowReader(processor, num_frames, window, stride, batch_size, processing, thumbnails)
    return reader, WindowEncoder(classify.model, processor, num_frames), forward, answering


def _classify(
    classify: Any,
    reader: WindowReader,
    encoder: WindowEncoder,
    source: Source,
    forward: Mapping[str, Any],
    answering: AnswerOptions,
) -> Iterator[dict[str, Any]]:
    for windows in reader.read(source):
        answers = classify.rank({"frame_embeds": encoder(windows)}, answering, **forward)
        for (start, end), ranked, thumbnail in zip(windows.spans, answers, windows.thumbnails, strict=True):
            yield {
                "start": start,
                "end": end,
                "scores": {row["label"]: row["score"] for row in ranked},
                "similarities": {row["label"]: row["similarity"] for row in ranked},
                "thumbnail": thumbnail,
            }


__all__ = ["classify_windows", "prepare_windows"]
