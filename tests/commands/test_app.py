"""The app: its answers as a function, then as people get them, from a real browser, and as a Space runs it."""

import html
import importlib
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard
from PIL import Image

from modeling_mote.commands.command_line import run_command
from modeling_mote.loading import load_pipeline
from modeling_mote.processing.builders.moving_shapes import COLORS, MOTIONS, SHAPES, encode_mp4, render_clip
from modeling_mote.web_limits import Limits

gr = pytest.importorskip("gradio", reason="Gradio is absent: pip install 'mote-transformers[app]'")

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["red bar growing", "blue star spinning", "green moon blinking"]
CHROMIUM = Path("/usr/bin/chromium")
# Chromium itself asks for nothing from the internet with these.
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")


def film(*classes: str, fps: int = 8) -> bytes:
    """An mp4 file of 2 s of each class."""
    rng = np.random.default_rng(0)
    clips = [render_clip(*name.split(" ", 2), rng, num_frames=2 * fps) for name in classes]
    return encode_mp4(np.concatenate(clips), fps=fps)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("videos")
    files = {
        "red.mp4": film("red bar growing"),
        "blue.mp4": film("blue star spinning"),
        "long.mp4": film("red bar growing", "blue star spinning", "green moon blinking"),
        "over-long.mp4": film(*["red bar growing"] * 6),
        "one-frame.mp4": encode_mp4(render_clip("red", "bar", "growing", np.random.default_rng(0))[:1], fps=8),
        "corrupt.mp4": bytes(range(256)) * 40,
        "empty.mp4": b"",
    }
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    files["still.png"] = picture.getvalue()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: str(folder / name) for name in files}


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory, write_video) -> str:
    """A file that breaks off after some frames."""
    whole = write_video(tmp_path_factory.mktemp("cut") / "cut.mkv", num_frames=40, gop=4)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    return str(whole)


@pytest.fixture(scope="module")
def app() -> ModuleType:
    return importlib.import_module("modeling_mote.web_app")


@pytest.fixture(scope="module")
def classify(shapes_model) -> Any:
    return load_pipeline(str(shapes_model), "cpu")


@pytest.fixture
def answer(app, classify) -> Callable[..., list[tuple]]:
    """`answer(video, text, **arguments)`: all that the page is given."""

    def ask(video: str | None, text: str | None, **arguments: Any) -> list[tuple]:
        limits = Limits(**({"max_seconds": 10.0} | arguments))
        return list(app.answer(classify, video, text, limits, gr.Progress(), window=2.5, stride=0.5))

    return ask


def scores_of(classify: Any, video: str, labels: list[str]) -> dict[str, float]:
    return {row["label"]: row["score"] for row in classify(video, candidate_labels=labels, short_video="loop")}


@pytest.mark.parametrize("video", ["red.mp4", "blue.mp4", "long.mp4", "one-frame.mp4"])
def test_scores_are_the_pipelines(answer, classify, videos, video):
    results = answer(videos[video], "red bar growing, blue star spinning\n\n green moon blinking ,\n")
    expected = scores_of(classify, videos[video], LABELS)
    assert results[0][0] == pytest.approx(expected, abs=1e-5) and list(results[0][0]) == list(expected)


def test_frames_are_what_the_model_saw(answer, classify, videos):
    (_, pictures, _), *_ = answer(videos["red.mp4"], "cyan moon")
    pixels = classify.preprocess(videos["red.mp4"])["pixel_values_videos"][0]  # [t, 3, 32, 32]
    processor = classify.processor.video_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    seen = ((pixels * std + mean) * 255).round().byte()
    assert [caption for _, caption in pictures] == [f"{index / 4:.2f} s" for index in range(8)]
    for frame, (picture, _) in zip(seen, pictures, strict=True):
        shown = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
        assert shown.shape == (3, 224, 224)
        assert torch.equal(shown[:, ::7, ::7], frame)


def test_timeline_for_what_is_longer_than_a_window(answer, videos):
    assert [timeline for *_, timeline in answer(videos["red.mp4"], "cyan moon")] == [None]
    (first, _, none), (second, _, timeline) = answer(videos["long.mp4"], ", ".join(LABELS))
    assert first == second and none is None
    assert isinstance(timeline, Image.Image) and np.asarray(timeline.convert("L")).std() > 5


