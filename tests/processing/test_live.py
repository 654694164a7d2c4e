"""Live streams: the answers of a file's windows, and what happens to one that is cut, stalls, jumps or is late."""

import contextlib
import gc
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import huggingface_hub
import numpy as np
import psutil
import pytest
import torch
from transformers import pipeline

from modeling_mote.processing import (
    VideoDecodeError,
    classify_stream,
    classify_windows,
    fit_calibration,
    live_reader,
)
from modeling_mote.processing.live_reader import Pace
from modeling_mote.processing.live_source import LiveSource
from modeling_mote.processing.sources import is_live
from modeling_mote.processing.video_file import NamedInput, open_live

from ..conftest import distinct_frames
from .live_servers import http_server, in_time, rtsp_server, stream

LABELS = ["archery", "yoga", "flipping the pancake"]
FAST = 1000.0  # times as fast as it plays


@pytest.fixture(scope="module")
def classify(model_folder: Path) -> Any:
    return pipeline("zero-shot-video-classification", model=str(model_folder), device="cpu")


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with httpx.Client(trust_env=False) as client:
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
        yield


def film(
    seconds: float, start: float = 0.0, size: tuple[int, int] = (48, 64), fps: int = 30
) -> Iterator[tuple[float, np.ndarray]]:
    """Frames and when they are shown; no two alike."""
    number = round(seconds * fps)
    return ((start + index / fps, frame) for index, frame in enumerate(distinct_frames(number, *size)))


def content(*films: Iterable[tuple[float, np.ndarray]], **options: Any) -> bytes:
    """Streams one after another, as bytes."""
    return b"".join(part for each in films for _, parts in stream(each, **options) for part in parts)


def ask(classify: Any, source: Any, **options: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """All answers of a stream, and all that happened to it."""
    events: list[Any] = []
    options = {
        "window": 1.0,
        "stride": 0.5,
        "retries": 0,
        "timeout": 60.0,
        "max_delay": 60.0,
        "on_event": events.append,
    } | options
    with classify_stream(classify, source, LABELS, **options) as answers:
        return list(answers), events


def windows_of(classify: Any, video: Path) -> list[dict[str, Any]]:
    """The windows of a file."""
    return list(classify_windows(classify, video, LABELS, window=1.0, stride=0.5))


@pytest.fixture(scope="module")
def recorded(classify: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A stream in a file, and the file's windows."""
    path = tmp_path_factory.mktemp("live") / "film.ts"
    path.write_bytes(content(film(1.7), codec="libx264"))
    return path, windows_of(classify, path)


def assert_are_windows(answers: list[dict[str, Any]], windows: list[dict[str, Any]], may_skip: bool = False) -> None:
    """The answers are those for the windows of a file; none is left out, but on a machine that is busy."""
    assert len(windows) > 2 and len(answers) > 1
    if may_skip:
        windows = [window for window in windows if window["start"] in [each["start"] for each in answers]]
    for answer, window in zip(answers, windows, strict=True):
        assert answer["start"] == window["start"] and answer["end"] == pytest.approx(window["end"], abs=2e-3)
        assert {row["label"]: row["score"] for row in answer["scores"]} == pytest.approx(window["scores"], abs=1e-5)
        assert answer["dropped_frames"] == 0 and (may_skip or answer["skipped_windows"] == 0)


# --- the answers of a file ------------------------------------------------------------------------------------------


def test_a_stream_that_plays_has_the_answers_of_the_file(classify, tmp_path):
    pieces = list(stream(film(2.4)))
    (tmp_path / "film.ts").write_bytes(b"".join(part for _, parts in pieces for part in parts))
    before = time.time()
    with http_server(lambda: in_time(pieces)) as url:
        answers, events = ask(classify, url, max_delay=60.0)
    assert_are_windows(answers, windows_of(classify, tmp_path / "film.ts"), may_skip=True)
    assert not events
    times = [each["time"].timestamp() for each in answers]
    assert times == sorted(times) and before < times[0] and times[-1] < time.time()
    assert times[-1] - times[0] > 1.0  # they came as it played
    assert all(each["time"].tzinfo is not None and 0 <= each["delay"] < 60 for each in answers)


@pytest.mark.parametrize("container", ["matroska", "flv", "mpegts"])
def test_containers_that_come_fast_are_made_to_wait(classify, recorded, container):
    data = content(film(1.7), container=container, codec="libx264")
    with http_server(lambda: [data]) as url:
        answers, events = ask(classify, url)
    assert not events
    assert_are_windows(answers, recorded[1])


def test_rtsp(classify):
    with rtsp_server(lambda: stream(film(1.7), "rtp", packetsize="1200")) as url:
        answers, events = ask(classify, url, max_delay=60.0)
    assert [each.kind for each in events] == [] and answers[0]["start"] == 0 and answers[0]["end"] == 1
    # RTP's clock has another origin, so that a frame may lie on the other side of a window's edge.
    assert 29 <= answers[0]["frames"] <= 31 and answers[-1]["end"] == pytest.approx(1.7, abs=0.1)


@pytest.mark.slow
def test_pictures_without_time_stamps_are_shown_when_they_come(classify):
    pieces = stream(film(1.6, fps=10), "mpjpeg", "mjpeg")
    with http_server(lambda: in_time(pieces), content_type="multipart/x-mixed-replace; boundary=ffmpeg") as url:
        events: list[Any] = []
        with classify_stream(
            classify, url, LABELS, window=1.0, stride=0.25, retries=None, on_event=events.append
        ) as answers:
            first = next(answers)
    assert first["end"] - first["start"] == 1.0 and 2 < first["frames"] < 14


@pytest.mark.parametrize("kind", ["buffered", "raw", "bytes", "fifo"])
def test_pipes(classify, recorded, tmp_path, kind):
    path, windows = recorded
    data = path.read_bytes()
    if kind == "bytes":
        answers, _ = ask(classify, io.BytesIO(data))
    elif kind == "fifo":
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,), daemon=True)
        writer.start()
        answers, _ = ask(classify, tmp_path / "pipe")
    else:
        copy = "import shutil, sys; shutil.copyfileobj(open(sys.argv[1], 'rb'), sys.stdout.buffer)"
        command = [sys.executable, "-I", "-S", "-c", copy, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=-1 if kind == "buffered" else 0) as process:
            answers, _ = ask(classify, process.stdout)
    assert_are_windows(answers, windows)


