"""A saved folder in sentence-transformers itself: what it encodes is what the model gives."""

import json
import os

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

import modeling_mote  # noqa: F401
from modeling_mote.processing.sentence_transformer_files import FILES, write_sentence_transformer_files

sentence_transformers = pytest.importorskip(
    "sentence_transformers",
    reason="sentence-transformers is absent: pip install 'mote-transformers[sentence-transformers]'",
)
TEXTS = ["red bar growing", "a video of a blue star spinning", "star"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write_video) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [str(write_video(folder / f"{count}.mp4", num_frames=count)) for count in (9, 24)]


@pytest.fixture(scope="module")
def encoder(shapes_model):
    return sentence_transformers.SentenceTransformer(str(shapes_model), device="cpu")


@torch.no_grad()
def test_it_encodes_what_the_model_gives(encoder, shapes_model, videos):
    model = AutoModel.from_pretrained(shapes_model).eval()
    processor = AutoProcessor.from_pretrained(shapes_model)
    features = model.get_video_features(**processor(videos=videos, return_tensors="pt")).pooler_output
    assert np.array_equal(encoder.encode(videos), features.numpy())
    texts = model.get_text_features(**processor(text=TEXTS, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(encoder.encode(TEXTS), texts.numpy(), rtol=0, atol=1e-5 * texts.abs().max().item())
    cosines = torch.nn.functional.cosine_similarity(features[:, None], texts[None], dim=-1)
    torch.testing.assert_close(encoder.similarity(encoder.encode(videos), encoder.encode(TEXTS)), cosines)
    assert encoder.get_embedding_dimension() == model.config.projection_dim == features.shape[1]


def test_it_takes_frames_and_files_of_any_name(encoder, videos, tmp_path, write_video):
    frames = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
    expected = encoder.encode([{"video": torch.from_numpy(frames)}])
    assert np.array_equal(encoder.encode([{"video": frames}]), expected)
    os.symlink(videos[0], tmp_path / "clip.m4v")  # a suffix that sentence-transformers takes for a text
    assert np.array_equal(encoder.encode([{"video": str(tmp_path / "clip.m4v")}]), encoder.encode(videos[:1]))


def test_what_it_saves_loads_again_with_its_prompts(shapes_model, videos, tmp_path):
    encoder = sentence_transformers.SentenceTransformer(
        str(shapes_model), device="cpu", prompts={"label": "a video of "}
    )
    encoder.save(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert again.prompts["label"] == "a video of "
    assert np.array_equal(again.encode(videos), encoder.encode(videos))


def test_files_that_are_there_stay(tmp_path):
    mine = json.dumps(FILES["config_sentence_transformers.json"] | {"prompts": {"label": "a video of "}})
    (tmp_path / "config_sentence_transformers.json").write_text(mine)
    write_sentence_transformer_files(tmp_path)
    assert (tmp_path / "config_sentence_transformers.json").read_text() == mine
    assert json.loads((tmp_path / "modules.json").read_text()) == FILES["modules.json"]