@pytest.mark.parametrize(
    ("video", "text", "arguments", "message"),
    [
        (None, "yoga", {}, "No video was given: drop one first."),
        ("red.mp4", " ,\n ", {}, "No label was given"),
        ("red.mp4", None, {}, "No label was given"),
        ("red.mp4", "yoga, running\nyoga", {}, "label 'yoga' was given twice"),
        ("red.mp4", "a, b, c", {"max_labels": 2}, "3 labels were given: this app takes up to 2."),
        ("over-long.mp4", "yoga", {}, "The video is 12.0 s long: this app takes up to 10 s"),
        ("corrupt.mp4", "yoga", {}, "corrupt.mp4 cannot be opened as a video"),
        ("empty.mp4", "yoga", {}, "empty.mp4 is empty (0 bytes)."),
        ("red.mp4", "yoga, " + "x" * 100_000, {}, "label 2 of 2, 'xxx"),
        (
            "red.mp4",
            "yoga, jumping jacks",
            {"max_letters": 5},
            "label 2 of 2, 'jumping jacks'…, has 13 letters: at most 5",
        ),
        ("red.mp4", "yoga", {"max_megabytes": 0.001}, "The file has 0 MB: this app takes up to 0.001 MB."),
        (
            "red.mp4",
            "yoga",
            {"max_gigapixels": 6e-5},
            "The video has 16 frames of 64 × 64 pixels: this app takes up to",
        ),
        ("still.png", "yoga", {}, "still.png is a still picture, not a video"),
    ],
)
def test_bad_input_is_one_sentence(app, answer, videos, video, text, arguments, message):
    path = None if video is None else videos[video]
    with pytest.raises(ValueError) as error:
        answer(path, text, **arguments)
    shown = app.sentence(error.value, path)
    assert html.unescape(shown).startswith(message) and "\n" not in shown
    assert str(Path(videos["red.mp4"]).parent) not in shown


def test_over_long_is_refused_without_decoding(app, answer, videos, monkeypatch):
    monkeypatch.setattr(app, "see", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="up to 11.5 s"):
        answer(videos["over-long.mp4"], "yoga", max_seconds=11.5)


def test_no_html_of_the_user(app, answer, videos):
    with pytest.raises(ValueError) as error:
        answer(videos["red.mp4"], "<img src=x>, <img src=x>")
    assert app.sentence(error.value, None).startswith("label &#x27;&lt;img src=x&gt;&#x27; was given twice")


def test_broken_off_video_is_scored_with_a_warning(app, answer, classify, cut_short, monkeypatch):
    warned = []
    monkeypatch.setattr(app.gr, "Warning", warned.append)
    with pytest.warns(UserWarning, match="breaks off"):
        (scores, *_), *_ = answer(cut_short, ", ".join(LABELS))
        assert scores == pytest.approx(scores_of(classify, cut_short, LABELS), abs=1e-5)
    assert len(warned) == 1 and warned[0].startswith("cut.mkv breaks off after ")


def test_people_at_once_get_their_own(answer, classify, videos):
    jobs = [(videos[name], LABELS[: 1 + index % 3]) for index in range(12) for name in ("red.mp4", "blue.mp4")]
    expected = [scores_of(classify, video, labels) for video, labels in jobs]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda job: answer(job[0], ", ".join(job[1]))[0][0], jobs))
    for result, scores in zip(results, expected, strict=True):
        assert result == pytest.approx(scores, abs=1e-5)


REFERENCES = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
    "endless.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n",
    "list.mp4": "ffconcat version 1.0\nfile '{}'\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9999 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("name", REFERENCES)
def test_an_upload_reaches_no_other_file(answer, videos, tmp_path, name):
    """Lists that FFmpeg would follow to another file of this machine, or wait for on the network."""
    (tmp_path / name).write_text(REFERENCES[name].format(videos["red.mp4"]))
    with pytest.raises(ValueError, match=f"{name} cannot be opened as a video"):
        answer(str(tmp_path / name), "yoga")


