"""The benchmark runs and writes what it prints; its timings are nobody's to assert."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "experiments" / "benchmark.py"


@pytest.mark.slow
def test_rows_are_printed_and_written(tmp_path):
    command = [sys.executable, str(SCRIPT), "--rows", "reading", "start", "--rounds", "1", "--output", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row["measured"] for row in json.loads((tmp_path / "benchmark.json").read_text())}
    assert all(what in done.stdout for what in rows)
    # What was computed is checked in the run that times it.
    equal = [measured for what, measured in rows.items() if what.endswith("frames equal to a sequential decode")]
    assert len(equal) == 3 and set(equal) == {"True"}


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


TOWER = ["matrix products", "attention", "QuickGELU", "layer norms", "residual adds", "patch embedding"]
STAGES = ["opening", "decoding", "choosing, resizing", *TOWER, "rest of the tower", "head, modulation, scores"]
STAGES += ["texts of 20 labels"]


@pytest.mark.slow
def test_every_stage_of_a_video_is_measured_and_drawn(tmp_path):
    command = [sys.executable, "stages.py", "--rounds", "1", "--report", str(tmp_path)]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "stages.json").read_text())
    alone, together = "one clip", "per clip of a folder, batches of 8"
    assert list(found) == [alone, together]
    for title, stages in found.items():
        assert list(stages) == STAGES
        for name, spent in stages.items():
            assert re.search(rf"^  {re.escape(name)} +{re.escape(f'{spent:.1f}')} ms ", done.stdout, re.M)
            # What choosing takes may be lost beside decoding, and what is in no kind in the profiler's own time.
            may_be_none = name in ("choosing, resizing", "rest of the tower")
            may_be_none |= title == together and name == "texts of 20 labels"
            assert spent > 0 or may_be_none and spent == 0, (title, name, spent)
        assert max(TOWER, key=stages.get) == "matrix products"
    assert found[together]["texts of 20 labels"] == 0  # they are encoded once for all
    # A batch of 8 has the work of 8 clips: it is not that of one, an eighth of it for each.
    assert found[together]["matrix products"] > found[alone]["matrix products"] / 3
    with Image.open(tmp_path / "pictures" / "stages.png") as picture:
        colours = picture.convert("RGB").getcolors(picture.width * picture.height)
    assert len([count for count, (red, green, blue) in colours if count > 99 and len({red, green, blue}) > 1]) >= 9
