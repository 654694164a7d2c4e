"""The app: its answers as a function, then as people get them, from a real browser, and as a Space runs it."""

import ast
import asyncio
import base64
import importlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from huggingface_hub import RepoCard
from PIL import Image

from modeling_mote.commands.command_line import run_command
from modeling_mote.loading import load_pipeline
from modeling_mote.processing import classify_windows, fit_calibration, merge_windows
from modeling_mote.processing.builders.moving_shapes import COLORS, MOTIONS, SHAPES, encode_mp4, render_clip
from modeling_mote.processing.limits import Limits, RefusedError, read_candidates
from modeling_mote.web_answers import (
    Answer,
    Answers,
    Job,
    OutOfTimeError,
    VisitorReader,
    match_examples,
)

pytest.importorskip("gradio", reason="Gradio is absent: pip install 'mote-transformers[app]'")

from modeling_mote import web_app, web_camera  # noqa: E402
from modeling_mote.web_camera import CameraWindows  # noqa: E402
from modeling_mote.web_http import http_routes  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["red bar growing", "blue star spinning", "green moon blinking"]
CHROMIUM = Path("/usr/bin/chromium")
# Chromium itself asks for nothing from the internet with these.
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
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
def classify(shapes_model) -> Any:
    return load_pipeline(str(shapes_model), "cpu")


def limits_of(**changes: Any) -> Limits:
    return Limits(**({"max_seconds": 10.0, "max_working_seconds": 60.0} | changes))


