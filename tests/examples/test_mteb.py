"""docs/mteb.md, as a reader runs it: MTEB's own evaluator scores a MoTE as this package does, and models beside it."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    VideoMAEImageProcessor,
    XCLIPConfig,
    XCLIPModel,
    XCLIPProcessor,
)

from modeling_mote import MoTEConfig, MoTEModel
from modeling_mote.processing import decode_video
from modeling_mote.processing.builders.moving_shapes import encode_mp4, render_clip

pytest.importorskip("mteb", reason="MTEB is absent: pip install 'mote-transformers[mteb]'")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "mteb.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.M | re.S)
CLASSES = ["red bar growing", "red bar shrinking", "blue star spinning", "green moon blinking"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shapes_model) -> Path:
    """A reader's folder: the repository's examples, a checkpoint, and five MovingShapes clips of each class."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "runs" / "moving_shapes").mkdir(parents=True)
    (folder / "runs" / "moving_shapes" / "model").symlink_to(shapes_model)
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "my_videos" / name.replace(" ", "_")).mkdir(parents=True)
        for number in range(5):
            clip = encode_mp4(render_clip(*name.split(" ", 2), rng, num_frames=16), fps=8)
            (folder / "my_videos" / name.replace(" ", "_") / f"{number}.mp4").write_bytes(clip)
    (folder / "runs" / "moving_shapes" / "example.mp4").write_bytes(clip)
    return folder


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def list_files(folder: Path) -> list[str]:
    """The videos, in the order of their classes."""
    return [
        str(path)
        for name in sorted(CLASSES)
        for path in sorted((folder / "my_videos" / name.replace(" ", "_")).iterdir())
    ]


def choose_frames(file: str) -> list[np.ndarray]:
    """Eight frames, from the first to the last."""
    frames = decode_video(file)[0]
    return list(frames[np.linspace(0, len(frames) - 1, 8).round().astype(int)])


def count_right(videos: torch.Tensor, texts: torch.Tensor) -> float:
    """Top-1 in percent of features of the clips, in the order of their classes."""
    scores = torch.nn.functional.cosine_similarity(videos[:, None], texts[None], dim=-1)
    return 100 * (scores.argmax(-1) == torch.arange(len(texts)).repeat_interleave(5)).float().mean().item()


@torch.no_grad()
def test_mteb_scores_a_mote_and_a_clip_as_this_package_does(folder):
    (command,) = [line for _, text in BLOCKS for line in text.splitlines() if "moving_shapes_clip" in line]
    said = run([sys.executable, *shlex.split(command)[1:]], folder)
    found = {
        name: float(top1)
        for name, top1 in re.findall(r"^(\S+): top-1 ([\d.]+) % of 20 videos, 4 classes$", said, re.M)
    }
    files = list_files(folder)
    texts = [f"a video of {name}." for name in sorted(CLASSES)]
    model = AutoModel.from_pretrained(folder / "runs" / "moving_shapes" / "model").eval()
    processor = AutoProcessor.from_pretrained(folder / "runs" / "moving_shapes" / "model")
    videos = model.get_video_features(**processor(videos=files, return_tensors="pt")).pooler_output
    expected = {"runs/moving_shapes/model": count_right(videos, text_features(model, processor, texts))}
    clip = AutoModel.from_pretrained(ROOT / "examples" / "moving_shapes_clip").eval()
    pictures = AutoProcessor.from_pretrained(ROOT / "examples" / "moving_shapes_clip")
    means = [
        clip.get_image_features(**pictures(images=choose_frames(file), return_tensors="pt")).pooler_output.mean(0)
        for file in files
    ]
    expected["examples/moving_shapes_clip"] = count_right(torch.stack(means), text_features(clip, pictures, texts))
    assert found == pytest.approx(expected, abs=0.006)
    assert (
        25 < found["examples/moving_shapes_clip"] < 100
    )  # neither all right nor by chance: the numbers say something


def text_features(model, processor, texts: list[str]) -> torch.Tensor:
    inputs = processor(text=texts, padding=True, return_tensors="pt")
    return model.get_text_features(**inputs).pooler_output


def test_the_snippet(folder):
    (snippet,) = [text for language, text in BLOCKS if language == "python"]
    assert re.search(r"tensor\(\[\[ *-?0\.\d+, *-?0\.\d+\]\]\)", run([sys.executable, "-c", snippet], folder))


