"""The model cards: what huggingface_hub reads from them, and where their numbers come from."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from processing.protocols import PROTOCOLS

CARDS = sorted((Path(__file__).resolve().parents[1] / "model_cards").glob("mote-*.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_is_valid(path):
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0" and data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "video-classification"
    assert "2410.10589" in card.text


@pytest.mark.parametrize(("name", "backbone"), [("mote-vitb16", "ViT-B/16"), ("mote-vitl14", "ViT-L/14")])
def test_authors_numbers_are_the_registry_s_and_marked(name, backbone):
    text = next(path for path in CARDS if path.stem == name).read_text(encoding="utf-8")
    quoted = text.split("As reported by the authors")[1]
    for protocol in PROTOCOLS.values():
        for number in protocol.published:
            if number.backbone == backbone and number.metric == "top1" and number.num_frames == 8:
                value = f"{number.value} ± {number.std}" if number.std is not None else f"{number.value}"
                assert f"| {protocol.views} | {value} |" in quoted, (protocol.name, value)
    assert "eval_results" not in ModelCard(text).data.to_dict()
