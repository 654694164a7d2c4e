"""The wheel: one import name, everything below it, and commands that work in any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # From a copy: setuptools leaves build/ and egg-info beside what it builds.
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("modeling_mote", "processing", "examples", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(built.glob("*.whl"))


def test_holds_one_package_and_nothing_else(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    tracked = {
        place + path.relative_to(ROOT / folder).as_posix()
        for folder, place in (("modeling_mote", "modeling_mote/"), ("processing", "modeling_mote/processing/"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(names) == tracked
    metadata = zipfile.ZipFile(wheel).read(
        next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))
    )
    assert b"License-File: LICENSE" in metadata and b"License-File: NOTICE" in metadata


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The `bin` of a new environment with the wheel in it; its dependencies are those of this environment."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    where = [str(binaries / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.check_output(where, text=True).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return binaries


@pytest.fixture
def crowded(tmp_path) -> Path:
    """A folder whose own files have the names of our folder and of a library that we use."""
    for name in ("processing", "evaluate", "commands"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file was imported')\n")
    return tmp_path


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess:
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_imports_beside_a_processing_of_ones_own(environment, crowded):
    code = (
        "import sys, modeling_mote\n"
        "from modeling_mote.processing.label_sets import load_label_set\n"
        "from transformers import AutoConfig, pipeline\n"
        "assert len(load_label_set('kinetics400')) == 400\n"
        "AutoConfig.for_model('mote')\n"
        "sys.path.pop(0)  # whose evaluate.py is no library\n"
        "from modeling_mote.processing.metrics import load_metric\n"
        "load_metric('topk_accuracy')\n"
        "print(modeling_mote.__file__, modeling_mote.processing.__file__)\n"
    )
    package, processing = run([environment / "python", "-c", code], crowded).stdout.split()
    assert Path(processing).parent == Path(package).parent / "processing"
    assert environment.parent in Path(package).parents


def test_the_command_is_on_the_path(environment, crowded):
    listed = run([environment / "mote", "--help"], crowded).stdout
    assert all(f"  {name} " in listed for name in ("classify", "search", "train", "evaluate", "check", "convert"))
    assert run([environment / "python", "-P", "-m", "modeling_mote", "--help"], crowded).stdout == listed


@pytest.mark.slow
def test_trains_classifies_and_searches_with_the_wheel_alone(environment, crowded, write_video):
    colours = {"red": (200, 20, 20), "green": (20, 200, 20)}
    for name, colour in colours.items():
        (crowded / "my_videos" / name).mkdir(parents=True)
        for index in range(6):
            frames = np.full((12, 32, 32, 3), colour, np.uint8) + np.uint8(5 * index)
            write_video(crowded / "my_videos" / name / f"{index}.mp4", frames=frames)
    mote, clip = environment / "mote", ROOT / "examples" / "moving_shapes_clip"
    run([mote, "train", "--data", "my_videos", "--model", clip, "--output", "run", "--epochs", "2"], crowded)
    scored = run([mote, "classify", "my_videos", "--model", "run/model", "--labels", "red, green"], crowded)
    assert scored.stdout.count(".mp4") == 12
    run([mote, "search", "index", "my_videos", "--model", "run/model", "--index", "my.index"], crowded)
    assert ".mp4" in run([mote, "search", "query", "a red video", "--index", "my.index"], crowded).stdout
