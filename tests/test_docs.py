"""Every snippet of the README and of docs/, run as a reader would, in a folder that holds what it names.

A command that needs what is not here says so behind it: `# needs ...`.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {  # pages about one command or script, run by its own tests
    "ablation.md": "examples/test_ablation.py",
    "export.md": "commands/test_export.py",
    "hub.md": "commands/test_push.py",
    "live.md": "commands/test_classify_live.py",
    "long_videos.md": "commands/test_classify.py",
    "mteb.md": "examples/test_mteb.py",
}
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
BLOCKS = [
    (page, language, text)
    for page, content in PAGES.items()
    if page not in ELSEWHERE
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", content, flags=re.M | re.S)
]
PYTHON = [
    pytest.param(text, id=f"{page}-{i}") for i, (page, language, text) in enumerate(BLOCKS) if language == "python"
]
LINES = [
    (page, line) for page, language, text in BLOCKS if language == "" for line in text.splitlines() if line.strip()
]
COMMANDS = [
    pytest.param(line, id=f"{page}-{i}")
    for i, (page, line) in enumerate(LINES)
    if not line.startswith(("make ", "pip ", "python3 -m venv ")) and "  # needs " not in line
]
CONVERSIONS = [each for each in COMMANDS if each.values[0].startswith("mote convert ")]


def write_colour(write_video, path: Path, colour: tuple[int, int, int], seed: int) -> None:
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 40, (12, 32, 32, 3))
    write_video(path, frames=(np.array(colour) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_video) -> Path:
    """A reader's folder: the repository's examples, a CLIP, videos, and what `make demo` leaves."""
    import torch
    from transformers import AutoTokenizer, CLIPModel

    from modeling_mote import MoTEForVideoClassification
    from modeling_mote.processing import MoTEProcessor, MoTEVideoProcessor, encode_classes

    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    clip = folder / "openai" / "clip-vit-base-patch16"
    clip.parent.mkdir()
    CLIPModel.from_pretrained(ROOT / "examples" / "moving_shapes_clip").save_pretrained(clip)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "moving_shapes_clip")
    tokenizer.save_pretrained(clip)
    model = MoTEForVideoClassification.from_pretrained(clip)
    names = ["red bar growing", "red bar shrinking"]
    model.set_training_classes(names, encode_classes(model, tokenizer, names))
    with torch.no_grad():  # a head that was never trained is refused
        for parameter in model.temporal_model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    video_processor = MoTEVideoProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, num_frames=8, short_video="loop"
    )
    demo = folder / "runs" / "moving_shapes"
    model.save_pretrained(demo / "model")
    MoTEProcessor(video_processor=video_processor, tokenizer=tokenizer).save_pretrained(demo / "model")
    write_colour(write_video, demo / "example.mp4", (200, 20, 20), 0)
    write_colour(write_video, demo / "long.mp4", (20, 20, 200), 0)
    colours = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "yellow": (200, 200, 20)}
    lines = ["path,label"]
    for name, colour in colours.items():
        for index in range(20):
            write_colour(write_video, folder / "my_videos" / name / f"{index}.mp4", colour, index)
        lines += [f"my_videos/{name}/{index}.mp4,{name}" for index in range(3)]
    (demo / "videos").symlink_to(folder / "my_videos")  # a folder per class, as the demo leaves one
    (folder / "my_test.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(command: list[str], folder: Path) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_first_screen_shows_both_commands():
    first_screen = README.split("## ")[0]
    assert "make demo" in first_screen and "make test" in first_screen
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:", makefile, flags=re.M) and re.search(r"^test:", makefile, flags=re.M)


def test_pages_run_elsewhere_are_read_there():
    for page, name in ELSEWHERE.items():
        assert page in PAGES and page in (ROOT / "tests" / name).read_text(encoding="utf-8"), page


@pytest.mark.slow
def test_python_snippets(folder):
    snippets = [each.values[0] for each in PYTHON[1:]]  # the first one is run below
    code = "for number, text in enumerate(SNIPPETS):\n    exec(compile(text, f'snippet {number}', 'exec'), {})"
    run([sys.executable, "-c", f"SNIPPETS = {snippets!r}\n{code}"], folder)


def test_first_snippet_prints_a_label_with_its_score(folder):
    assert re.search(
        r"\{'score': 0\.\d+, 'label': '[\w ]+', 'similarity': -?0\.\d+\}",
        run([sys.executable, "-c", PYTHON[0].values[0]], folder),
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in CONVERSIONS])
def test_command(command, folder):
    # In the pages' order: what is trained is then scored.
    run(shlex.split(command, comments=True), folder)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("command", CONVERSIONS)
def test_conversion_command(command, tmp_path, shared):
    (tmp_path / "MoTE_B16.pt").symlink_to(shared / "reference" / "original_checkpoint.pt")
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "clip-vit-base-patch16").symlink_to(shared / "reference" / "clip")
    run(shlex.split(command, comments=True), tmp_path)
    assert (tmp_path / "mote-vitb16" / "config.json").is_file()
