"""`--merge_tokens`: faster, other scores, and nothing that keeps scores or features takes one setting for another."""

import json
from pathlib import Path

import pytest

from modeling_mote.commands.command_line import run_command
from modeling_mote.shards import read_record, read_shards

from .conftest import command_line
from .tiny import save_mote


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_video) -> Path:
    """Two videos, in a folder per class."""
    folder = tmp_path_factory.mktemp("kept") / "videos"
    for number, name in enumerate(("left", "right")):
        (folder / name).mkdir(parents=True)
        write_video(folder / name / f"{number}.mp4", num_frames=9 + number, size=(32, 32), codec="mpeg4")
    return folder


@pytest.fixture
def call(shapes_model, capsys):
    """`call(command, *arguments, code=0, **options)`: a command; what it printed, or its error."""

    def run(command: str, *arguments: object, code: int = 0, **options: object) -> str:
        capsys.readouterr()
        options = {"model": shapes_model, "num_workers": 0} | options
        assert run_command(command, [*map(str, arguments), *command_line(options)]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err

    return run


def test_embeddings_and_indexes_are_of_one_setting(call, videos, tmp_path):
    call("embed", videos, output=tmp_path / "plain")
    call("embed", videos, output=tmp_path / "merged", merge_tokens=4)
    plain, merged = (next(read_shards(tmp_path / name))["embedding"].to_pylist() for name in ("plain", "merged"))
    assert plain != merged and read_record(tmp_path / "plain")["merge_tokens"] is None
    assert read_record(tmp_path / "merged")["merge_tokens"] == 4
    assert "another merge_tokens" in call("embed", videos, output=tmp_path / "merged", merge_tokens=2, code=1)
    assert "from 0 to 8" in call("embed", videos, output=tmp_path / "more", merge_tokens=9, code=1)

    call("search", "index", videos, index=tmp_path / "index", merge_tokens=4)
    query = {"video": videos / "left" / "0.mp4", "index": tmp_path / "index", "json": True, "num_workers": None}
    best = json.loads(call("search", "query", **query))["videos"][0]
    assert best["video"].endswith("0.mp4") and best["score"] > 1 - 1e-6  # it is encoded as it was


def test_scores_of_another_setting_are_made_anew(call, videos, tmp_path):
    output, scores = tmp_path / "scores.json", []
    for number in (None, 4, 4):
        call("classify", videos, labels="left, right", output=output, merge_tokens=number)
        told = json.loads(output.read_text())
        assert told["merge_tokens"] == (number or 0)
        scores.append([video["scores"] for video in told["videos"]])
    assert scores[0] != scores[1] == scores[2]


def test_a_result_says_so(run_here, clip_folder, videos, tmp_path):
    options = {"protocol": "own-data", "model": save_mote(tmp_path / "model", clip_folder), "data": videos}
    options |= {"num_workers": 0, "allow_empty_classes": True, "baseline": True, "clip": clip_folder}
    results = {}
    for name, number in (("plain", None), ("merged", 2)):
        assert run_here("evaluate", options | {"output": tmp_path / name, "merge_tokens": number}) == 0
        results[name] = json.loads((tmp_path / name / "result.json").read_text())
    plain, merged = results["plain"], results["merged"]
    assert "merge_tokens" not in plain["deviations"] and merged["deviations"]["merge_tokens"] == 2
    assert plain["checkpoint_sha256"] == merged["checkpoint_sha256"] and plain["run_sha256"] != merged["run_sha256"]
