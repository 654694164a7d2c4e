"""The engine Ray, on real clusters of this machine: two CPUs, a node that is lost, a driver that is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from modeling_mote.bulk import VideoScorer
from modeling_mote.bulk_ray import ray_engine
from modeling_mote.bulk_run import embed_all
from modeling_mote.processing.listing import list_items
from modeling_mote.shards import list_shards, read_shards

ray = pytest.importorskip("ray", reason="Ray is absent: pip install mote-transformers[ray]")
pytestmark = pytest.mark.slow
LABELS = ["red bar growing", "blue star spinning"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_video) -> Path:
    """240 clips, of which 12 are broken."""
    folder = tmp_path_factory.mktemp("many")
    clip = write_video(folder / "000.mp4", size=(32, 32), codec="mpeg4")
    for number in range(1, 240):
        if number % 20 == 7:
            (folder / f"{number:03}.mp4").write_bytes(b"no video")
        else:
            os.link(clip, folder / f"{number:03}.mp4")
    return folder


@pytest.fixture
def scorer(shapes_model) -> VideoScorer:
    return VideoScorer(str(shapes_model), LABELS, device="cpu", num_workers=1)


def assert_each_once(output: Path, videos: Path, scorer: VideoScorer) -> None:
    rows = [row for table in read_shards(output) for row in table.to_pylist()]
    assert sorted(row["path"] for row in rows) == sorted(map(str, videos.iterdir()))
    right = scorer({"path": [str(videos / "000.mp4")]})
    for row in rows:
        assert (row["embedding"] is None) == (row["error"] is not None) == (int(Path(row["path"]).stem) % 20 == 7)
        if row["error"] is None:
            np.testing.assert_allclose(row["embedding"], right["embedding"][0], atol=1e-5)
            np.testing.assert_allclose(row["scores"], right["scores"][0], atol=1e-5)


def wait_for_shards(output: Path, count: int, run: threading.Thread | subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while len(list_shards(output)) < count:
        assert run.is_alive() if isinstance(run, threading.Thread) else run.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_cpus_do_not_stall(scorer, videos, tmp_path):
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        items = list_items([str(videos)])
        done = embed_all(scorer, items.slice(0, 100), tmp_path / "out", engine=ray_engine(), shard_rows=50)
        assert (done.listed, done.before, done.failed) == (100, 0, 5)
        kept = {path: path.stat().st_mtime_ns for path in list_shards(tmp_path / "out")}
        done = embed_all(scorer, items, tmp_path / "out", engine=ray_engine(), shard_rows=50)
        assert (done.listed, done.before, done.failed) == (240, 100, 7)
        assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
        assert ray.is_initialized()  # it was not ours to end
    finally:
        ray.shutdown()
    assert_each_once(tmp_path / "out", videos, scorer)


def test_a_node_that_is_lost_costs_no_row(scorer, videos, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        arguments = (scorer, list_items([str(videos)]), tmp_path / "out")
        options = {"engine": ray_engine(), "shard_rows": 1}
        errors = []

        def run() -> None:
            try:
                embed_all(*arguments, **options)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        wait_for_shards(tmp_path / "out", 1, thread)
        cluster.remove_node(lost, allow_graceful=False)
        assert thread.is_alive()
        thread.join(timeout=300)
        assert not thread.is_alive() and not errors
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert_each_once(tmp_path / "out", videos, scorer)


def test_a_driver_that_is_killed(scorer, shapes_model, videos, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "modeling_mote", "embed", videos, "--output", output, "--model", shapes_model]
    options = ["--engine", "ray", "--labels", ", ".join(LABELS), "--device", "cpu", "--shard_rows", 1]
    call = list(map(str, command + options))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(call, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_shards(output, 1, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    kept = {path: path.stat().st_mtime_ns for path in list_shards(output)}
    assert subprocess.run(call, env=environment, timeout=300, stderr=subprocess.DEVNULL).returncode == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert_each_once(output, videos, scorer)
    _, alive = psutil.wait_procs(family, timeout=60)  # those of the run that was killed have ended, too
    assert not alive