@pytest.fixture(scope="module")
def answers(classify) -> Iterator[Answers]:
    """Windows of 2.5 s, as a film of one class has 2 s."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # else no URL is fetched at all
            patch.delenv(name, raising=False)
        answers = Answers(classify, limits_of(), window=2.5, stride=0.5)
    yield answers
    answers.close()


@pytest.fixture
def reader(answers) -> Callable[..., list[Any]]:
    """`reader(video, **limits)`: what a reading process would give, read in this one."""

    def read(video: str, **changes: Any) -> list[Any]:
        processor = answers.video_processor
        return list(VisitorReader(processor, 8, limits_of(**changes), 2.5, 0.5)(Job(video, Path(video).name)))

    return read


def scores_of(classify: Any, video: str, labels: list[str]) -> dict[str, float]:
    return {row["label"]: row["score"] for row in classify(video, candidate_labels=labels, short_video="loop")}


def rows_of(answer: Any) -> dict[str, float]:
    return {row["label"]: row["score"] for row in answer.rows}


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("video", ["red.mp4", "blue.mp4", "one-frame.mp4"])
def test_scores_are_the_pipelines(answers, classify, videos, video):
    text = "red bar growing, blue star spinning\n\n green moon blinking ,\n"
    answer = answers.finish(videos[video], read_candidates(text, Limits()))
    expected = scores_of(classify, videos[video], LABELS)
    assert rows_of(answer) == pytest.approx(expected, abs=1e-5) and list(rows_of(answer)) == list(expected)
    assert not answer.windows and not answer.notes


def test_what_is_longer_than_a_window_has_segments(answers, classify, videos):
    candidates = dict.fromkeys(LABELS, ())
    *steps, answer = answers(videos["long.mp4"], candidates)
    assert not steps or steps[0] is answer
    expected = list(classify_windows(classify, videos["long.mp4"], LABELS, window=2.5, stride=0.5))
    assert len(answer.windows) == len(expected) == answer.num_windows
    for got, wanted in zip(answer.windows, expected, strict=True):
        assert (got["start"], got["end"]) == (wanted["start"], wanted["end"])
        assert got["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
    assert answer.segments == merge_windows(answer.windows)
    means = {label: np.mean([each["scores"][label] for each in expected]) for label in LABELS}
    assert rows_of(answer) == pytest.approx(means, abs=1e-5)


def test_described_labels_are_the_pipelines(answers, classify, videos):
    text = "grows: red bar growing\ngrows: a red bar growing\nspins: blue star spinning"
    described = {"grows": ["red bar growing", "a red bar growing"], "spins": ["blue star spinning"]}
    answer = answers.finish(videos["red.mp4"], read_candidates(text, Limits()))
    assert rows_of(answer) == pytest.approx(scores_of(classify, videos["red.mp4"], described), abs=1e-5)
    assert rows_of(answer) != pytest.approx(scores_of(classify, videos["red.mp4"], list(described)[:0] or LABELS[:2]))


def test_none_of_these_is_there_with_a_calibration(answers, classify, videos, monkeypatch):
    """As the pipeline has it, of a short video and of every window."""
    cosines = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) / 10
    labels = torch.arange(300) % 6
    cosines[torch.arange(300), labels] += 0.2
    monkeypatch.setattr(classify.model.config, "calibration", fit_calibration(cosines, labels).to_dict())
    candidates = dict.fromkeys(LABELS, ())
    wanted = classify(videos["red.mp4"], candidate_labels=LABELS, unknown=True)
    answer = answers.finish(videos["red.mp4"], candidates)
    assert rows_of(answer) == pytest.approx({row["label"]: row["score"] for row in wanted}, abs=1e-5)
    assert "none of these" in rows_of(answer)
    long = answers.finish(videos["long.mp4"], candidates)
    assert all("none of these" in each["scores"] for each in long.windows) and "none of these" in rows_of(long)
    with pytest.raises(RefusedError, match="a label is called 'none of these'"):
        answers.finish(videos["red.mp4"], {"none of these": (), "cyan moon": ()})


def test_examples_of_labels_are_the_pipelines(answers, classify, videos, tmp_path):
    names = {"red_bar_growing_1.mp4": "red.mp4", "blue star spinning 7.mp4": "blue.mp4"}
    files = [shutil.copy(videos[video], tmp_path / name) for name, video in names.items()]
    candidates = dict.fromkeys(LABELS, ())
    examples = match_examples([str(file) for file in files], candidates)
    assert list(examples) == LABELS[:2]
    answer = answers.finish(videos["red.mp4"], candidates, None, examples)
    wanted = classify(videos["red.mp4"], candidate_labels=LABELS, examples=examples, short_video="loop")
    assert rows_of(answer) == pytest.approx({row["label"]: row["score"] for row in wanted}, abs=1e-4)
    with pytest.raises(RefusedError, match="other.mp4 is named after no label"):
        match_examples(["other.mp4"], candidates)
    few = Answers(classify, limits_of(max_examples=1), window=2.5, stride=0.5, concurrency=1)
    with pytest.raises(RefusedError, match="2 examples were given: this app takes up to 1"):
        few.finish(videos["red.mp4"], candidates, None, examples)
    few.close()


def test_frames_are_what_the_model_saw(answers, classify, videos):
    seen = answers.see(videos["red.mp4"])
    pixels = classify.preprocess(videos["red.mp4"])["pixel_values_videos"][0]  # [t, 3, 32, 32]
    processor = classify.processor.video_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    assert torch.equal(torch.from_numpy(seen.frames), ((pixels * std + mean) * 255).round().byte())
    pictures = web_app.pictures(seen.frames, seen.times)
    assert [caption for _, caption in pictures] == [f"{index / 4:.2f} s" for index in range(8)]
    for frame, (picture, _) in zip(seen.frames, pictures, strict=True):
        shown = np.asarray(picture).transpose(2, 0, 1)
        assert shown.shape == (3, 224, 224) and (shown[:, ::7, ::7] == frame).all()


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (" ,\n ", {}, "No label was given"),
        (None, {}, "No label was given"),
        ("yoga, running\nyoga", {}, "label 'yoga' was given twice"),
        ("a, b, c", {"max_labels": 2}, "3 labels were given: this app takes up to 2."),
        ("a: b\na: c\na: d", {"max_labels": 2}, "3 descriptions were given: this app takes up to 2."),
        ("a: " + "x" * 30, {"max_text_letters": 20}, "A description of 'a' has more than 20 letters"),
        ("yoga, " + "x" * 100_000, {}, "label 2 of 2, 'xxx"),
        ("yoga, jumping jacks", {"max_letters": 5}, "label 2 of 2, 'jumping jacks'…, has 13 letters: at most 5"),
    ],
)
def test_bad_labels_are_one_sentence(text, changes, message):
    with pytest.raises(RefusedError) as error:
        read_candidates(text, limits_of(**changes))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("video", "changes", "message"),
    [
        ("over-long.mp4", {}, "The video is 12.0 s long: this app takes up to 10 s"),
        ("corrupt.mp4", {}, "corrupt.mp4 cannot be opened as a video"),
        ("empty.mp4", {}, "empty.mp4 is empty (0 bytes)."),
        ("red.mp4", {"max_megabytes": 0.001}, "The file has 0 MB: this app takes up to 0.001 MB."),
        ("red.mp4", {"max_gigapixels": 6e-5}, "The video has 16 frames of 64 × 64 pixels: this app takes up to"),
        ("still.png", {}, "still.png is a still picture, not a video"),
    ],
)
def test_bad_videos_are_one_sentence(reader, videos, video, changes, message):
    (note,) = reader(videos[video], **changes)
    assert note.refused and note.text.startswith(message) and "\n" not in note.text
    assert str(Path(videos["red.mp4"]).parent) not in note.text


def test_over_long_is_refused_without_decoding(reader, videos, monkeypatch):
    monkeypatch.setattr(VisitorReader, "_see", lambda *_: pytest.fail("decoded"), raising=False)
    (note,) = reader(videos["over-long.mp4"], max_seconds=11.5)
    assert "up to 11.5 s" in note.text


def test_no_html_of_the_user(answers):
    assert "<img" not in web_app.show_problem("label '<img src=x>' was given twice")
    answer = Answer("<b>", 1.0, np.zeros((1, 3, 2, 2), np.uint8), [0.0], [{"label": "<img src=x>", "score": 1.0}])
    answer.notes.append("<script>")
    shown = web_app.show(answer)
    assert "<img" not in shown and "<script" not in shown and shown.count("&lt;img src=x&gt;") == 3
    assert web_app.preview('/a/" onerror=x.mp4').count("onerror") == 2 and "/a/%22" in web_app.preview('/a/"')


def test_hundreds_of_labels_show_digits_and_can_be_searched():
    rows = [{"label": f"label {index}", "score": 0.002} for index in range(500)]
    shown = web_app.show(Answer("a", 1.0, np.zeros((1, 3, 2, 2), np.uint8), [0.0], rows))
    assert shown.count("<meter") == 20 and shown.count("0.2 %") == 520 and "label 499" in shown
    assert "max=0.002 value=0.002" in shown and "type=search" in shown
    assert [web_app.percent(score) for score in (1.0, 0.123, 0.00042, 3e-8, 0.0)] == [
        "100.0 %",
        "12.3 %",
        "0.042 %",
        "< 0.001 %",
        "0.0 %",
    ]


def test_broken_off_video_is_scored_with_a_note(answers, classify, cut_short):
    answer = answers.finish(cut_short, dict.fromkeys(LABELS, ()))
    with pytest.warns(UserWarning, match="breaks off"):
        assert rows_of(answer) == pytest.approx(scores_of(classify, cut_short, LABELS), abs=1e-5)
    assert len(answer.notes) == 1 and answer.notes[0].startswith("cut.mkv breaks off after ")


def test_people_at_once_get_their_own(answers, classify, videos):
    jobs = [(videos[name], LABELS[: 1 + index % 3]) for index in range(6) for name in ("red.mp4", "blue.mp4")]
    expected = [scores_of(classify, video, labels) for video, labels in jobs]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda job: answers.finish(job[0], dict.fromkeys(job[1], ())), jobs))
    for result, scores in zip(results, expected, strict=True):
        assert rows_of(result) == pytest.approx(scores, abs=1e-5)


@pytest.fixture
def silent(tmp_path) -> str:
    """A pipe into which nobody writes: it holds its reader for ten seconds."""
    os.mkfifo(tmp_path / "silent.mp4")
    return str(tmp_path / "silent.mp4")


def test_what_takes_too_long_is_stopped_and_the_next_is_answered(classify, videos, silent):
    answers = Answers(classify, limits_of(max_working_seconds=1.5), window=2.5, stride=0.5, concurrency=1)
    (first,) = answers.processes[0].workers
    try:
        with pytest.raises(OutOfTimeError, match="silent.mp4 takes more than 1.5 s of work"):
            answers.finish(silent, dict.fromkeys(LABELS, ()))
        assert not first.process.is_alive() and answers.free.qsize() == 1
    finally:
        answers.close()


def test_a_process_that_dies_costs_its_own_video(answers, videos, silent):
    candidates = dict.fromkeys(LABELS, ())
    for each in answers.processes:
        Timer(1.0, each.kill).start()
    with pytest.raises(RefusedError, match="silent.mp4 can't be read: reading it kills the process"):
        answers.finish(silent, candidates)
    assert len(rows_of(answers.finish(videos["red.mp4"], candidates))) == 3


REFERENCES = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
    "endless.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n",
    "list.mp4": "ffconcat version 1.0\nfile '{}'\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9999 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("name", REFERENCES)
def test_an_upload_reaches_no_other_file(reader, videos, tmp_path, name):
    """Lists that FFmpeg would follow to another file of this machine, or wait for on the network."""
    (tmp_path / name).write_text(REFERENCES[name].format(videos["red.mp4"]))
    (note,) = reader(str(tmp_path / name))
    assert note.refused and note.text.startswith(f"{name} cannot be opened as a video")


def test_names_of_folders_are_pointed_out(answers, videos):
    answer = answers.finish(videos["red.mp4"], read_candidates("red-bar-growing, cyan moon", Limits()))
    assert answer.notes == [
        "Labels are read as they are written: did you mean “red bar growing” rather than “red-bar-growing”?"
    ]


def test_labels_of_a_file(tmp_path):
    (tmp_path / "labels.csv").write_text("name,description\nyoga,a person stretches\nyoga,on a mat\narchery,\n")
    text = web_app.csv_text(str(tmp_path / "labels.csv"), None)
    assert read_candidates(text, Limits()) == {"yoga": ("a person stretches", "on a mat"), "archery": ()}


def test_examples_are_there_to_click(answers, videos, tmp_path):
    drawn = web_app.draw_examples(dict(enumerate(["red bar growing", "blue star spinning"])), tmp_path)
    for example in drawn[:2]:
        assert answers.finish(example.video, dict.fromkeys(example.labels, ())).seconds == 2.0
        assert example.name in example.labels
    assert web_app.draw_examples({0: "yoga"}, tmp_path) == [] == web_app.draw_examples({}, tmp_path)
    for name in ("red_bar", "blue_star"):
        (tmp_path / "own" / name).mkdir(parents=True)
        shutil.copy(videos["red.mp4"], tmp_path / "own" / name / "clip.mp4")
    (tmp_path / "copies").mkdir()
    own = web_app.find_examples(str(tmp_path / "own"), tmp_path / "copies")
    assert sorted(each.name for each in own) == ["blue star", "red bar"] and {*own[0].labels} == {
        *(e.name for e in own)
    }


# ---------------------------------------------------------------------------------------------------------------- HTTP


@pytest.fixture(scope="module")
def http(answers) -> Iterator[Any]:
    testclient = pytest.importorskip("fastapi.testclient")
    with testclient.TestClient(http_routes(answers, "shapes")) as client:
        yield client


def test_a_form_json_and_health(http, classify, videos):
    content = Path(videos["red.mp4"]).read_bytes()
    expected = scores_of(classify, videos["red.mp4"], LABELS)
    form = http.post("/v1/classify", files={"file": ("red.mp4", content)}, data={"labels": ", ".join(LABELS)})
    encoded = base64.b64encode(content).decode()
    as_json = http.post("/v1/classify", json={"base64": encoded, "labels": LABELS})
    for response in (form, as_json):
        assert response.status_code == 200, response.text
        assert {row["label"]: row["score"] for row in response.json()["scores"]} == pytest.approx(expected, abs=1e-5)
        assert response.json()["model"] == "shapes" and response.json()["seconds"] == 2.0
    described = {"base64": encoded, "labels": {"grows": ["red bar growing"], "blue star": None}, "top_k": 1}
    assert [row["label"] for row in http.post("/v1/classify", json=described).json()["scores"]] == ["grows"]
    film = {"file": ("long.mp4", Path(videos["long.mp4"]).read_bytes())}
    long = http.post("/v1/classify", files=film, data={"labels": LABELS[0]})
    assert long.json()["segments"] == [{"start": 0.0, "end": 6.0, "label": LABELS[0], "score": 1.0}]
    assert http.get("/health").json() == {"status": "ok", "model": "shapes", "requests": 0}
    operation = http.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert http.get("/docs").status_code == 200


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b"x"}, 415, "Send a form with a file"),
        ({"content": iter([b"{}"]), "headers": JSON}, 411, "Say how long the request is, by a Content-Length."),
        ({"content": b"{", "headers": JSON}, 400, "The request is no JSON"),
        ({"content": b"[" * 100_000, "headers": JSON}, 400, "The request is no JSON"),
        ({"json": []}, 400, "The request must be a JSON object."),
        ({"json": {"labels": "a"}}, 400, "Name the video by `url`, or send it as `base64`: one of them."),
        ({"json": {"labels": "a", "path": "/etc/passwd"}}, 400, "There is no field 'path'"),
        ({"json": {"labels": "a", "url": "file:///etc/passwd"}}, 400, "url must be the http(s) address of a video."),
        ({"json": {"labels": "a", "base64": "no base64!"}}, 400, "base64 can't be read"),
        ({"json": {"labels": "a", "base64": 5}}, 400, "base64 must be a text."),
        ({"json": {"labels": ["a", "a"], "base64": ""}}, 400, "label 'a' was given twice"),
        ({"json": {"labels": [["a"]], "base64": ""}}, 400, "label 1 of 1 is ['a'], not a string"),
        ({"json": {"labels": 7, "base64": ""}}, 400, "labels must be a list of names"),
        ({"json": {"base64": ""}}, 400, "No label was given"),
        ({"json": {"labels": "a", "base64": "", "top_k": 0}}, 400, "top_k is '0'"),
        ({"json": {"labels": "zzz", "base64": "AAAA"}}, 422, "label 'zzz' holds no word that the tokenizer knows"),
        ({"json": {"labels": "red bar", "base64": ""}}, 422, "the video is empty (0 bytes)."),
        ({"data": {"labels": "a"}, "files": {"other": b""}}, 400, "There is no field 'other'"),
        ({"files": {"labels": b"a", "file": b""}}, 400, "The form can't be read"),
        ({"data": {"labels": "red bar"}, "files": {"file": ("../../x.mp4", b"junk" * 99)}}, 422, "x.mp4 cannot be"),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data"}}, 400, "The form can't be read"),
        ({"content": b"{}", "headers": JSON | {"content-length": "999999999"}}, 413, "The request has 1000 MB"),
    ],
)
def test_bad_requests_are_one_sentence(http, request_, status, message):
    response = http.post("/v1/classify", **request_)
    assert (response.status_code, response.json().keys()) == (status, {"error"}), response.text
    assert response.json()["error"].startswith(message) and "/tmp" not in response.text


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.1.2.3", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_a_url_reaches_no_inner_address(http, videos, host, serve_folder):
    """Whether it is named by number or by a name that leads there; a server of this machine hears nothing."""
    with serve_folder(Path(videos["red.mp4"]).parent) as (port, asked):
        url = f"http://{host}:{port}/red.mp4"
        response = http.post("/v1/classify", json={"url": url, "labels": LABELS})
    assert response.status_code == 422 and "is no public address" in response.json()["error"], response.text
    assert asked == []


@pytest.fixture
def serve_folder() -> Callable[[Path], Any]:
    """`with serve_folder(folder) as (port, asked)`: a web server of this machine, and the paths it was asked for."""

    @contextmanager
    def serve(folder: Path) -> Iterator[tuple[int, list[str]]]:
        asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(folder))

            def do_GET(self) -> None:
                asked.append(self.path)
                super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_address[1], asked
            server.shutdown()

    return serve


def test_a_request_over_time_gets_504_and_too_many_get_503(classify, videos, monkeypatch):
    testclient = pytest.importorskip("fastapi.testclient")
    limits = limits_of(max_working_seconds=0.001, max_waiting=1)
    answers = Answers(classify, limits, window=2.5, stride=0.5, concurrency=1)
    with testclient.TestClient(http_routes(answers, "shapes")) as client:
        response = client.post("/v1/classify", json={"base64": "AAAA", "labels": LABELS})
        assert response.status_code == 504 and "takes more than 0.001 s of work" in response.json()["error"]
        assert client.get("/health").json()["requests"] == 0
    answers.close()


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
            answer = ask.predict(
                client.handle_file(videos["red.mp4"]), "red bar growing, cyan moon", api_name="/classify"
            )
            assert {row["label"] for row in answer["scores"]} == {"red bar growing", "cyan moon"}
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


def test_windows_of_a_camera_score_as_their_frames_do(answers, classify):
    candidates = dict.fromkeys(LABELS, ())
    pictures = render_clip("red", "bar", "growing", np.random.default_rng(0), num_frames=40)
    camera, found = CameraWindows(answers), []
    for number, picture in enumerate(pictures):
        if (answer := camera.add(picture, 100 + number / 10, candidates)) is not None:
            found.append((number, answer))
    assert [number for number, _ in found] == [25, 30, 35]  # windows of 2.5 s every 0.5 s
    for number, answer in found:
        wanted = classify(pictures[number - 25 : number], candidate_labels=LABELS)
        assert rows_of(answer) == pytest.approx({row["label"]: row["score"] for row in wanted}, abs=1e-5)
    other = np.zeros((40, 30, 3), np.uint8)  # a camera that turns: nothing of the other size is left
    assert camera.add(other, 200.0, candidates) is None and len(camera.cutter.held) == 1
    for number in range(1000):
        camera.add(other, 200.001 + number / 1e6, candidates)
    assert len(camera.cutter.held) == web_camera.MAX_HELD


def test_what_is_no_picture_of_a_camera_is_refused():
    def given(kind: str, size: tuple[int, int] = (64, 48), **more: Any) -> Any:
        file = io.BytesIO()
        Image.new("RGB", size, (200, 0, 0)).save(file, kind, **more)
        url = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
        return SimpleNamespace(url=url, path=None)

    assert web_camera.read_picture(None) is None
    for kind in ("JPEG", "PNG", "WEBP"):
        assert web_camera.read_picture(given(kind)).shape == (48, 64, 3)
    for bad in (
        given("GIF"),
        given("TIFF"),
        SimpleNamespace(url="data:,x", path=None),
        SimpleNamespace(url="", path=None),
        SimpleNamespace(url=None, path=str(ROOT / "docs" / "pictures" / "growth.png")),
    ):
        with pytest.raises(RefusedError, match="is no picture"):
            web_camera.read_picture(bad)
    with pytest.raises(RefusedError, match="4000 × 3000 pixels"):
        web_camera.read_picture(given("PNG", (4000, 3000)))


@pytest.fixture(scope="module")
def server(shapes_model, tmp_path_factory) -> Iterator[Server]:
    options = ["--model", str(shapes_model), "--window", "2.5", "--stride", "0.5", "--max_seconds", "10", "--mcp"]
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
            args=["--no-sandbox", "--no-first-run", *CAMERA, *(f"--disable-{name}" for name in QUIET)],
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
            clear.first.click()
            self.page.locator("#preview video").wait_for(state="detached")
        with self.page.expect_response(lambda response: "/upload?" in response.url):
            self.page.set_input_files("#video input[type=file]", video)
        self.page.locator("#preview :is(video, p)").first.wait_for(state="attached")

    def click(self, labels: str) -> None:
        self.page.get_by_label("Labels, separated").fill(labels)
        self.page.get_by_role("button", name="Classify").click()

    def scores(self, count: int) -> dict[str, float]:
        """{label: score} as the page shows them, once there are so many and the page is done."""
        self.page.wait_for_function("count => document.querySelectorAll('#result meter').length == count", arg=count)
        self.page.locator("#frames img").nth(7).wait_for()
        meters = self.page.locator("#result meter")
        return dict(meters.evaluate_all("all => all.map(m => [m.ariaLabel, Number(m.getAttribute('value'))])"))

    def ask(self, video: str, labels: list[str]) -> dict[str, float]:
        self.drop(video)
        self.click(", ".join(labels))
        return self.scores(len(labels))

    def reads(self, message: str) -> None:
        """Waits for a message, which must be one sentence of ours."""
        self.page.locator("#result").get_by_text(message).wait_for()
        assert "Traceback" not in self.page.inner_text("body")
        assert self.page.locator("#result meter").count() == 0 and not self.page.get_by_test_id("toast-body").count()


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
    for video, chosen in (("red.mp4", LABELS), ("red.mp4", LABELS[:1]), ("blue.mp4", LABELS[::-1])):
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
@pytest.mark.parametrize("width", [1180, 390])
def test_a_long_video_an_unplayable_one_and_many_labels(visit, videos, tmp_path, width):
    """Of a desktop and of a phone; nothing sticks out to the right."""
    visitor = visit(viewport={"width": width, "height": 844})
    page = visitor.page
    visitor.ask(videos["long.mp4"], LABELS)
    timeline = page.locator("#timeline img")
    timeline.wait_for()
    assert timeline.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    named = page.locator("#result .segments td:nth-child(2)").all_inner_texts()
    assert named and set(named) <= set(LABELS)
    page.get_by_role("button", name="Why?").click()
    page.locator("#why img").wait_for()
    raw = np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), np.uint8)
    (tmp_path / "raw.y4m").write_bytes(
        b"YUV4MPEG2 W64 H64 F8:1 C444\n" + b"".join(b"FRAME\n" + x.tobytes() for x in raw)
    )
    visitor.drop(str(tmp_path / "raw.y4m"))
    page.get_by_text("Your browser cannot play this video").wait_for()
    many = [" ".join(name) for name in itertools.product(COLORS, SHAPES, MOTIONS)]
    visitor.click(", ".join(many))
    visitor.scores(20)
    timeline.wait_for(state="hidden")
    page.get_by_text(f"All {len(many)} labels").click()
    page.get_by_label("Search the labels").fill("CYAN moon rocking")
    assert page.locator("#result details tr:visible").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not page.get_by_test_id("toast-body").count()


@pytest.mark.slow
def test_webcam_in_a_browser(visit):
    visitor = visit(permissions=["camera"])
    page = visitor.page
    page.get_by_label("Labels, separated").fill("red bar growing, green moon blinking")
    page.get_by_role("tab", name="Webcam").click()
    page.locator("#camera").get_by_text("Click to Access Webcam").click()
    page.locator("#camera .capture-button").click()
    page.locator("#result table.scores tr").nth(1).wait_for()
    labels = page.locator("#result table.scores td:first-child").all_inner_texts()
    assert set(labels) == {"red bar growing", "green moon blinking"}
    page.get_by_label("Labels, separated").fill("cyan moon, blue star")  # goes on with others
    page.locator("#result").get_by_text("cyan moon").first.wait_for()
    assert not visitor.elsewhere and not visitor.failed


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
    visitor.click("red bar")
    visitor.reads("The video is 12.0 s long: this app takes up to 10 s, so cut it first.")
    visitor.drop(videos["corrupt.mp4"])
    visitor.click("red bar")
    visitor.reads("corrupt.mp4 cannot be opened as a video")
    expected = scores_of(classify, videos["blue.mp4"], LABELS)
    assert visitor.ask(videos["blue.mp4"], LABELS) == pytest.approx(expected, abs=1e-5)
    assert visitor.ask(cut_short, LABELS[:2]) == pytest.approx(scores_of(classify, cut_short, LABELS[:2]), abs=1e-5)
    visitor.page.get_by_text("cut.mkv breaks off after").wait_for()
    visitor.drop(videos["corrupt.mp4"])
    visitor.click("red bar")
    visitor.reads("corrupt.mp4 cannot be opened as a video")
    visitor.page.wait_for_timeout(12_000)  # a toast would be gone
    visitor.reads("corrupt.mp4 cannot be opened as a video")


@pytest.mark.slow
def test_an_agent_finds_the_tool(server, classify, videos):
    """The client of the Model Context Protocol's own package."""
    mcp = pytest.importorskip("mcp", reason="mcp is absent: pip install 'mote-transformers[mcp]'")
    client = importlib.import_module("mcp.client.streamable_http")
    content = base64.b64encode(Path(videos["red.mp4"]).read_bytes()).decode()

    async def ask() -> Any:
        async with (
            client.streamablehttp_client(f"{server.url}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {each.name: each for each in (await session.list_tools()).tools}
            assert set(tools) == {"classify", "classify_url"} and "labels" in tools["classify"].description.lower()
            calls = {
                "classify": {"video": f"data:video/mp4;base64,{content}", "text": ", ".join(LABELS)},
                "classify_url": {"url": f"{server.url}/x.mp4", "text": ", ".join(LABELS)},
            }
            results = []
            for name, values in calls.items():
                names = list(tools[name].inputSchema["properties"])
                results.append(await session.call_tool(name, dict(zip(names, values.values(), strict=True))))
            return results

    with ThreadPoolExecutor(1) as thread:  # that of the browser has a loop of its own
        found, refused = thread.submit(lambda: asyncio.run(ask())).result()
    assert not found.isError, found.content
    scores = {row["label"]: row["score"] for row in ast.literal_eval(found.content[0].text)["scores"]}
    assert scores == pytest.approx(scores_of(classify, videos["red.mp4"], LABELS), abs=1e-5)
    assert refused.isError and "x.mp4 cannot be downloaded" in refused.content[0].text


def memory_of(process: psutil.Process) -> float:
    """Megabytes of a server and the processes it reads in."""
    return sum(each.memory_full_info().uss for each in (process, *process.children(recursive=True))) / 1e6


def form_of(content: bytes, **headers: str) -> bytes:
    """A whole request, as it goes through the socket."""
    sent = httpx.Request(
        "POST", "http://server/v1/classify", files={"file": ("clip.mp4", content)}, data={"labels": LABELS[0]}
    )
    sent.headers.update(headers)
    head = [f"{name}: {value}" for name, value in sent.headers.items()]
    return "\r\n".join(["POST /v1/classify HTTP/1.1", *head, "", ""]).encode() + sent.read()


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_many_requests_of_which_one_percent_are_bad(shapes_model, videos, tmp_path):
    """As many as MOTE_REQUESTS says, four at a time: each gets its answer, none costs memory, the server is there.

    `MOTE_REQUESTS=10000 pytest -m slow -s tests/commands/test_app.py -k one_percent` prints the memory.
    """
    count = int(os.environ.get("MOTE_REQUESTS", 500))
    content, corrupt = (Path(videos[name]).read_bytes() for name in ("red.mp4", "corrupt.mp4"))
    whole, late = form_of(content), 15.0
    requests = {  # what is sent, and the status of its answer
        "whole": (whole, 200),
        "broken": (form_of(corrupt), 422),
        "cut": (form_of(content[:900]), 422),
        "oversize": (form_of(b"", **{"content-length": str(10**12)}), 413),  # answered before the body is there
        "slow": (whole[:-500], 408),  # the rest never comes
        "gone": (whole[:-500], None),  # nor does anybody wait for the answer
    }
    bad = [kind for kind in requests if kind != "whole"]
    server = Server(
        ["-m", "modeling_mote", "app"],
        ["--model", str(shapes_model), "--max_working_seconds", str(late)],
        GRADIO_TEMP_DIR=str(tmp_path),
    )
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    process, memory = psutil.Process(server.process.pid), {}

    def ask(number: int) -> tuple[str, int | None]:
        kind = bad[number // 100 % len(bad)] if number % 100 == 50 else "whole"
        sent, status = requests[kind]
        with socket.create_connection((host, int(port)), timeout=300) as connection:
            connection.sendall(sent)
            answer = connection.recv(1000) if status else b"- None"
        return kind, None if status is None else int(answer.split()[1])

    try:
        with ThreadPoolExecutor(4) as pool:
            answered = []
            for tenth in range(1, 11):  # at first it loads what it needs
                answered += pool.map(ask, range(len(answered), count * tenth // 10))
                memory[tenth] = memory_of(process)
                print(f"{len(answered)} requests: {memory[tenth]:.0f} MB", flush=True)
        deadline = time.monotonic() + 2 * late
        while (waiting := httpx.get(f"{server.url}/health").json()["requests"]) and time.monotonic() < deadline:
            time.sleep(0.5)
        print(dict(Counter(answered)))
    finally:
        output = server.stop()
    assert {kind for kind, _ in answered} == set(requests), "fewer than 500 requests do not have one of each kind"
    assert all(status == requests[kind][1] for kind, status in answered), Counter(answered)
    assert waiting == 0 and not files_in(tmp_path) and "Traceback" not in output, output
    assert memory[10] - memory[1] < 60


@pytest.mark.slow
def test_two_people_at_once(visit, classify, videos):
    asked = [("red.mp4", LABELS), ("long.mp4", ["yellow cross blinking", "green moon blinking"])]
    windows = list(classify_windows(classify, videos["long.mp4"], asked[1][1], window=2.5, stride=0.5))
    expected = {
        "red.mp4": scores_of(classify, videos["red.mp4"], LABELS),
        "long.mp4": {label: np.mean([each["scores"][label] for each in windows]) for label in asked[1][1]},
    }
    people = [visit() for _ in asked]
    for round_ in range(4):
        jobs = asked if round_ % 2 == 0 else asked[::-1]
        for person, (video, _) in zip(people, jobs, strict=True):
            person.drop(videos[video])
        for person, (_, labels) in zip(people, jobs, strict=True):
            person.click(", ".join(labels))
        for person, (video, labels) in zip(people, jobs, strict=True):
            if video == "long.mp4":
                person.page.locator("#timeline img").wait_for()  # its scores change until then
            assert person.scores(len(labels)) == pytest.approx(expected[video], abs=1e-5)


@pytest.mark.slow
def test_picture(browser, tmp_path):
    """The app at work on what `make demo` trains, photographed into the folder that MOTE_PICTURES names."""
    model = Path(os.environ.get("MOTE_MODEL", ROOT / "runs" / "moving_shapes" / "model"))
    if not model.is_dir():
        pytest.skip(f"there is no {model}: make demo, or name a checkpoint by MOTE_MODEL")
    options = {"num_frames": 16, "image_size": 128, "place": (-0.1, -0.2)}
    growing = render_clip("yellow", "star", "growing", np.random.default_rng(0), **options)
    video, picture = tmp_path / "star.mp4", Path(os.environ.get("MOTE_PICTURES", tmp_path)) / "app.png"
    video.write_bytes(encode_mp4(np.concatenate([growing, growing[::-1], growing]), fps=8))
    server = Server(["-m", "modeling_mote", "app"], ["--model", str(model)], GRADIO_TEMP_DIR=str(tmp_path / "uploads"))
    try:
        visitor = Visitor(browser, server.url, viewport={"width": 1180, "height": 800})
        labels = [f"yellow star {motion}" for motion in ("growing", "shrinking", "moving left", "spinning")]
        visitor.drop(str(video))
        visitor.click("\n".join(labels))
        calibrated = json.loads((model / "config.json").read_text()).get("calibration") is not None
        visitor.scores(len(labels) + calibrated)  # "none of these" too
        visitor.page.locator("#timeline img").wait_for()
        visitor.page.wait_for_function("[...document.images].every(image => image.complete)")
        visitor.page.wait_for_function("document.querySelector('#preview video').readyState >= 2")
        visitor.page.screenshot(path=picture, full_page=True, animations="disabled")
        visitor.context.close()
    finally:
        server.stop()
    with Image.open(picture) as shown:
        colours = shown.convert("RGB").quantize(256)
    colours.save(picture, optimize=True)
    with Image.open(picture) as shown:
        assert shown.width == 1180 and np.asarray(shown.convert("L")).std() > 10
    assert picture.stat().st_size < 300_000