@pytest.mark.parametrize(
    "each_options",
    [
        (
            {"unknown": True, "threshold": 0.25},
            {"multi_label": True, "top_k": 2},
            {"prompts": "a video of {}.", "num_clips": 2, "num_crops": 3},
        ),
        pytest.param(
            ({"top_k": 1}, {"unknown": True}, {"function_to_apply": "sigmoid"}, {"coverage": 0.9}),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["some", "others"],
)
def test_answers_take_the_options_of_the_pipeline(classify, tmp_path, monkeypatch, each_options):
    data = content(film(0.5))
    (tmp_path / "film.ts").write_bytes(data)

    def given(**options: Any) -> list[dict[str, Any]]:
        return ask(classify, io.BytesIO(data), window=4.0, **options)[0][0]["scores"]

    with pytest.raises(ValueError, match="unknown needs a calibration"):
        given(unknown=True)
    cosines = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) / 10
    cosines[torch.arange(300), torch.arange(300) % 6] += 0.2
    calibration = fit_calibration(cosines, torch.arange(300) % 6).to_dict()
    monkeypatch.setattr(classify.model.config, "calibration", calibration, raising=False)
    for options in each_options:
        wanted = classify(str(tmp_path / "film.ts"), candidate_labels=LABELS, **options)
        rows = given(**options)
        assert [row["label"] for row in rows] == [row["label"] for row in wanted], options
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in wanted], abs=1e-5), options


# --- what happens to streams ----------------------------------------------------------------------------------------


def test_a_cut_connects_again_and_begins_a_segment(classify):
    pieces = list(in_time(stream(film(2.2)), FAST))
    with http_server(lambda: pieces[:40], lambda: pieces) as url:
        answers, events = [], []
        # The third time there is nothing any more.
        with (
            pytest.raises(VideoDecodeError, match=r"/live broke off .*404.*, after 1 attempts to connect again"),
            classify_stream(classify, url, LABELS, window=1.0, stride=1.0, retries=1, on_event=events.append) as found,
        ):
            answers.extend(found)
        counts = found.counts
    assert [each.kind for each in events] == ["cut", "segment", "cut"] and counts.connections == 2
    assert "it ended" in events[0].message and "connected again" in events[1].message
    segments = [each["segment"] for each in answers]
    assert segments == sorted(segments) and set(segments) == {0, 1}
    first, second = (next(each for each in answers if each["segment"] == number) for number in (0, 1))
    assert first["start"] == 0 and second["start"] >= 1.0  # the second that it waited before it connected again
    assert [each["start"] for each in answers] == sorted(each["start"] for each in answers)
    assert (second["time"] - first["time"]).total_seconds() > 0


