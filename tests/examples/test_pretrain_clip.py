"""The tiny CLIP of the demo: the committed folder, and the script that makes it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from modeling_mote.processing.builders.moving_shapes import (
    COLORS,
    MOTIONS,
    OBJECTS,
    SHAPES,
    MovingShapesConfig,
    class_name,
    render_clip,
    render_stills,
    sample_scenes,
)
from modeling_mote.processing.prompts import PROMPT_SETS, encode_classes

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "examples" / "moving_shapes_clip"


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def pixel_values(images: np.ndarray) -> torch.Tensor:
    return CLIPImageProcessor.from_pretrained(FOLDER)(list(images), return_tensors="pt")["pixel_values"]


def pretrain(output_dir: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "examples/experiments/pretrain_clip.py", "--output_dir", str(output_dir), *options]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_folder_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 5_000_000


def test_every_word_of_classes_and_templates_is_known(tokenizer):
    names = [class_name(color, shape, motion) for color in COLORS for shape in SHAPES for motion in MOTIONS]
    for template in PROMPT_SETS["mote_28"]:
        for ids in tokenizer([template.format(name) for name in names])["input_ids"]:
            assert tokenizer.unk_token_id not in ids
    ids = tokenizer("a photo of archery")["input_ids"]
    assert ids.count(tokenizer.unk_token_id) == 1 and tokenizer.decode(ids[4:5]) == "<unk>"


def test_text_is_pooled_at_its_end(clip, tokenizer):
    """Neither what is appended as padding nor its amount changes a text feature."""
    assert clip.config.text_config.eos_token_id == tokenizer.eos_token_id != 2
    with torch.no_grad():
        short, long = (
            clip.get_text_features(
                **tokenizer(["red square moving left"], padding=padding, max_length=77, return_tensors="pt")
            ).pooler_output
            for padding in (False, "max_length")
        )
    torch.testing.assert_close(short, long, rtol=1e-4, atol=1e-4)


def test_frames_become_32_pixels(clip):
    frames = render_clip("red", "square", "moving left", np.random.default_rng(0))
    assert frames.shape[1:] == (64, 64, 3)
    assert pixel_values(frames).shape == (16, 3, 32, 32)


@torch.no_grad()
def test_one_frame_names_the_object_but_not_the_motion(clip, tokenizer):
    classes = [(color, shape, motion) for color, shape in OBJECTS for motion in MOTIONS]
    rng = np.random.default_rng(99)
    scenes = sample_scenes(*(list(column) for column in zip(*classes, strict=True)), rng)
    object_embeds = encode_classes(clip, tokenizer, [f"{color} {shape}" for color, shape in OBJECTS])
    class_embeds = encode_classes(clip, tokenizer, [class_name(*parts) for parts in classes])
    truth, n = torch.arange(len(classes)), len(MOTIONS)
    moments = rng.random(len(classes))
    found = {}
    for exposure in ("sharp", "trailing"):
        stills = render_stills(scenes, moments, [exposure] * len(classes), np.random.default_rng(1))
        found[exposure] = clip.get_image_features(pixel_values(stills)).pooler_output
    objects = ((found["sharp"] @ object_embeds.T).argmax(1) == truth // n).float().mean()
    motions = {
        key: ((embeds @ class_embeds.T).argmax(1) % n == truth % n).float().mean() for key, embeds in found.items()
    }
    assert objects > 0.85
    assert motions["trailing"] > 0.5  # the trail tells it, so that the text tower knows what the words mean
    assert motions["sharp"] < 0.3  # as in a frame of a video


def test_class_features_lie_in_a_cone(clip, tokenizer):
    """As those of a trained CLIP; modulation, exp(-(1 - cosine) / 0.05), would switch the head off otherwise."""
    config = MovingShapesConfig()
    train, compositions = (
        encode_classes(clip, tokenizer, [class_name(*parts) for parts in config.classes(split)])
        for split in ("train", "test_compositions")
    )
    assert (compositions @ train.T).amax(dim=1).mean() > 0.95
    assert clip.logit_scale.exp().item() == pytest.approx(100, rel=1e-3)


@pytest.mark.slow
def test_script_saves_a_clip_and_repeats_itself(tmp_path):
    for run in [pretrain(tmp_path / name, "--steps", "2") for name in ("one", "two")]:
        printed, errors = run.communicate()
        assert run.returncode == 0, errors
        assert "new stills" in printed
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() == load_file(FOLDER / "model.safetensors").keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    committed, made = (json.loads((folder / "config.json").read_text()) for folder in (FOLDER, tmp_path / "one"))
    assert committed == made
    assert (FOLDER / "tokenizer.json").read_text() == (tmp_path / "one" / "tokenizer.json").read_text()


@pytest.mark.slow
def test_no_step_is_one_sentence(tmp_path):
    run = pretrain(tmp_path / "none", "--steps", "0")
    _, errors = run.communicate()
    assert run.returncode != 0
    assert "--steps is 0" in errors
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_short_pretraining_learns(tmp_path):
    """After a fifth of the steps, colours and some shapes are told apart; chance is 2.8 %, colour alone 16.7 %."""
    run = pretrain(tmp_path / "clip", "--steps", "140")
    printed, errors = run.communicate()
    assert run.returncode == 0, errors
    assert float(printed.split("new stills: ")[1].split("%")[0]) > 25
