"""A web app: drop a video, type labels, get scores, segments and a timeline, the frames the model saw, and why.

>>> answers = Answers(load_pipeline("org/mote-vitb16"), Limits())
>>> build(answers, "org/mote-vitb16").launch(css=CSS)

Needs Gradio (`pip install "mote-transformers[app]"`) and no internet. What visitors may ask for has limits.
"""

import html
import io
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio as gr
import numpy as np
import torch
from PIL import Image

from .explanation import explain
from .processing.builders.moving_shapes import COLORS, MOTIONS, SHAPES, class_name, encode_mp4, render_clip
from .processing.class_names import to_words
from .processing.label_sets import read_label_file
from .processing.limits import RefusedError, read_candidates
from .processing.sources import find_videos
from .processing.timeline import plot_timeline
from .processing.video_source import HTTP
from .web_answers import VIEW, Answer, Answers, OutOfTimeError, match_examples
from .web_camera import CameraWindows, read_picture
from .web_http import describe_limits

SHOWN = 20  # labels as bars; the others are in a list that can be searched
SHOWN_SEGMENTS = 100
MOST_EXAMPLES, EXAMPLE_LABELS = 6, 8
PICTURE_SECONDS, CAMERA_SECONDS = 0.1, 600  # from one picture of a webcam to the next; until it has to start again
CAMERA = {"width": {"ideal": 640}, "height": {"ideal": 480}}  # what the browser is asked for

CSS = """
#result { min-height: 12rem; padding: .75rem; border: 1px solid var(--border-color-primary); border-radius: 8px }
#result .problem { border-left: 4px solid #d33; padding: .5rem .75rem; margin: .25rem 0; font-weight: 600 }
#result .note { border-left: 4px solid #e69f00; padding: .25rem .75rem; margin: .5rem 0 }
#result h3 { margin: .25rem 0 .75rem; font-size: 1.3rem; overflow-wrap: anywhere }
#result table { width: 100%; border-collapse: collapse; margin: .25rem 0 }
#result th, #result td { padding: .2rem .4rem; text-align: left; vertical-align: middle }
#result td { overflow-wrap: anywhere; border: 0 }
#result td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
#result .bar { width: 30% }
#result meter { width: 100%; height: .9rem }
#result details { margin-top: .75rem }
#result details div { max-height: 20rem; overflow-y: auto }
#result input[type=search] { width: 100%; padding: .3rem; border: 1px solid var(--border-color-primary) }
#preview video { max-height: 260px; width: 100%; background: #111; border-radius: 8px }
#frames .grid-wrap { min-height: 0; padding-top: 2rem }
#timeline .image-container, #why .image-container { padding-top: 1.5rem }
"""

# The list of all labels, as a visitor types what to look for.
SEARCH = (
    "const words = this.value.toLowerCase(); for (const row of this.parentNode.querySelectorAll('tr')) "
    "row.hidden = !row.textContent.toLowerCase().includes(words)"
)
UNPLAYABLE = (
    "const say = document.createElement('p'); say.textContent = 'Your browser cannot play this video; "
    "it can still be classified.'; this.replaceWith(say)"
)
# On a phone the result is below the button.
SCROLL = "() => document.querySelector('#result').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


class Example(NamedTuple):
    """A video to click, and the labels that come with it."""

    video: str
    labels: tuple[str, ...]
    name: str


# ---------------------------------------------------------------------------------------------------------- examples