@pytest.mark.parametrize("is_busy", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["waiting", "busy"])
def test_a_stall_is_said_once_and_connects_again(classify, is_busy):
    pieces = list(in_time(stream(film(2.2)), FAST))

    def stalling() -> Iterator[bytes]:
        yield from pieces[:50]
        time.sleep(30)

    with http_server(stalling, lambda: pieces) as url:
        events: list[Any] = []
        with classify_stream(
            classify, url, LABELS, window=1.0, stride=0.5, timeout=0.5, on_event=events.append
        ) as answers:
            next(answers)
            if is_busy:  # so that the connection times out before anybody asks for an answer
                time.sleep(3.0)
            wanted = next(each for each in answers if each["segment"] == 1)
    assert wanted["start"] >= 0.5
    kinds = [each.kind for each in events]
    assert kinds.count("stall") == 1 and kinds.index("stall") < kinds.index("segment")
    assert next(each for each in events if each.kind == "stall").message == f"{url}: no frame came for 0.5 s."
    assert "cut" in kinds


def test_a_pipe_that_stalls_goes_on(classify):
    reading, writing = os.pipe()
    data = content(film(2.2))

    def write() -> None:
        with open(writing, "wb", buffering=0) as pipe:
            pipe.write(data[: len(data) // 2])
            time.sleep(1.5)
            pipe.write(data[len(data) // 2 :])

    threading.Thread(target=write, daemon=True).start()
    with open(reading, "rb", buffering=0) as pipe:
        answers, events = ask(classify, pipe, timeout=0.3, max_delay=0.5)
    assert [each.kind for each in events] == ["stall", "resume"]
    assert {each["segment"] for each in answers} == {0}
    starts = [each["start"] for each in answers]  # a busy machine may skip one, and says so
    assert set(starts) <= {0.0, 0.5, 1.0, 1.5} and starts[-1] == 1.5
    assert len(starts) + sum(each["skipped_windows"] for each in answers) == 4
    assert sum(each["dropped_frames"] for each in answers) == 0  # the pause made none late


def test_a_jump_of_the_clock_and_another_size_begin_segments(classify):
    data = content(film(0.6), film(0.6, start=500.0), film(0.6, start=7.0), film(0.6, start=7.6, size=(64, 48)))
    answers, events = ask(classify, io.BytesIO(data), window=0.5, stride=0.25)
    assert [each.kind for each in events] == ["segment"] * 3
    assert "clock" in events[0].message and "clock" in events[1].message
    assert "48 × 64 pixels instead of 64 × 48" in events[2].message
    assert [each["segment"] for each in answers] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [each["start"] for each in answers] == sorted(each["start"] for each in answers)
    assert answers[-1]["end"] == pytest.approx(2.4, abs=0.2)
    ends = {each["segment"]: each["end"] for each in answers}
    assert all(each["start"] >= ends[each["segment"] - 1] - 1e-6 for each in answers if each["segment"])


@pytest.mark.slow
def test_each_segment_has_the_answers_of_its_own_pictures(classify, tmp_path):
    parts = [content(film(1.6)), content(film(1.6, start=1.6, size=(64, 48)))]
    answers, _ = ask(classify, io.BytesIO(b"".join(parts)))
    for number, part in enumerate(parts):
        (tmp_path / "part.ts").write_bytes(part)
        windows = classify_windows(classify, tmp_path / "part.ts", LABELS, window=1.0, stride=0.5)
        own = [each for each in answers if each["segment"] == number]
        for answer, window in zip(own, windows, strict=True):
            found = {row["label"]: row["score"] for row in answer["scores"]}
            assert found == pytest.approx(window["scores"], abs=1e-5)


def with_garbage(data: bytes, numbers: Iterable[int]) -> bytes:
    """A stream of Matroska in which the packets of these numbers hold nothing that can be decoded."""
    copy = io.BytesIO()
    with av.open(io.BytesIO(data)) as given, av.open(copy, "w", format="matroska") as output:
        video = given.streams.video[0]
        stream = output.add_stream_from_template(video)
        for number, whole in enumerate(packet for packet in given.demux(video) if packet.size):
            packet = av.Packet(b"\xff" * whole.size) if number in numbers else whole
            packet.pts, packet.dts, packet.time_base = whole.pts, whole.dts, whole.time_base
            packet.is_keyframe, packet.stream = whole.is_keyframe, stream
            output.mux(packet)
    return copy.getvalue()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_damaged_packets_are_counted_and_the_stream_goes_on(classify, codec):
    data = content(film(3.2), codec=codec, gop=15, container="matroska")
    damaged = (20, 45, 46, 47, 48)  # a key picture of a group of 15 among them
    with classify_stream(
        classify, io.BytesIO(with_garbage(data, damaged)), LABELS, window=1.0, stride=0.5, max_delay=60.0
    ) as answers:
        last = list(answers)[-1]
    assert answers.counts.damaged_packets == len(damaged)
    assert last["end"] > 2.8 and last["segment"] == 0 and answers.counts.frames == 96 - len(damaged)


def test_a_stream_with_flipped_bytes_goes_on(classify):
    data = bytearray(content(film(3.2), codec="libx264", gop=15))
    for place in range(len(data) // 3, len(data) // 2, 400):
        data[place] ^= 0xFF
    with classify_stream(classify, io.BytesIO(bytes(data)), LABELS, window=1.0, stride=0.5) as answers:
        last = list(answers)[-1]
    assert last["end"] > 2.8 and answers.counts.frames > 40


# --- keeping up -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_windows_that_nobody_takes_in_time_are_replaced_and_counted(classify):
    pieces = stream(film(2.2))
    with http_server(lambda: in_time(pieces)) as url:
        answers = []
        with classify_stream(classify, url, LABELS, window=0.3, stride=0.05, retries=0, max_delay=0.1) as found:
            for answer in found:
                answers.append(answer)
                time.sleep(0.6)  # as if the model took so long
    skipped = sum(each["skipped_windows"] for each in answers)
    assert skipped > 5 and skipped == found.counts.skipped_windows
    assert [each["start"] for each in answers] == sorted(each["start"] for each in answers)


@pytest.mark.slow
def test_a_reader_that_is_too_slow_drops_frames_and_keeps_up(classify, monkeypatch):
    processor = classify.processor.video_processor
    monkeypatch.setattr(processor, "size", type(processor.size)(shortest_edge=3000))  # 100 ms per frame, or more
    pieces = stream(film(4.0))
    with http_server(lambda: in_time(pieces)) as url:
        answers, _ = ask(classify, url, max_delay=0.3, window=0.3)
    dropped = sum(each["dropped_frames"] for each in answers)
    assert dropped > 20 and answers[-1]["end"] > 3.5  # it went on to the end


def test_a_frame_is_late_beside_the_punctual_ones():
    now = [100.0]
    pace = Pace(max_delay=1.0, now=lambda: now[0])

    def come(seconds: float, at: float) -> bool:
        now[0] = 100.0 + at
        return pace.is_late(seconds)

    assert not come(0.0, 3.0)  # a connection takes its time
    assert not come(1.0, 3.1) and not come(2.0, 3.2)  # what had gathered comes at once
    assert not come(3.0, 4.2) and not come(4.0, 6.1)
    assert come(5.0, 7.3)  # 1.1 s later than the frame of 2 s came
    assert come(6.0, 8.0)  # 0.8 s: until it has caught up
    assert not come(7.0, 8.6) and not come(8.0, 10.1)
    assert pace.delay(9.0) == pytest.approx(-0.1)
    assert come(9.0, 13.0)
    pace.has_caught_up()
    assert not come(10.0, 14.5)
    # A clock that runs 1 ‰ slow is 3.6 s late after an hour, but no frame is.
    assert not any(come(11.0 + index, 15.0 + 1.001 * index) for index in range(3600))


def test_what_comes_faster_than_it_plays_can_wait():
    now = [0.0]
    pace = Pace(max_delay=1.0, now=lambda: now[0])
    assert not pace.can_wait()
    for index in range(300):
        now[0] = index / 300
        assert not pace.is_late(index / 30)
    assert pace.can_wait()
    now[0] = 5.0
    pace.wait(4.0)  # a stream that was made to wait is not late by that
    assert pace.can_wait() and not pace.is_late(10.0)
    now[0] = 20.0
    assert not pace.can_wait()


@pytest.mark.slow
def test_closing_ends_the_thread_and_so_does_forgetting(classify):
    def threads() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "live stream"]

    def endless() -> Iterator[bytes]:
        yield from in_time(stream(film(60.0)))

    with http_server(endless, endless) as url:
        answers = classify_stream(classify, url, LABELS, window=0.1, stride=0.1)
        next(answers)
        assert threads()
        answers.close()
        assert not threads()
        with pytest.raises(StopIteration):
            while True:
                next(answers)
        forgotten = classify_stream(classify, url, LABELS, window=0.1, stride=0.1)
        next(forgotten)
        del forgotten
        gc.collect()
        deadline = time.monotonic() + 20
        while threads() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not threads()


# --- what is a live source ------------------------------------------------------------------------------------------


def test_what_is_live_by_nature():
    assert all(map(is_live, ("-", "rtsp://a/1", "rtsps://a/1", "/dev/video0", "/dev/video12")))
    names = ("http://a/live", "clip.mp4", "/dev/video", "/dev/video0/..", "/dev/sda", "rtsp", "./-", "hf://a/b.mp4")
    assert not any(map(is_live, names))


def test_no_live_source_and_nothing_to_read_are_one_sentence(classify, tmp_path, write_video):
    video = write_video(tmp_path / "clip.mp4")
    for source, error, said in (
        (video, VideoDecodeError, "is a file, not a live stream"),
        (tmp_path / "absent", FileNotFoundError, "does not exist, and is no live source"),
        ("/dev/video99", FileNotFoundError, "/dev/video99 does not exist: there is no such camera."),
        ("s3://bucket/clip.mp4", FileNotFoundError, "is no live source"),
        (3, TypeError, "a live source must be an rtsp:// or http"),
        (io.BytesIO(), VideoDecodeError, "cannot be opened as a video"),
        (io.BytesIO(b"<html>Sign in</html>" * 99), VideoDecodeError, "cannot be opened as a video"),
        ("rtsp://127.0.0.1:9/1", VideoDecodeError, "cannot be opened as a video .Connection refused"),
        ("http://127.0.0.1:9/1", VideoDecodeError, "cannot be opened .*[Cc]onnect"),
    ):
        with pytest.raises(error, match=said):
            ask(classify, source)
    for options, said in (
        ({"timeout": 0}, "timeout is 0: pass a number of seconds above 0"),
        ({"max_delay": True}, "max_delay is True"),
        ({"retries": -1}, "retries is -1"),
        ({"window": 0}, "window is 0"),
        ({"fps": 3}, "unknown argument 'fps' of classify_stream"),
        ({"top_k": 0}, "top_k is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(classify, io.BytesIO(b""), **options)


def test_time_stamps_that_stand_still_end_it(classify, monkeypatch):
    monkeypatch.setattr(live_reader, "MAX_HELD", 20)
    with pytest.raises(VideoDecodeError, match="would have more than 20 frames: its time stamps stand still, or"):
        ask(classify, io.BytesIO(content(film(1.0))), window=4.0)


@pytest.mark.slow
def test_windows_of_too_few_frames_are_left_out_and_said(classify):
    data = content(film(1.5, fps=8), film(1.5, fps=3, start=500.0))
    answers, events = ask(classify, io.BytesIO(data), short_video="error", num_frames=4, window=0.9)
    assert answers and {each["segment"] for each in answers} == {0} and all(each["frames"] > 3 for each in answers)
    assert [each.kind for each in events] == ["segment", "short"] and "left out" in events[1].message


def test_a_password_is_not_said(classify):
    with pytest.raises(VideoDecodeError) as caught:
        ask(classify, "http://somebody:{}@127.0.0.1:9/1".format("secret"))
    shown = "".join(traceback.format_exception(caught.value))
    assert ":secret@" not in shown and "http://127.0.0.1:9/1" in shown
    assert LiveSource("rtsp://somebody:se@cret@camera/1?a=b").name == "rtsp://camera/1?a=b"


@contextlib.contextmanager
def noting_listener() -> Iterator[tuple[str, list[bytes]]]:
    """An address of this machine, and what each connection to it said first; none gets an answer."""
    listener, heard = socket.create_server(("127.0.0.1", 0)), []

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.settimeout(5.0)
                    heard.append(b"")
                    with contextlib.suppress(OSError):
                        heard[-1] = client.recv(4096)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", heard
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()  # what waited to be accepted has been noted


@pytest.mark.parametrize(
    ("kind", "demuxer", "protocols"),
    [("rtsp", "rtsp", "tcp"), ("rtsps", "rtsp", "tcp,tls"), ("device", "v4l2", "none")],
)
def test_what_ffmpeg_opens_by_name_reads_no_file_and_no_other_address(
    tmp_path, write_video, monkeypatch, kind, demuxer, protocols
):
    video = write_video(tmp_path / "clip.ts", codec="mpeg4")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n")
    opened, real = [], av.open

    def noting_open(*args: Any, **options: Any) -> Any:
        opened.append((args[0], options))
        return real(*args, **options)

    monkeypatch.setattr(av, "open", noting_open)
    with noting_listener() as (address, heard):
        places = [str(video), f"file:{video}", str(playlist), f"concat:{video}", f"http://{address}/live"]
        for place in places:
            with pytest.raises(VideoDecodeError), open_live("it", NamedInput(kind, place, 5.0)):
                pass
    assert [place for place, _ in opened] == places and heard == []
    for _, options in opened:
        given = options["container_options"]
        assert options["format"] == given["format_whitelist"] == demuxer and given["protocol_whitelist"] == protocols


def test_an_rtsp_server_leads_to_no_file(classify, tmp_path, write_video):
    """Nor to any other address."""
    video = write_video(tmp_path / "clip.ts", codec="mpeg4")
    listener, served = socket.create_server(("127.0.0.1", 0)), []

    def redirect(targets: list[str]) -> None:
        for target in targets:
            client, _ = listener.accept()
            with client:
                request = client.recv(4096).decode()
                number = re.search(r"CSeq: (\d+)", request)[1]
                served.append(target)
                client.sendall(f"RTSP/1.0 302 Found\r\nCSeq: {number}\r\nLocation: {target}\r\n\r\n".encode())

    with listener, noting_listener() as (address, heard):
        targets = [f"file://{video}", str(video), f"http://{address}/live", f"rtsp://{address}/live"]
        threading.Thread(target=redirect, args=(targets,), daemon=True).start()
        for target in targets:
            with pytest.raises(VideoDecodeError, match="cannot be opened as a video"):
                ask(classify, f"rtsp://127.0.0.1:{listener.getsockname()[1]}/1", timeout=5.0)
            assert served[-1] == target
    assert served == targets and heard == []


# --- for long -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_flat_over_100_000_frames(classify):
    def parts() -> Iterator[bytes]:
        colours = np.random.default_rng(0).integers(0, 255, (64, 1, 1, 3), dtype=np.uint8)
        frames = ((index / 30, np.broadcast_to(colours[index % 64], (32, 32, 3))) for index in range(100_000))
        for _, each in stream(frames):
            yield b"".join(each)

    process, sizes = psutil.Process(), []
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb", buffering=0) as pipe:
            for part in parts():
                pipe.write(part)

    threading.Thread(target=write, daemon=True).start()
    with (
        open(reading, "rb", buffering=0) as pipe,
        classify_stream(classify, pipe, LABELS, window=4.0, stride=4.0) as answers,
    ):
        for number, answer in enumerate(answers):
            end = answer["end"]
            if number % 50 == 0:
                sizes.append(process.memory_info().rss / 2**20)
    assert answers.counts.frames == 100_000 and end > 3300
    print(f"resident MiB after every 6,000 frames: {[round(size) for size in sizes]}")
    assert max(sizes[4:]) - sizes[3] < 16, sizes


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is absent: apt-get install ffmpeg")
@pytest.mark.parametrize("container", ["mpegts", "matroska", "flv"])
def test_streams_that_ffmpeg_serves(classify, container):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/live"
    command = ["ffmpeg", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=30", "-t", "8"]
    command += ["-c:v", "libx264", "-g", "30", "-f", container, "-listen", "1", url]
    with subprocess.Popen(command) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        while not any(
            each.status == psutil.CONN_LISTEN for each in psutil.Process(process.pid).net_connections("tcp")
        ):
            assert process.poll() is None
            time.sleep(0.1)
        answers, _ = ask(classify, url, window=2.0, stride=1.0)
        process.wait(30)
    assert len(answers) >= 5 and {each["segment"] for each in answers} == {0}
    assert sum(each["dropped_frames"] for each in answers) == 0
    assert [each["frames"] for each in answers][:3] == [60, 60, 60]
