"""A tiny tokenizer, processor and MoTE for the tests of the processing package; conftest.py above writes videos."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import modeling_mote
from modeling_mote.processing import MoTEProcessor, MoTEVideoProcessor, encode_classes

TEXT = (
    "a photo video example demonstration of person using doing during performing practicing . "
    "archery yoga flipping the pancake running swimming"
)


@pytest.fixture(scope="session")
def tokenizer(word_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The words of the prompts and of a few classes, with a limit of 24 tokens."""
    return word_tokenizer(TEXT.split(), model_max_length=24)


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., modeling_mote.MoTEModel]:
    """A function that makes the same tiny MoTE each time, as if trained: 4 frames of 32 × 32, d = 16, two classes."""

    def make(cls: type = modeling_mote.MoTEModel, **changes: object) -> modeling_mote.MoTEModel:
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        end = tokenizer.eos_token_id
        text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": end}
        config = modeling_mote.MoTEConfig(
            text_config=text | {"bos_token_id": end - 1, "pad_token_id": end},
            vision_config={**tower, "image_size": 32, "patch_size": 16},
            temporal_config={"num_hidden_layers": 2},
            projection_dim=16,
            num_frames=4,
            **changes,
        )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = cls(config).eval()
            for layer in model.temporal_model.layers:  # as if trained, which the first step makes of these zeros
                layer.layer_norm1.bias.normal_(std=0.02)
        model.set_training_classes(["running", "swimming"], encode_classes(model, tokenizer, ["running", "swimming"]))
        return model

    return make


def _make_processor(tokenizer: PreTrainedTokenizerFast) -> MoTEProcessor:
    video_processor = MoTEVideoProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, num_frames=4, short_video="loop"
    )
    return MoTEProcessor(video_processor, tokenizer)


@pytest.fixture
def processor(tokenizer: PreTrainedTokenizerFast) -> MoTEProcessor:
    """A processor for the tiny model, that repeats frames of short videos as saved checkpoints do."""
    return _make_processor(tokenizer)


@pytest.fixture(scope="session")
def model_folder(
    make_model: Callable[..., modeling_mote.MoTEModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the tiny model and its processor, as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("mote-tiny")
    make_model().save_pretrained(folder)
    _make_processor(tokenizer).save_pretrained(folder)
    return folder