def draw_examples(id2label: Mapping[int, str], folder: Path) -> list[Example]:
    """Clips of moving shapes, for a model that was trained on them; none for another.

    Args:
        id2label: The classes that the model was trained on.
        folder: Where the files go.
    """
    known = {class_name(*each): each for each in _all_shapes()}
    names = list(id2label.values())
    if not names or any(name not in known for name in names):
        return []
    rng = np.random.default_rng(0)
    chosen = names[:: max(1, len(names) // 4)][:4]
    films = {name: [known[name]] for name in chosen[:3]} | {"several in a row": [known[name] for name in chosen]}
    examples = []
    for title, film in films.items():
        clips = [render_clip(*each, rng, image_size=128) for each in film]
        path = folder / f"{title.replace(' ', '_')}.mp4"
        path.write_bytes(encode_mp4(np.concatenate(clips), fps=8))
        others = [name for name in names if name not in chosen][:: max(1, len(names) // 4)]
        examples.append(Example(str(path), tuple([*chosen, *others][:EXAMPLE_LABELS]), title))
    return examples


def _all_shapes() -> Iterator[tuple[str, str, str]]:
    return ((color, shape, motion) for color in COLORS for shape in SHAPES for motion in MOTIONS)


def find_examples(source: str, folder: Path) -> list[Example]:
    """Videos of a folder, one of each of its folders, whose names are the labels.

    Args:
        source: The folder.
        folder: Where copies go: the page gives away no other file.

    Raises:
        ValueError: If there is no video.
    """
    firsts: dict[str, str] = {}
    for file in find_videos([source]).files:
        firsts.setdefault(to_words(Path(file).parent.name), file)
    labels = tuple(firsts)[:EXAMPLE_LABELS]
    examples = []
    for number, (name, file) in enumerate(list(firsts.items())[:MOST_EXAMPLES]):
        (folder / str(number)).mkdir()
        examples.append(Example(shutil.copy(file, str(folder / str(number))), labels, name))
    return examples


# ---------------------------------------------------------------------------------------------------------- what shows


def show(answer: Answer, problem: str | None = None) -> str:
    """The panel of an answer: what is best, then notes, segments, scores, all safe to show."""
    parts = [show_problem(problem)] if problem else []
    if answer.windows:
        parts.append(_show_segments(answer.segments))
        parts.append("<h4>Mean over the windows</h4>")
    elif answer.num_windows:
        parts.append(f"<p>{answer.seconds:.1f} s of video, window by window …</p>")
    elif answer.rows:
        parts.append(f"<h3>{html.escape(answer.rows[0]['label'])}</h3>")
    parts[1 if problem else 0 : 0] = [f"<p class=note>{html.escape(note)}</p>" for note in answer.notes]
    if answer.rows:
        parts.append(_show_scores(answer.rows))
    return "".join(parts)


def show_problem(message: str) -> str:
    """A problem, which stays until something else is asked."""
    return f"<p class=problem role=alert>{html.escape(message)}</p>"


def percent(score: float) -> str:
    """`12.3 %`, and as many digits as a small score needs, to a hundred-thousandth."""
    if 0 < score < 1e-5:
        return "< 0.001 %"
    return f"{100 * score:.1f} %" if score >= 0.001 or not score else f"{100 * score:.2g} %"


def _show_segments(segments: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td class=number>{each['start']:.1f} – {each['end']:.1f} s</td><td>{html.escape(each['label'])}</td>"
        f"<td class=number>{percent(each['score'])}</td></tr>"
        for each in segments[:SHOWN_SEGMENTS]
    )
    more = f"<p>… and {len(segments) - SHOWN_SEGMENTS} more</p>" if len(segments) > SHOWN_SEGMENTS else ""
    return f"<h3>What happens when</h3><table class=segments>{rows}</table>{more}"


def _show_scores(rows: Sequence[Mapping[str, Any]]) -> str:
    best = max(row["score"] for row in rows) or 1.0
    full = 1.0 if best > 0.2 else best  # of hundreds of labels, each has little
    bars = "".join(
        f"<tr><td>{html.escape(row['label'])}</td><td class=bar><meter max={full:.6g} value={row['score']:.6g} "
        f'aria-label="{html.escape(row["label"])}"></meter></td><td class=number>{percent(row["score"])}</td></tr>'
        for row in rows[:SHOWN]
    )
    table = f"<table class=scores>{bars}</table>"
    if len(rows) <= SHOWN:
        return table
    everything = "".join(
        f"<tr><td class=number>{place}</td><td>{html.escape(row['label'])}</td>"
        f"<td class=number>{percent(row['score'])}</td></tr>"
        for place, row in enumerate(rows, start=1)
    )
    return (
        f"{table}<details><summary>All {len(rows)} labels</summary>"
        f'<input type=search placeholder="Search the labels" aria-label="Search the labels" oninput="{SEARCH}">'
        f"<div><table>{everything}</table></div></details>"
    )


def preview(video: str | None) -> str:
    """A player; one that says so if the browser can't play the file."""
    if video is None:
        return ""
    return f'<video controls muted playsinline src="/gradio_api/file={quote(video)}" onerror="{UNPLAYABLE}"></video>'


def pictures(frames: np.ndarray, times: Sequence[float | None]) -> list[tuple[Image.Image, str]]:
    """Frames uint8 [t, 3, h, w] with the times at which they are shown; small ones enlarged pixel by pixel."""
    factor = max(1, round(224 / frames.shape[-1]))
    large = frames.repeat(factor, -1).repeat(factor, -2).transpose(0, 2, 3, 1)
    captions = ("" if seconds is None else f"{seconds:.2f} s" for seconds in times)
    return [(Image.fromarray(image), caption) for image, caption in zip(large, captions, strict=True)]


def _draw(figure: Any) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)


def csv_text(file: str | None, text: str | None) -> str:
    """Labels of a file, one of names a line or a CSV `name,description`, as they would be typed."""
    if file is None:
        return text or ""
    labels = read_label_file(file)
    lines = []
    for name in labels.classes:
        texts = labels.descriptions.get(name, ())
        lines += [f"{name}: {each}" for each in texts] or [name]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ the page


def tidy(upload: gr.File) -> gr.File:
    """A component that gives paths, and leaves no empty temporary file behind for each, as Gradio's own way does."""

    def preprocess(payload: Any) -> Any:
        if payload is None:
            return None
        return payload.path if upload.file_count == "single" else [each.path for each in payload]

    upload.preprocess = preprocess  # type: ignore[method-assign]  # a subclass would need a frontend of its own
    return upload


class Page:
    """What happens when a visitor clicks. It keeps nothing between clicks.

    Args:
        answers: What answers.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers, self.limits = answers, answers.limits

    def answer(
        self, video: str | None, text: str | None, examples: list[str] | None, progress: Any
    ) -> Iterator[tuple]:
        """The panel, the frames and the timeline, more and more of them; a problem is shown in the panel."""
        hidden, answer = gr.Image(visible=False), None
        yield "", None, hidden, gr.Image(visible=False)  # no old result beside a new error
        try:
            progress(0, desc="Reading the video")
            for answer in self._answers(video, text, examples):
                if answer.num_windows:
                    done = (len(answer.windows), answer.num_windows)
                    progress(done, desc="Scoring window by window", unit="windows")
                yield show(answer), pictures(answer.frames, answer.times), hidden, gr.Image(visible=False)
        except OutOfTimeError as error:
            if answer is None or not answer.windows:
                yield show_problem(str(error)), None, hidden, hidden
                return
            end, limit = answer.windows[-1]["end"], self.limits.max_working_seconds
            answer.notes.append(f"The result ends at {end:.0f} s, after {limit:g} s of work.")
        except (ValueError, OSError) as error:
            yield show_problem(" ".join(str(error).split())), None, hidden, hidden
            return
        if answer is not None and answer.windows:
            timeline = gr.Image(_draw(plot_timeline(answer.windows)), visible=True)
            yield show(answer), pictures(answer.frames, answer.times), timeline, hidden

    def _answers(self, video: str | None, text: str | None, examples: Sequence[str] | None = None) -> Iterator[Answer]:
        if video is None:
            raise RefusedError("No video was given: drop one first.")
        candidates = read_candidates(text, self.limits)
        yield from self.answers(video, candidates, examples=match_examples(examples or (), candidates))

    def watch(self, payload: Any, text: str | None, camera: CameraWindows | None) -> tuple[Any, CameraWindows | None]:
        """The panel, if a window of the webcam is complete with a picture, and what is kept until the next one."""
        try:
            picture, candidates = read_picture(payload), read_candidates(text, self.limits)
            if picture is None:
                return gr.skip(), camera
            camera = camera or CameraWindows(self.answers)
            answer = camera.add(picture, time.monotonic(), candidates)
        except (ValueError, OSError) as error:
            return show_problem(" ".join(str(error).split())), None
        return (gr.skip() if answer is None else show(answer)), camera

    def why(
        self, video: str | None, text: str | None, label: str | None, examples: list[str] | None
    ) -> tuple[Any, str]:
        """The picture of `explain` for a label, the best one by text if none is named; and a problem.

        Examples are left out, which the picture's caption says.
        """
        try:
            if video is None:
                raise RefusedError("No video was given: drop one first.")
            candidates = read_candidates(text, self.limits)
            frames = torch.from_numpy(self.answers.see(video).frames)
            wanted = (label or "").strip() or None
            reading = VIEW | {"num_frames": self.answers.num_frames}
            why = explain(self.answers.classify, frames, wanted, dict(candidates), **reading)
        except (ValueError, OSError) as error:
            return gr.Image(visible=False), show_problem(" ".join(str(error).split()))
        caption = f"Why “{why.label}”" + (", by its text, without the example clips" if examples else "")
        return gr.Image(_draw(why.plot()), visible=True, label=caption), ""

    def classify(self, video: str, labels: str) -> dict[str, Any]:
        """Score a video file against labels.

        Args:
            video: The video file.
            labels: Labels with commas or line breaks between them; a line `name: description` describes one.

        Returns:
            `scores`, a list of {label, score, similarity}, best first; `segments`, for a video longer than a window, a
            list of {start, end, label, score}; and `notes` on what to know about the file.
        """
        try:
            answer = deque(self._answers(video, labels), maxlen=1)[0]
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(" ".join(str(error).split())), print_exception=False) from error
        return {"scores": answer.rows, "segments": answer.segments, "notes": answer.notes}

    def classify_url(self, url: str, labels: str) -> dict[str, Any]:
        """Score the video at a public http(s) address against labels.

        Args:
            url: Address of the video file.
            labels: Labels with commas or line breaks between them; a line `name: description` describes one.

        Returns:
            As `classify`.
        """
        if not url.startswith(HTTP):
            raise gr.Error("url must be the http(s) address of a video.", print_exception=False)
        return self.classify(url, labels)


def _as_sent(payload: Any) -> Any:
    """A webcam's picture as the browser sent it: `Page.watch` opens it, within limits."""
    return payload


def build(answers: Answers, model_name: str, examples: Sequence[Example] = (), keep_seconds: int = 3600) -> gr.Blocks:
    """The page. Results depend on a visitor's own video and labels alone.

    It keeps nothing between calls but the last window of a webcam that runs.

    Args:
        answers: What answers.
        model_name: What the page calls the model.
        examples: Videos to click, in a folder of temporary files.
        keep_seconds: Age at which uploads and results are deleted.

    Returns:
        The page, to `launch` with `css=CSS` and `max_file_size=`.
    """
    page, config = Page(answers), answers.classify.model.config
    none = ' and "none of these"' if answers.classify.calibration is not None else ""
    known = list(config.id2label.values())[:3] if config.training_classes_set else []

    def on_click(
        video: str | None,
        text: str | None,
        shown: list[str] | None,
        progress=gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple]:
        yield from page.answer(video, text, shown, progress)

    with gr.Blocks(title="MoTE", analytics_enabled=False, delete_cache=(keep_seconds, keep_seconds)) as blocks:
        gr.Markdown(
            "# MoTE: which of these labels fits the video?\n"
            f"Model: **{html.escape(model_name)}**, {answers.num_frames} frames per clip. The scores are over the "
            f"labels that you type{none}, and add up to 1. A video of more than {answers.window:g} s is scored in "
            f"windows of {answers.window:g} s. {describe_limits(answers.limits)}"
        )
        with gr.Row():
            with gr.Column():
                with gr.Tab("Video"):
                    types = ["video", ".mkv", ".avi", ".ts", ".y4m"]
                    video = tidy(gr.File(label="Video", file_types=types, height=140, elem_id="video"))
                    player = gr.HTML(elem_id="preview")
                with gr.Tab("Webcam"):
                    gr.Markdown(f"Scored every {answers.stride:g} s, over the last {answers.window:g} s.")
                    # Not mirrored: to the model, left and right are what they are in files.
                    webcam = gr.WebcamOptions(mirror=False, constraints={"video": CAMERA})
                    camera = gr.Image(
                        sources=["webcam"], streaming=True, webcam_options=webcam, show_label=False, elem_id="camera"
                    )
                    camera.preprocess = _as_sent  # type: ignore[method-assign]
                    kept = gr.State(None, time_to_live=keep_seconds)
                text = gr.Textbox(
                    label="Labels, separated by commas or new lines",
                    info="A line “name: description” says what a label looks like.",
                    lines=3,
                    max_lines=12,
                    placeholder="\n".join(known),
                )
                with gr.Row():
                    button = gr.Button("Classify", variant="primary")
                    file = gr.UploadButton("Labels from a file", file_types=[".csv", ".txt"], size="md")
                with gr.Accordion("Example clips of your labels", open=False):
                    gr.Markdown("Each named after its label, such as `archery 1.mp4`. A few per label help most.")
                    shown = tidy(gr.File(show_label=False, file_count="multiple", height=120, elem_id="shown"))
                if examples:
                    gr.Markdown("Or click an example:")
                    with gr.Row(elem_id="examples"):
                        for example in examples:
                            values = (example.video, "\n".join(example.labels))
                            gr.Button(example.name, size="sm", min_width=120).click(
                                lambda values=values: values, None, [video, text], api_visibility="private"
                            )
            with gr.Column():
                result = gr.HTML(elem_id="result")
                with gr.Row():
                    label = gr.Textbox(show_label=False, placeholder="the best label", container=False)
                    ask = gr.Button("Why?", elem_id="ask")
                problem = gr.HTML()
        why = gr.Image(label="Why", visible=False, buttons=["download", "fullscreen"], elem_id="why")
        timeline = gr.Image(label="Timeline", visible=False, buttons=["download", "fullscreen"], elem_id="timeline")
        frames = gr.Gallery(
            label="Frames the model saw, of the whole video",
            columns=8,
            height="auto",
            format="png",
            interactive=False,
            buttons=[],
            elem_id="frames",
        )
        camera.stream(
            page.watch,
            [camera, text, kept],
            [result, kept],
            show_progress="hidden",
            stream_every=PICTURE_SECONDS,
            time_limit=CAMERA_SECONDS,
            concurrency_limit=answers.concurrency,
            api_visibility="private",
        )
        video.change(preview, video, player, show_progress="hidden", api_visibility="private")
        button.click(None, js=SCROLL)
        button.click(
            on_click,
            [video, text, shown],
            [result, frames, timeline, why],
            show_progress_on=result,
            trigger_mode="always_last",  # a click while a timeline is computed counts once that is done
            api_visibility="private",
        )
        ask.click(
            page.why, [video, text, label, shown], [why, problem], show_progress_on=ask, api_visibility="private"
        )
        file.upload(csv_text, [file, text], text, api_visibility="private")
        address, found = gr.Textbox(visible=False), gr.JSON(visible=False)
        gr.Button(visible=False).click(
            page.classify_url,
            [address, text],
            found,
            api_name="classify_url",
            api_description=page.classify_url.__doc__,
        )
        gr.Button(visible=False).click(
            page.classify,
            [video, text],
            found,
            api_name="classify",
            api_description=page.classify.__doc__,
        )
    return blocks.queue(max_size=32, default_concurrency_limit=answers.concurrency)


def examples_of(answers: Answers, source: str | None) -> list[Example]:
    """The videos to click: of a folder, or drawn if the model knows moving shapes; copies in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="mote-examples-"))
    if source is not None:
        return find_examples(source, folder)
    config = answers.classify.model.config
    return draw_examples(config.id2label if config.training_classes_set else {}, folder)


__all__ = ["CSS", "Example", "build", "examples_of"]