def test_a_timeline_ends_when_its_time_is_over(app, answer, videos, monkeypatch):
    warned = []
    monkeypatch.setattr(app.gr, "Warning", warned.append)
    (first, _, none), (second, _, timeline) = answer(videos["long.mp4"], ", ".join(LABELS), max_working_seconds=1e-9)
    assert first == second and isinstance(timeline, Image.Image)
    assert warned == ["The timeline ends at 2 s, after 1e-09 s of work."]


def test_names_of_folders_are_pointed_out(app, answer, videos, monkeypatch):
    said = []
    monkeypatch.setattr(app.gr, "Info", said.append)
    answer(videos["red.mp4"], "red-bar-growing, cyan moon")
    assert said == [
        "Labels are read as they are written: did you mean “red bar growing” rather than “red-bar-growing”?"
    ]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", "{}/nothing"], 1, "--model {}/nothing: there is no such folder."),
        ([], 1, "No model is named: pass --model, or set the variable MOTE_MODEL."),
        (["--model", "CLIP"], 1, "is a bare CLIP"),
        (["--window", "0"], 2, "argument --window: 0 is out of range: it must be above 0"),
        (["--max_labels", "-1"], 2, "argument --max_labels: -1 is out of range"),
        (["--port", "70000"], 2, "argument --port: 70000 is out of range: it must be at least 1 and at most 65535"),
    ],
)
def test_bad_arguments_are_one_sentence(capsys, monkeypatch, tmp_path, clip_folder, options, code, message):
    monkeypatch.delenv("MOTE_MODEL", raising=False)
    given = [option.format(tmp_path).replace("CLIP", str(clip_folder)) for option in options]
    assert run_command("app", given) == code
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and message.format(tmp_path) in said


def test_space_installs_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {line for line in project["dependencies"] if not line.startswith("decord")}
    listed = (ROOT / "examples" / "space" / "requirements.txt").read_text().splitlines()
    assert {line for line in listed if not line.startswith("#")} == needed


def test_space_card():
    card = RepoCard.load(ROOT / "examples" / "space" / "README.md", ignore_metadata_errors=False)
    assert card.data.sdk == "gradio" and card.data.app_file == "app.py" and card.data.license == "apache-2.0"
    assert tuple(map(int, card.data.python_version.split("."))) >= (3, 11)
    assert len(card.data.short_description) <= 60  # the Hub refuses longer ones


# --------------------------------------------------------------------------------------------------- a running server


