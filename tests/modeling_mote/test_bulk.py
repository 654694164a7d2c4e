"""One scorer under everything that calls it on batches: the pipeline's own numbers, whatever the batch is made of."""

import concurrent.futures
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from modeling_mote.bulk import VideoScorer
from modeling_mote.bulk_run import embed_all
from modeling_mote.loading import load_pipeline
from modeling_mote.processing import MoTEVideoProcessor, classify_windows, decode_video
from modeling_mote.processing.calibration import fit_calibration
from modeling_mote.processing.listing import list_items

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bulk.md"
LABELS = ["red bar growing", "blue star spinning", "green cross moving left"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_video) -> list[str]:
    """Three clips, the second of which is none."""
    folder = tmp_path_factory.mktemp("bulk")
    files = [folder / f"{name}.mp4" for name in ("a", "broken", "c")]
    write_video(files[0], num_frames=24, size=(32, 48))
    files[1].write_bytes(b"no video")
    write_video(files[2], num_frames=40, size=(40, 32))
    return [str(file) for file in files]


@pytest.fixture(scope="module")
def classify(shapes_model):
    return load_pipeline(str(shapes_model), "cpu")


@pytest.fixture(scope="module")
def expected(classify, videos):
    """(embedding, scores) of the clips that can be read, by the model's and the pipeline's own doors."""

    def of(video):
        inputs = classify.processor(videos=[video], return_tensors="pt")
        feature = F.normalize(classify.model.get_video_features(**inputs).pooler_output, dim=-1)[0]
        scores = {row["label"]: row["score"] for row in classify(video, candidate_labels=LABELS)}
        return feature.detach().numpy(), np.array([scores[label] for label in LABELS])

    return [of(videos[0]), None, of(videos[2])]


def assert_rows(rows, expected):
    """Rows of one result per clip are what is expected, to 1e-5."""
    assert len(rows) == len(expected)
    for row, right in zip(rows, expected, strict=True):
        if right is None:
            assert "broken.mp4" in row["error"] and row["embedding"] is None and row["scores"] is None
            continue
        assert row["error"] is None and row["warning"] is None
        np.testing.assert_allclose(row["embedding"], right[0], atol=1e-5)
        np.testing.assert_allclose(row["scores"], right[1], atol=1e-5)