def keeping(kept: dict[str, Any], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that leaves what it returns in `kept`."""

    def call(*args: Any, **options: Any) -> Any:
        kept[name] = method(*args, **options)
        return kept[name]

    return call


@torch.no_grad()
def test_x_clip_runs_on_the_same_task(folder, monkeypatch, tmp_path):
    """MTEB's own wrapper, of a small X-CLIP of random weights."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import mteb
    import mteb_videos
    from mteb.models.model_implementations.xclip_models import XCLIPModel as Wrapper
    from mteb.models.model_meta import ModelMeta

    clip = CLIPConfig.from_pretrained(ROOT / "examples" / "moving_shapes_clip")
    width, small = clip.projection_dim, {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision = clip.vision_config.to_dict() | {"num_frames": 8, "mit_hidden_size": width}
    vision |= {f"mit_{name}": value for name, value in small.items()}
    config = XCLIPConfig(
        text_config=clip.text_config.to_dict(),
        vision_config=vision,
        projection_dim=width,
        prompt_layers=1,
        prompt_num_attention_heads=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        XCLIPModel(config).save_pretrained(tmp_path)
    pictures = VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )  # X-CLIP's own
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "moving_shapes_clip")
    XCLIPProcessor(pictures, tokenizer).save_pretrained(tmp_path)
    model, kept = Wrapper(str(tmp_path), revision=None, device="cpu"), {}
    for name in ("get_text_embeddings", "get_video_embeddings"):
        monkeypatch.setattr(model, name, keeping(kept, name, getattr(model, name)))
    model.mteb_model_meta = ModelMeta.create_empty({"name": "local/x-clip", "modalities": ["video", "text"]})
    task = mteb_videos.VideoFolder(str(folder / "my_videos"))
    result = mteb.evaluate(model, task, cache=None, encode_kwargs={"batch_size": 4}, show_progress_bar=False)
    assert task.count == 20 and task.labels == [f"a video of {name}." for name in sorted(CLASSES)]
    own = XCLIPModel.from_pretrained(tmp_path).eval()
    files = list_files(folder)
    pixels = [pictures(choose_frames(file), return_tensors="pt")["pixel_values"] for file in files]  # [1, 8, 3, h, w]
    videos = own.get_video_features(torch.cat(pixels)).pooler_output
    texts = own.get_text_features(**tokenizer(task.labels, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(kept["get_video_embeddings"], videos, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(kept["get_text_embeddings"], texts, atol=1e-5, rtol=1e-4)
    accuracy = result.task_results[0].scores["test"][0]["accuracy"]
    assert 100 * accuracy == pytest.approx(count_right(videos, texts), abs=1e-3)


SIZES = {  # width, layers and patch of the image tower, width of the text tower
    "mote_vitb16": (768, 12, 16, 512),
    "mote_vitl14": (1024, 24, 14, 768),
}


@pytest.mark.parametrize("name", SIZES)
def test_what_mteb_asks_for_is_true_of_the_models(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import mteb_model_meta

    meta = getattr(mteb_model_meta, name)
    width, layers, patch, text_width = SIZES[name]
    config = MoTEConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "patch_size": patch,
        },
        text_config={
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": 12,
            "num_attention_heads": text_width // 64,
        },
        projection_dim=text_width,
    )
    with torch.device("meta"):
        model = MoTEModel(config)
    counts = {key: weight.numel() for key, weight in model.named_parameters()}
    experts = sum(count for key, count in counts.items() if ".mlp.up_proj" in key or ".mlp.down_proj" in key)
    assert meta.n_parameters == sum(counts.values())
    assert meta.n_embedding_parameters == counts["text_model.embeddings.token_embedding.weight"]
    assert meta.n_active_parameters == meta.n_parameters - meta.n_embedding_parameters - experts * 3 // 4
    assert meta.memory_usage_mb == meta.calculate_memory_usage_mb()
    assert (meta.embed_dim, meta.max_tokens) == (config.projection_dim, config.text_config.max_position_embeddings)
    assert meta.to_dict()["loader"] == "SentenceTransformerEncoderWrapper" and "Kinetics400V" in meta.training_datasets