class Server:
    """The app in a process of its own; its files in a folder of its own."""

    def __init__(self, command: list[str], options: list[str], **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command, *options],
            cwd=env.pop("cwd", None),
            env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.stdout:
            self.lines.append(line)
            if "Running on local URL" in line:
                self.url = line.split()[-1]
                break
        assert self.url, "".join(self.lines)

    def stop(self) -> str:
        """Ends it as a container is ended, and gives all that it printed."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=60)
        return "".join(self.lines) + rest


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_as_a_space(shapes_model, videos, tmp_path):
    client = pytest.importorskip("gradio_client")
    space, uploads = tmp_path / "space", tmp_path / "uploads"
    shutil.copytree(ROOT / "examples" / "space", space)
    for source, target in (("modeling_mote", "modeling_mote"), ("processing", "modeling_mote/processing")):
        shutil.copytree(ROOT / source, space / target, ignore=shutil.ignore_patterns("__pycache__"))
    settings = {"MOTE_MODEL": str(shapes_model), "GRADIO_TEMP_DIR": str(uploads), "PYTHONDONTWRITEBYTECODE": ""}
    server = Server([str(space / "app.py")], ["--keep_seconds", "2"], cwd=str(space), **settings)
    try:
        ask = client.Client(server.url, verbose=False, download_files=False)
        for _ in range(2):  # the second time after the first upload is gone
            scores, frames, _ = ask.predict(
                client.handle_file(videos["red.mp4"]), "red bar growing, cyan moon", api_name="/classify"
            )
            assert {row["label"] for row in scores["confidences"]} == {"red bar growing", "cyan moon"}
            assert len(frames) == 8
            deadline = time.monotonic() + 60
            while files_in(uploads) and time.monotonic() < deadline:
                time.sleep(0.5)
            assert not files_in(uploads)
        ask.predict(client.handle_file(videos["blue.mp4"]), "cyan moon", api_name="/classify")
        assert files_in(uploads)
    finally:
        output = server.stop()
    assert not files_in(uploads)
    assert server.process.returncode == 0 and "Traceback" not in output, output
    assert (space / "modeling_mote" / "__pycache__").is_dir()  # the code that ran was the Space's own


@pytest.fixture(scope="module")
def server(shapes_model, tmp_path_factory) -> Iterator[Server]:
    options = ["--model", str(shapes_model), "--window", "2.5", "--stride", "0.5", "--max_seconds", "10"]
    server = Server(["-m", "modeling_mote", "app"], options, GRADIO_TEMP_DIR=str(tmp_path_factory.mktemp("uploads")))
    yield server
    output = server.stop()
    assert "Traceback" not in output, output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is absent: pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)],
        )
        yield browser
        browser.close()


class Visitor:
    """A person with a browser of their own, and what their page asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)
        self.elsewhere: list[str] = []
        self.failed: list[str] = []
        local = (url, "data:", "blob:")
        self.page.on("request", lambda sent: sent.url.startswith(local) or self.elsewhere.append(sent.url))
        self.page.on("response", lambda got: got.status < 400 or self.failed.append(f"{got.status} {got.url}"))
        self.page.on("pageerror", lambda error: self.failed.append(str(error)))
        self.page.goto(url)

    def drop(self, video: str) -> None:
        clear = self.page.locator("#video").get_by_label("Clear")
        if clear.count():
            clear.click()
        with self.page.expect_response(lambda response: "/upload?" in response.url):
            self.page.set_input_files("#video input[type=file]", video)
        self.page.locator("#video video").wait_for(state="attached")

    def click(self, labels: str) -> None:
        self.page.get_by_label("Labels").fill(labels)
        self.page.get_by_role("button", name="Classify").click()

    def scores(self, count: int) -> dict[str, float]:
        """{label: score} as the page shows them, once there are so many and the page is done."""
        self.page.wait_for_function("count => document.querySelectorAll('#scores meter').length == count", arg=count)
        self.page.locator("#frames img").nth(7).wait_for()
        meters = self.page.locator("#scores meter")
        return dict(meters.evaluate_all("all => all.map(m => [m.ariaLabel, Number(m.getAttribute('value'))])"))

    def ask(self, video: str, labels: list[str]) -> dict[str, float]:
        self.drop(video)
        self.click(", ".join(labels))
        return self.scores(len(labels))

    def reads(self, message: str) -> None:
        """Waits for a message, which must be one sentence of ours."""
        self.page.get_by_text(message).wait_for()
        assert "Traceback" not in self.page.inner_text("body")
        assert self.page.locator("#scores meter").count() == 0


@pytest.fixture
def visit(browser, server) -> Iterator[Callable[[], Visitor]]:
    visitors = []

    def come(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, server.url, **options))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.context.close()
        assert not visitor.elsewhere and not visitor.failed


@pytest.mark.slow
def test_upload_in_a_browser(visit, classify, videos):
    visitor = visit()
    fifty = [" ".join(name) for name in itertools.product(COLORS, SHAPES, MOTIONS)][:50]
    for video, chosen in (("red.mp4", LABELS), ("red.mp4", LABELS[:1]), ("blue.mp4", fifty)):
        assert visitor.ask(videos[video], chosen) == pytest.approx(
            scores_of(classify, videos[video], chosen), abs=1e-5
        )
        assert not visitor.page.locator("#timeline img").is_visible()
    frame = visitor.page.locator("#frames img").first.get_attribute("src")
    picture = Image.open(io.BytesIO(visitor.page.request.get(frame).body()))
    first = classify.processor.video_processor(videos["blue.mp4"], do_rescale=False, do_normalize=False)
    shown = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)
    assert torch.equal(shown[:, ::7, ::7], first["pixel_values_videos"][0][0])


