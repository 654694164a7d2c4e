"""`mote classify` on live streams: JSON lines, what is said, and how it ends; and the snippets of docs/live.md."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest

from modeling_mote.commands import classify
from modeling_mote.commands.command_line import Parser, run_command

from ..processing.live_servers import http_server, in_time, rtsp_server, stream
from ..processing.test_live import content, film

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "live.md").read_text(encoding="utf-8")
LABELS = "red bar growing, blue star spinning, green moon blinking"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with httpx.Client(trust_env=False) as client:
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
        yield


def block(language: str) -> str:
    """The only block of the page in a language."""
    (found,) = (
        text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.M | re.S) if kind == language
    )
    return found


def options(model: Path, *more: str) -> list[str]:
    return [*more, "--model", str(model), "--labels", LABELS, "--window", "1", "--stride", "0.5", "--device", "cpu"]


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_of_json(shapes_model, capsys):
    pieces = list(in_time(stream(film(2.2)), 1000))
    with http_server(lambda: pieces[:50], lambda: pieces) as url:
        code = run_command("classify", options(shapes_model, url, "--live", "--retries", "1", "--top_k", "2"))
    out, err = capsys.readouterr()
    lines = lines_of(out)
    assert code == 1 and re.search(r"error: http.*/live broke off .*404.*after 1 attempts to connect again\.$", err)
    answers, events = [each for each in lines if "scores" in each], [each for each in lines if "event" in each]
    assert [each["event"] for each in events] == ["cut", "segment", "cut"]
    assert all(each["message"] in err for each in events)
    assert all(datetime.fromisoformat(each["time"]).tzinfo is not None for each in lines)
    assert [each["segment"] for each in answers] == sorted(each["segment"] for each in answers)
    for each in answers:
        assert len(each["scores"]) == 2 and each["scores"][0].keys() == {"score", "label", "similarity"}
        keys = "time start end segment frames scores delay dropped_frames skipped_windows"
        assert list(each) == keys.split()


@pytest.mark.slow
def test_standard_input_ctrl_c_and_a_closed_pipe(shapes_model):
    command = [sys.executable, "-m", "modeling_mote", "classify", *options(shapes_model, "-")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    popen: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    data = content(film(2.2))
    done = subprocess.run(command, input=data, capture_output=True, env=environment, timeout=300)
    answers = lines_of(done.stdout.decode())
    assert done.returncode == 0 and [each["start"] for each in answers] == [0.0, 0.5, 1.0, 1.5]
    assert done.stderr.decode().strip() == "66 frames, 0 dropped; 0 windows skipped."
    with subprocess.Popen(command, **popen, env=environment) as process:  # it waits for more
        process.stdin.write(data)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["start"] == 0.0
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read().decode().strip() == "error: interrupted"
    with subprocess.Popen(command, **popen, env=environment) as process:  # as in `| head -1`
        process.stdout.close()
        process.stdin.write(data)
        process.stdin.close()
        assert process.wait(60) == 1 and process.stderr.read() == b""


def test_what_does_not_go_with_a_live_stream_is_one_sentence(shapes_model, tmp_path, write_video, capsys):
    video = str(write_video(tmp_path / "clip.mp4"))
    for given, said in (
        (["-", video], "2 sources are named, one of them live: a live stream is read alone."),
        (["/dev/video99"], "/dev/video99 does not exist: there is no such camera."),
        ([video, "--live"], "clip.mp4 is a file, not a live stream: leave --live out"),
        ([video, "--timeout", "3"], "--timeout is for a live stream: if this is one, add --live."),
        (["-", "--output", "a.csv"], "--output is for files, not for a live stream: write the standard output to a"),
        (["-", "--timeline", "a.png"], "--timeline is for files, not for a live stream."),
        (["-", "--smooth", "2"], "--smooth is for files, not for a live stream."),
        (["rtsp://127.0.0.1:9/1"], "rtsp://127.0.0.1:9/1 cannot be opened as a video (Connection refused)."),
    ):
        started = time.monotonic()
        assert run_command("classify", options(shapes_model, *given)) == 1
        assert said in capsys.readouterr().err and time.monotonic() - started < 60


def test_the_pages_commands_are_understood():
    commands = [line.rpartition("| ")[2] for line in block("").splitlines()]
    assert len(commands) == 4
    for command in commands:
        parser = Parser("classify")
        classify.add_options(parser)
        given = parser.parse_args(shlex.split(command)[2:])
        assert given.live or classify.is_live(given.videos[0]), command


def test_the_pages_snippet_runs(shapes_model, capsys):
    with rtsp_server(lambda: stream(film(1.5), "rtp", packetsize="1200")) as url:
        code = block("python").replace("rtsp://camera.local/1", url).replace("mote-vitb16", str(shapes_model))
        code = code.replace("window=4, stride=1", "window=1, stride=1, retries=0")
        code = code.replace("falling", "red bar").replace("walking", "blue star")
        exec(compile(code, "live.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("'red bar'" in line or "'blue star'" in line for line in lines)
