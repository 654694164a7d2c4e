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