@pytest.mark.slow
def test_long_video_gets_a_timeline(visit, videos):
    visitor = visit()
    visitor.ask(videos["long.mp4"], LABELS)
    timeline = visitor.page.locator("#timeline img")
    timeline.wait_for()
    assert timeline.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    visitor.ask(videos["red.mp4"], LABELS[:2])
    timeline.wait_for(state="hidden")


@pytest.mark.slow
def test_messages_in_a_browser(visit, classify, videos, cut_short):
    visitor = visit()
    visitor.click("yoga")
    visitor.reads("No video was given: drop one first.")
    visitor.drop(videos["red.mp4"])
    visitor.click(" ")
    visitor.reads("No label was given: type one or more, separated by commas or new lines.")
    visitor.click("yoga\nrunning, yoga")
    visitor.reads("label 'yoga' was given twice: every label must be distinct")
    visitor.drop(videos["over-long.mp4"])
    visitor.click("yoga")
    visitor.reads("The video is 12.0 s long: this app takes up to 10 s, so cut it first.")
    visitor.drop(videos["corrupt.mp4"])
    visitor.click("yoga")
    visitor.reads("corrupt.mp4 cannot be opened as a video")
    expected = scores_of(classify, videos["blue.mp4"], LABELS)
    assert visitor.ask(videos["blue.mp4"], LABELS) == pytest.approx(expected, abs=1e-5)
    assert visitor.ask(cut_short, LABELS[:2]) == pytest.approx(scores_of(classify, cut_short, LABELS[:2]), abs=1e-5)
    visitor.page.get_by_text("cut.mkv breaks off after").wait_for()


@pytest.mark.slow
def test_two_people_at_once(visit, classify, videos):
    asked = [("red.mp4", LABELS), ("long.mp4", ["yellow cross blinking", "green moon blinking"])]
    people = [visit() for _ in asked]
    for round_ in range(4):
        jobs = asked if round_ % 2 == 0 else asked[::-1]
        for person, (video, _) in zip(people, jobs, strict=True):
            person.drop(videos[video])
        for person, (_, labels) in zip(people, jobs, strict=True):
            person.click(", ".join(labels))
        for person, (video, labels) in zip(people, jobs, strict=True):
            expected = scores_of(classify, videos[video], labels)
            assert person.scores(len(labels)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_picture(browser, tmp_path):
    """The app at work on what `make demo` trains, photographed into the folder that MOTE_PICTURES names."""
    model = Path(os.environ.get("MOTE_MODEL", ROOT / "runs" / "moving_shapes" / "model"))
    if not model.is_dir():
        pytest.skip(f"there is no {model}: make demo, or name a checkpoint by MOTE_MODEL")
    options = {"num_frames": 16, "image_size": 128, "place": (-0.1, -0.2)}
    growing = render_clip("yellow", "star", "growing", np.random.default_rng(0), **options)
    video, picture = tmp_path / "star.mp4", Path(os.environ.get("MOTE_PICTURES", tmp_path)) / "app.png"
    video.write_bytes(encode_mp4(np.concatenate([growing, growing[::-1], growing]), fps=4))
    server = Server(["-m", "modeling_mote", "app"], ["--model", str(model)], GRADIO_TEMP_DIR=str(tmp_path / "uploads"))
    try:
        visitor = Visitor(browser, server.url, viewport={"width": 1180, "height": 800})
        labels = [f"yellow star {motion}" for motion in ("growing", "shrinking", "moving left", "spinning")]
        visitor.drop(str(video))
        visitor.click("\n".join(labels))
        visitor.scores(len(labels))
        visitor.page.locator("#timeline img").wait_for()
        visitor.page.wait_for_function("[...document.images].every(image => image.complete)")
        visitor.page.wait_for_function("document.querySelector('#video video').readyState >= 2")
        visitor.page.screenshot(path=picture, full_page=True, animations="disabled")
        visitor.context.close()
    finally:
        server.stop()
    with Image.open(picture) as shown:
        assert shown.width == 1180 and np.asarray(shown.convert("L")).std() > 10
    assert picture.stat().st_size < 300_000
