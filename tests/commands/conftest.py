"""Videos of three classes, a tiny CLIP on disk, and ways to run the commands: in here, alone, or on two processes."""

import contextlib
import csv
import json
import os
import resource
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from modeling_mote.commands.command_line import run_command
from modeling_mote.processing.label_sets import load_label_set

# Where there is an accelerator, two processes would need two of them.
CPU = {"OMP_NUM_THREADS": "1"} | ({"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {})
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CLASSES = ("left", "right", "still")
TEXT = "a photo video example demonstration of person using doing during performing practicing . left right still "


def command_line(options: dict[str, object]) -> list[str]:
    """Options as a command line has them; None stands for an option that is not given."""
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Sums repeat to the last digit, here and in the processes that are started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CPU.items():
            patch.setenv(name, value)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fresh_accelerate() -> Callable[[], None]:
    """Makes accelerate forget its settings, which it keeps for the whole process."""

    def reset() -> None:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()

    return reset


@pytest.fixture
def count_calls() -> Callable[..., contextlib.AbstractContextManager[list[int]]]:
    """`with count_calls("CLIPEncoderLayer") as calls: ...`: `calls[0]` modules of that class ran."""

    @contextlib.contextmanager
    def count(class_name: str) -> Iterator[list[int]]:
        calls = [0]

        def note(module: torch.nn.Module, inputs: object) -> None:
            calls[0] += type(module).__name__ == class_name

        handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
        try:
            yield calls
        finally:
            handle.remove()

    return count


@pytest.fixture
def full_disk() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """`with full_disk(size): ...`: no file may grow beyond so many bytes; writes fail as they do on a full disk."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture(scope="session")
def run_here(fresh_accelerate) -> Callable[[str, dict[str, object]], int]:
    """`run_here(command, options)`: a command in this process, as users call it; its exit code."""

    def run(command: str, options: dict[str, object]) -> int:
        fresh_accelerate()
        with warnings.catch_warnings():
            return run_command(command, command_line(options))

    return run


@pytest.fixture
def refusal(run_here, capsys) -> Callable[..., str]:
    """`refusal(command, options, code=1)`: the sentence on stderr with which the command ends, its code being that."""

    def refuse(command: str, options: dict[str, object], code: int = 1) -> str:
        capsys.readouterr()
        assert run_here(command, options) == code
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1, said
        return said[0].removeprefix("error: ")

    return refuse


def moving_square(label: int, seed: int, num_frames: int = 12, side: int = 32) -> np.ndarray:
    """A bright square on noise that goes left, goes right or stays, uint8 [t, h, w, 3]."""
    draw = np.random.default_rng(seed)
    frames = draw.integers(0, 60, (num_frames, side, side, 3), dtype=np.uint8)
    top, start, colour = draw.integers(0, side - 10), draw.integers(0, side), draw.integers(120, 255, 3)
    for index, frame in enumerate(frames):
        columns = (start + (-2, 2, 0)[label] * index + np.arange(8)) % side
        frame[top : top + 8, columns] = colour
    return frames


@pytest.fixture(scope="session")
def write_list(tmp_path_factory: pytest.TempPathFactory, write_video) -> Callable[..., Path]:
    """`write_list(name, num_clips, bad=(), seed=0)`: clips of the three classes in turn, and their CSV list.

    The clips numbered in `bad` are no videos.
    """

    def write(name: str, num_clips: int, bad: Sequence[int] = (), seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp(name)
        rows = [("path", "label")]
        for index in range(num_clips):
            file = folder / f"clip{index:02d}.mp4"
            if index in bad:
                file.write_bytes(b"this is no video")
            else:
                write_video(file, frames=moving_square(index % 3, 100 * seed + index))
            rows.append((file.name, CLASSES[index % 3]))
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
        return folder / f"{name}.csv"

    return write


@pytest.fixture(scope="session")
def train_list(write_list) -> Path:
    """12 clips to train on."""
    return write_list("training", 12)


@pytest.fixture(scope="session")
def validation_list(write_list) -> Path:
    """7 other clips: an odd number."""
    return write_list("validation", 7, seed=1)


def tiny_clip(folder: Path, width: int = 16, seed: int = 0) -> Path:
    """Writes a CLIP of a few thousand weights with a word tokenizer."""
    words = (TEXT + " ".join(load_label_set("ucf101").classes)).lower().split()
    vocabulary = {word: index for index, word in enumerate(["<unk>", *dict.fromkeys(words), "<start>", "<end>"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(token, vocabulary[token]) for token in ("<start>", "<end>")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
        unk_token="<unk>",
        model_max_length=24,
    )
    end = vocabulary["<end>"]
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 24, "bos_token_id": end - 1, "eos_token_id": end}
    config = CLIPConfig(
        text_config=tower | text | {"pad_token_id": end},
        vision_config=tower | {"image_size": 32, "patch_size": 16},
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """`make_clip(folder, width=16, seed=0)` writes a tiny CLIP."""
    return tiny_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP: frames of 32 × 32, d = 16."""
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen]:
    """`start(script, options, **env)`: the script in a process of its own, as users run it."""

    def run(script: str, options: dict[str, object], **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            [
                sys.executable,
                str(EXAMPLES / f"{script}.py"),
                *command_line(options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | env,
        )

    return run


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.Popen]:
    """`launch(script, options, limit=None)`: the script on two processes, as users run it.

    With a limit, no file may grow beyond so many bytes, as on a full disk.
    """

    def run(
        script: str, options: dict[str, object], limit: int | None = None, start_new_session: bool = False
    ) -> subprocess.Popen:
        def prepare() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
                str(EXAMPLES / f"{script}.py"),
                *command_line(options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=start_new_session,
            preexec_fn=None if limit is None else prepare,
        )

    return run


@pytest.fixture(scope="session")
def run_on_two(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`run_on_two([(command, options), ...], code=0)`: commands, one after another, on two processes; their stderr."""

    def run(cases: Sequence[tuple[str, dict[str, object]]], code: int = 0) -> str:
        file = tmp_path_factory.mktemp("cases") / "cases.json"
        file.write_text(json.dumps([[name, command_line(options), free_port()] for name, options in cases]))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        finished = subprocess.run(
            [sys.executable, *launch, str(Path(__file__).with_name("cases.py")), str(file)],
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert finished.returncode == code, finished.stderr
        return finished.stderr

    return run
