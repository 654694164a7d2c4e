"""Shared fixtures: real video files written with PyAV, and the folder of real clips and reference outputs."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

# Before transformers is imported: tests never reach the Hub nor write into the user's caches.
_HF_HOME = tempfile.mkdtemp(prefix="mote-hf-home-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = _HF_HOME
os.environ["HF_MODULES_CACHE"] = str(Path(_HF_HOME, "modules"))

import av  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# A shell's background job ignores Ctrl-C, and so would the processes that tests start in it and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers already share the cores: they, and the processes that they start, take one each.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real clips and the reference outputs, which is not part of the repository."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared"
    if not folder.is_dir():
        pytest.skip("the real clips and reference outputs are absent: no ../shared folder beside the repository")
    return folder.resolve()


def distinct_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Frames of which no two are alike, also after lossy coding: a grey level and a moving bright bar.

    Args:
        num_frames: How many, t.
        height: In pixels, h.
        width: In pixels, w.

    Returns:
        uint8 array [t, h, w, 3].
    """
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    ramp = np.linspace(0, 60, width, dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[..., 0] = 40 + (index * 37) % 120
        frame[..., 1] = 60 + ramp
        frame[..., 2] = 200 - (index * 23) % 160
        left = index * 5 % width
        frame[: height // 2, left : left + max(2, width // 8)] = 255
    return frames


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """A function that writes a real video file and returns its path.

    `write_video(path, num_frames=16, size=(48, 64), fps=8, codec="libx264", gop=12, pix_fmt="yuv420p", frames=None,
    **options)`: `size` is (height, width) in pixels; `frames` [t, h, w, 3], uint8, replaces the generated ones and
    sets number and size; `options` go to the encoder (`bf="2"`, `crf="18"`, ...).
    """

    def write(
        path: str | Path,
        num_frames: int = 16,
        size: tuple[int, int] = (48, 64),
        fps: int | float | Fraction = 8,
        codec: str = "libx264",
        gop: int = 12,
        pix_fmt: str = "yuv420p",
        frames: Iterable[np.ndarray] | None = None,
        **options: object,
    ) -> Path:
        path = Path(path)
        images = distinct_frames(num_frames, *size) if frames is None else [np.asarray(frame) for frame in frames]
        height, width = images[0].shape[:2]
        encoder_options = {"g": str(gop), **{name: str(value) for name, value in options.items()}}
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(30000), options=encoder_options)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            for image in images:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def shapes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's CLIP with temporal layers that were hardly trained: it knows colours and shapes, but not motions."""
    from transformers import AutoTokenizer

    from modeling_mote import MoTEForVideoClassification
    from modeling_mote.processing import MoTEProcessor, MoTEVideoProcessor, encode_classes

    folder = tmp_path_factory.mktemp("shapes") / "model"
    clip, names = (
        Path(__file__).resolve().parents[1] / "examples" / "moving_shapes_clip",
        ["red bar growing", "blue star spinning"],
    )
    tokenizer = AutoTokenizer.from_pretrained(clip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MoTEForVideoClassification.from_pretrained(clip)
        with torch.no_grad():
            for weight in model.temporal_model.parameters():
                weight += 0.01 * torch.randn_like(weight)
    model.set_training_classes(names, encode_classes(model, tokenizer, names))
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    model.save_pretrained(folder)
    MoTEProcessor(MoTEVideoProcessor(num_frames=8, **sizes), tokenizer).save_pretrained(folder)
    return folder


def pytest_unconfigure() -> None:
    """Remove the temporary caches."""
    shutil.rmtree(_HF_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the `shared` fixture, so that `-m "not shared"` leaves them all out."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared)


@pytest.fixture(scope="session")
def word_tokenizer() -> Callable[..., object]:
    """A function that makes a tokenizer of one token a word, which frames and pads texts as CLIP's does.

    `word_tokenizer(words, model_max_length, start=None)`: ids follow the words' order, 0 is `<unk>`; `start` is the id
    of `<start>`, by default the next free one, and `<end>`, the padding too, is the one after it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(words: Iterable[str], model_max_length: int, start: int | None = None) -> PreTrainedTokenizerFast:
        vocabulary = {word: index for index, word in enumerate(dict.fromkeys(["<unk>", *words]))}
        start = len(vocabulary) if start is None else start
        specials = {"<start>": start, "<end>": start + 1}
        backend = Tokenizer(models.WordLevel(vocabulary | specials, unk_token="<unk>"))
        backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
        backend.post_processor = processors.TemplateProcessing(
            single="<start> $A <end>", special_tokens=list(specials.items())
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<start>",
            eos_token="<end>",
            pad_token="<end>",
            unk_token="<unk>",
            model_max_length=model_max_length,
        )

    return make
