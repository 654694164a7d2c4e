"""The benchmark runs and writes what it prints; its timings are nobody's to assert."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "experiments" / "benchmark.py"


@pytest.mark.slow
def test_rows_are_printed_and_written(tmp_path):
    command = [sys.executable, str(SCRIPT), "--rows", "head", "start", "--rounds", "1", "--output", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row["measured"] for row in json.loads((tmp_path / "benchmark.json").read_text())}
    assert all(what in done.stdout for what in rows)
    # What was computed is checked in the run that times it.
    assert rows["merges of experts in those forwards"] == "0"


@pytest.mark.slow
def test_growth_is_measured_and_drawn(tmp_path):
    command = [
        sys.executable,
        "growth.py",
        "--curves",
        "classes",
        "experts",
        "--rounds",
        "2",
        "--report",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "growth.json").read_text())
    assert list(found) == ["classes", "experts"] and (tmp_path / "pictures" / "growth.png").stat().st_size > 10_000
    for rows in found.values():
        assert len(rows["sizes"]) >= 5
        assert [len(each) for each in rows["measured"]] == [2] * len(rows["sizes"])
        assert all(times for times in rows["bound"])


@pytest.mark.slow
def test_stages_of_a_video_add_up(tmp_path):
    command = [sys.executable, "stages.py", "--rounds", "1", "--report", str(tmp_path)]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    for title, stages in json.loads((tmp_path / "stages.json").read_text()).items():
        assert f"{title}: {sum(stages.values()):.0f} ms" in done.stdout
        assert all(spent >= 0 for spent in stages.values()) and stages["matrix products"] > stages["residual adds"]
    assert (tmp_path / "pictures" / "stages.png").stat().st_size > 10_000