@pytest.fixture
def page(shapes_model, videos, tmp_path, monkeypatch):
    """`page("ray")`: the page's snippet for it, in a folder that holds what it names."""
    for name, target in (
        ("runs/moving_shapes/model", shapes_model),
        ("my_videos/red/0.mp4", videos[0]),
        ("my_videos/blue/0.mp4", videos[2]),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {text.split()[1]: text for text in snippets}.__getitem__


def rows_of(columns) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_kinds_of_batches(shapes_model, videos, expected):
    scorer = VideoScorer(str(shapes_model), LABELS, device="cpu", batch_size=2)
    given = {"path": videos, "id": [7, 8, 9]}
    for batch in (given, {name: np.array(values) for name, values in given.items()}):
        rows = rows_of(scorer(batch))
        assert [row["id"] for row in rows] == [7, 8, 9] and [row["path"] for row in rows] == videos
        assert_rows(rows, expected)
    table = scorer(pa.table(given))
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    assert table.column_names == ["path", "id", "embedding", "scores", "error", "warning"]
    assert_rows(table.to_pylist(), expected)
    frame = scorer(pd.DataFrame(given, index=["x", "y", "z"]))
    frame = frame.astype(object).where(frame.notna(), None)  # pandas has NaN for a text that is not there
    assert_rows(rows_of({name: frame[name].tolist() for name in frame.columns}), expected)
    assert scorer(pa.table(given).slice(0, 0)).num_rows == 0


def test_paths_bytes_and_rows_of_datasets(shapes_model, videos, expected):
    scorer = VideoScorer(str(shapes_model), LABELS, device="cpu", num_workers=0)
    content = [Path(video).read_bytes() for video in videos]
    assert_rows(rows_of(scorer({"bytes": content, "path": videos})), expected)
    assert_rows(rows_of(scorer({"bytes": [content[0], None, content[2]], "path": videos})), expected)
    assert_rows(rows_of(scorer({"video": [{"path": path, "bytes": None} for path in videos]})), expected)
    assert "row 1" in scorer({"path": [videos[0], None]})["error"][1]


def test_parts_of_videos(shapes_model, classify, videos):
    scorer = VideoScorer(str(shapes_model), LABELS, device="cpu")
    found = scorer({"path": [videos[2]] * 3, "start": [1.0, None, 0.5], "end": [2.5, 2.0, None]})
    for scores, (start, end) in zip(found["scores"], ((1.0, 2.5), (None, 2.0), (0.5, None)), strict=True):
        frames, _ = decode_video(videos[2], start=start, end=end)
        right = {row["label"]: row["score"] for row in classify(frames, candidate_labels=LABELS)}
        np.testing.assert_allclose(scores, [right[label] for label in LABELS], atol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_windows(shapes_model, classify, videos, num_workers):
    options = {"window": 2.0, "stride": 0.5, "batch_size": 3, "num_workers": num_workers}
    found = rows_of(VideoScorer(str(shapes_model), LABELS, device="cpu", **options)({"path": videos, "id": [1, 2, 3]}))
    assert [row["id"] for row in found] == [1] * 3 + [2] + [3] * 7
    assert "broken.mp4" in found[3]["error"] and found[3]["start"] is found[3]["embedding"] is None
    for video, rows in ((videos[0], found[:3]), (videos[2], found[4:])):
        windows = classify_windows(classify, video, LABELS, window=2.0, stride=0.5)
        for row, right in zip(rows, windows, strict=True):
            assert (row["start"], row["end"]) == (right["start"], right["end"])
            np.testing.assert_allclose(row["scores"], [right["scores"][label] for label in LABELS], atol=1e-5)
            frames, _ = decode_video(video, start=row["start"], end=row["end"])
            feature = classify.model.get_video_features(**classify.processor(videos=[frames], return_tensors="pt"))
            right = F.normalize(feature.pooler_output, dim=-1)[0].detach().numpy()
            np.testing.assert_allclose(row["embedding"], right, atol=1e-5)


def test_without_labels_and_with_other_frames(shapes_model, classify, videos):
    found = VideoScorer(str(shapes_model), device="cpu", num_frames=4, num_clips=2)({"path": videos[:1]})
    inputs = classify.processor(videos=[videos[0]], num_frames=4, num_clips=2, return_tensors="pt")
    views = classify.model.get_video_features(inputs["pixel_values_videos"][0]).pooler_output
    feature = F.normalize(F.normalize(views, dim=-1).mean(0), dim=-1)
    np.testing.assert_allclose(found["embedding"][0], feature.detach().numpy(), atol=1e-5)
    assert found["scores"] == [None]


def test_scores_of_a_calibrated_checkpoint_are_its_pipelines(shapes_model, videos, tmp_path):
    """And rows under another calibration are refused."""
    cosines = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    calibration = fit_calibration(cosines, cosines.argmax(1)).to_dict()
    for name in ("one", "other"):
        shutil.copytree(shapes_model, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["calibration"] = calibration
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        calibration = {**calibration, "temperature": 2 * calibration["temperature"]}
    scorer = VideoScorer(str(tmp_path / "one"), LABELS, device="cpu")
    scores = {row["label"]: row["score"] for row in load_pipeline(str(tmp_path / "one"), "cpu")(videos[0], LABELS)}
    for options in ({}, {"window": 10.0}):
        found = VideoScorer(str(tmp_path / "one"), LABELS, device="cpu", **options)({"path": videos[:1]})
        np.testing.assert_allclose(found["scores"][0], [scores[label] for label in LABELS], atol=1e-5)
    plain = VideoScorer(str(shapes_model), LABELS, device="cpu")({"path": videos[:1]})
    assert np.abs(plain["scores"][0] - found["scores"][0]).max() > 1e-3
    embed_all(scorer, list_items(videos), tmp_path / "out")
    assert embed_all(scorer, list_items(videos), tmp_path / "out").before == 3
    with pytest.raises(ValueError, match="was made with another calibration or modulation than this run has"):
        embed_all(VideoScorer(str(tmp_path / "other"), LABELS), list_items(videos), tmp_path / "out")


def die_of(name: str, times: int, monkeypatch, tmp_path: Path) -> None:
    """Make reading of a file kill its process, so many times; a fork inherits the trap."""
    read, killed = MoTEVideoProcessor.read, tmp_path / "killed"
    killed.mkdir()

    def read_or_die(self, video, *args, **kwargs):
        if str(video).endswith(name) and len(os.listdir(killed)) < times:
            (killed / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, video, *args, **kwargs)

    monkeypatch.setattr(MoTEVideoProcessor, "read", read_or_die)


def test_a_file_that_kills_its_reader_costs_that_file(shapes_model, videos, expected, monkeypatch, tmp_path):
    die_of("a.mp4", 2, monkeypatch, tmp_path)
    rows = rows_of(VideoScorer(str(shapes_model), LABELS, device="cpu")({"path": [*videos, videos[0]]}))
    assert "a.mp4 can't be read: reading it kills the process (signal SIGKILL)" in rows[0]["error"]
    assert_rows(rows[1:], [*expected[1:], expected[0]])


def test_a_reader_that_is_killed_from_outside_costs_nothing(shapes_model, videos, expected, monkeypatch, tmp_path):
    die_of("a.mp4", 1, monkeypatch, tmp_path)
    assert_rows(rows_of(VideoScorer(str(shapes_model), LABELS, device="cpu")({"path": videos})), expected)


def test_under_datasets(shapes_model, videos, expected, tmp_path):
    scorer = VideoScorer(str(shapes_model), LABELS, device="cpu")
    rows = datasets.Dataset.from_dict({"path": videos, "id": [7, 8, 9]})
    found = rows.map(scorer, batched=True, batch_size=2)
    assert_rows(list(found), expected)
    assert scorer.ready and pickle.loads(pickle.dumps(scorer))._ready is None  # what travels holds no model
    again = rows.map(VideoScorer(str(shapes_model), LABELS, device="cpu"), batched=True, batch_size=2)
    assert again._fingerprint == found._fingerprint  # so that `datasets` finds what it has


def test_a_video_column_of_datasets(shapes_model, videos, expected):
    rows = datasets.Dataset.from_dict({"video": videos}).cast_column("video", datasets.Video(decode=False))
    found = rows.map(VideoScorer(str(shapes_model), LABELS, device="cpu"), batched=True, remove_columns="video")
    assert_rows(list(found), expected)


@pytest.mark.slow
def test_under_processes_that_are_spawned(shapes_model, videos, expected):
    scorer = VideoScorer(str(shapes_model), LABELS, device="cpu")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as pool:
        batches = list(pool.map(scorer, [{"path": [video]} for video in videos]))
    assert_rows([row for batch in batches for row in rows_of(batch)], expected)


def test_under_daft(shapes_model, videos, expected, page):
    daft = pytest.importorskip("daft", reason="daft is absent: pip install daft")
    scorer = VideoScorer(str(shapes_model), LABELS, device="cpu")
    kind = daft.DataType.struct(
        {
            "embedding": daft.DataType.list(daft.DataType.float32()),
            "scores": daft.DataType.list(daft.DataType.float32()),
            "error": daft.DataType.string(),
            "warning": daft.DataType.string(),
        }
    )

    @daft.cls
    class Scores:
        @daft.method.batch(return_dtype=kind, unnest=True)
        def score(self, path: daft.Series):
            return rows_of(scorer({"path": path.to_pylist()}))

    rows = daft.from_pydict({"path": videos})
    assert_rows(rows.select(daft.col("path"), Scores().score(rows["path"])).to_pylist(), expected)
    names: dict = {}
    exec(compile(page("daft"), str(PAGE), "exec"), names)
    [row] = names["videos"].select(names["Embed"]()(daft.col("path"))).to_pylist()
    np.testing.assert_allclose(row["embedding"], expected[0][0], atol=1e-5)


@pytest.mark.slow
def test_under_ray(shapes_model, videos, expected, page):
    """Whatever form the batches have; and as docs/bulk.md shows it."""
    ray = pytest.importorskip("ray", reason="Ray is absent: pip install mote-transformers[ray]")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        rows = ray.data.from_items([{"path": video} for video in videos])
        scorer = VideoScorer(str(shapes_model), LABELS, device="cpu")
        for form in ("pyarrow", "pandas", "numpy"):
            found = rows.map_batches(scorer, batch_format=form).take_all()
            assert_rows(sorted(found, key=lambda row: row["path"]), expected)
        names = {"VideoScorer": VideoScorer}
        exec(compile(page("ray"), str(PAGE), "exec"), names)
        found = {row["path"]: row["embedding"] for row in names["rows"].take_all()}
        np.testing.assert_allclose(found["my_videos/red/0.mp4"], expected[0][0], atol=1e-5)
        np.testing.assert_allclose(found["my_videos/blue/0.mp4"], expected[2][0], atol=1e-5)
    finally:
        ray.shutdown()


def pool_error(scorer: VideoScorer, video: str) -> str:
    try:
        scorer({"path": [video]})
    except ValueError as error:
        return str(error)
    return ""


def test_a_pool_of_daemons_is_told_what_to_do(shapes_model, videos):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        said = pool.apply(pool_error, (VideoScorer(str(shapes_model), device="cpu"), videos[0]))
    assert "use concurrent.futures.ProcessPoolExecutor, or num_workers=0" in said


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({}, {"file": ["a.mp4"]}, "needs a column path, bytes or video; this one has file"),
        ({}, [{"path": "a.mp4"}], "is a dict of columns, an Arrow table or a DataFrame; this is a list"),
        ({"window": 2.0}, {"path": ["a.mp4"], "start": [1.0]}, "are parts of videos, which are not cut in windows"),
        ({"window": 0}, {}, "window is 0: pass a number of seconds"),
        ({"batch_size": 0}, {}, "batch_size is 0"),
        ({"num_workers": -1}, {}, "num_workers is -1"),
        ({"frames": 3}, {}, "unknown argument 'frames' of VideoScorer"),
        ({"window": 2.0, "fps": 3}, {}, "unknown argument 'fps' of VideoScorer"),
        ({"num_clips": 0}, {"path": ["a.mp4"]}, "num_clips is 0"),
        ({"labels": ["a", "a"]}, {}, "'a'"),
        ({"prompts": "none"}, {}, "none"),
    ],
)
def test_what_makes_no_sense_is_said(shapes_model, options, batch, message):
    with pytest.raises(ValueError, match=message):
        VideoScorer(str(shapes_model), device="cpu", **options)(batch)
