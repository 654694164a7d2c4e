"""Tiny models whose every weight matters: far from their initialisation, with experts that differ."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from modeling_mote import MoTEConfig, MoTEForVideoClassification

CLASSES, WIDTH, LAYERS, EXPERTS, FRAMES = 20, 64, 2, 4, 8


def tiny_config(**overrides) -> MoTEConfig:
    """A config of d = 64, 2 temporal layers of 2 heads, 4 experts and images of 32 × 32."""
    values = {
        "text_config": {
            "hidden_size": 128,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": 99,
            "max_position_embeddings": 16,
            "bos_token_id": 97,
            "eos_token_id": 98,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
        "projection_dim": WIDTH,
        "temporal_config": {"num_hidden_layers": LAYERS, "intermediate_size": 96},
        "num_labels": CLASSES,
    }
    return MoTEConfig(**{**values, **overrides})


def unit_rows(rows: int, seed: int, width: int = WIDTH) -> torch.Tensor:
    """L2-normalised random features [rows, width] around a common direction, as text features are."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    return F.normalize(common + 0.5 * torch.randn(rows, width, generator=generator), dim=-1)


def tiny_model(cls=MoTEForVideoClassification, classes: int | None = CLASSES, seed: int = 0, **overrides):
    """A model in eval mode, every weight moved at random; its training classes are set unless `classes` is None."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(tiny_config(**overrides)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != "logit_scale":
                    parameter.add_(0.1 * torch.randn_like(parameter))
    if classes is not None:
        model.set_training_classes([f"class {index}" for index in range(classes)], unit_rows(classes, seed=1))
    return model


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from threads, which then wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_config() -> Callable[..., MoTEConfig]:
    return tiny_config


@pytest.fixture
def make_model() -> Callable[..., MoTEForVideoClassification]:
    return tiny_model


@pytest.fixture
def make_classes() -> Callable[..., torch.Tensor]:
    """`make_classes(rows, seed)`: class features [rows, d]."""
    return unit_rows


@pytest.fixture
def classifier() -> MoTEForVideoClassification:
    return tiny_model()


@pytest.fixture
def videos() -> torch.Tensor:
    """Two videos of eight different frames, [2, 8, 3, 32, 32]."""
    return torch.randn(2, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def candidates() -> torch.Tensor:
    """Features of twelve candidate classes, [12, d]."""
    return unit_rows(12, seed=3)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A bare CLIP saved by transformers, of the tiny model's sizes."""
    config = tiny_config()
    folder = tmp_path_factory.mktemp("bare") / "clip"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        clip_config = CLIPModel.config_class(
            text_config=config.text_config.to_dict(),
            vision_config=config.vision_config.to_dict(),
            projection_dim=WIDTH,
        )
        CLIPModel(clip_config).save_pretrained(folder)
    return folder
