"""The model cards: what huggingface_hub and the Hub read from them, and where their numbers come from."""

import re
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import close_session

from modeling_mote import MoTEConfig
from modeling_mote.cards import FIELD, published_card, read_card
from modeling_mote.processing.protocols import PROTOCOLS

from .commands.mini_hub import MiniHub

ROOT = Path(__file__).resolve().parents[1]
CARDS = sorted((ROOT / "model_cards").glob("*.md"))
THEIRS = {"mote-vitb16": "ViT-B/16", "mote-vitl14": "ViT-L/14"}
FIELDS = {
    "repo": "org/published",
    "measured": "| protocol | top-1 % |\n|---|---|\n| half-classes | 12.3 |",
    "curves": "![curves](curves.png)",
}


def text_of(name: str) -> str:
    return (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")


def render(path: Path) -> ModelCard:
    return ModelCard.from_template(ModelCardData(), template_path=path, **FIELDS)


@pytest.fixture(scope="module")
def validate():
    """`validate(card)`, as `ModelCard.validate` does it, by a Hub on this machine."""
    with MiniHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        close_session()  # the one of an offline process
        yield ModelCard.validate
    close_session()


def test_there_is_a_card_for_each_checkpoint():
    assert [path.stem for path in CARDS] == ["mote-moving-shapes", "mote-vitb16", "mote-vitl14"]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_loads_renders_and_is_valid(path, validate):
    for card in (ModelCard.load(path), render(path)):
        validate(card)
        data = card.data.to_dict()
        assert data["license"] == "apache-2.0" and data["library_name"] == "transformers"
        assert data["pipeline_tag"] == "video-classification" and "zero-shot-video-classification" in data["tags"]
    assert "{{" not in card.text and "{%" not in card.text
    assert card.text.count('model="org/published"') >= 1 and FIELDS["measured"] in card.text


def test_the_check_can_fail(validate):
    with pytest.raises(ValueError, match="license"):
        validate(ModelCard("---\nlicense: [mine]\n---\n# Mine\n"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_publishing_fills_in_the_same(path):
    content = path.read_text(encoding="utf-8")
    assert set(re.findall(FIELD, content)) <= FIELDS.keys()
    filled = re.sub(FIELD, lambda found: FIELDS[found[1]], content)
    assert ModelCard(filled).text.strip() == render(path).text.strip()
    card = published_card(read_card(path), "org/published", MoTEConfig(), {})
    assert "{{" not in card.text and 'model="org/published"' in card.text and card.data.license == "apache-2.0"
    assert "<!--" not in card.text  # nothing had to be added


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_says_what_a_reader_must_know(path):
    card = ModelCard.load(path)
    titles = re.findall(r"^##+ (.*)$", card.text, flags=re.M)
    assert titles[:3] == ["Use", "Limits", "Training"] and titles[-1] == "Citation"
    assert any(title.startswith("Where the weights come from") for title in titles)
    assert any("icence" in title for title in titles)
    measured, quoted = titles.index("Measured with this package"), titles.index("As reported by the authors")
    assert measured < quoted
    assert "Not meant for:" in card.text or "Of no use on" in card.text
    assert "2410.10589" in card.text and "@inproceedings{zhu2024mote" in card.text


@pytest.mark.parametrize(("name", "backbone"), THEIRS.items())
def test_authors_numbers_are_the_registry_s_and_marked(name, backbone):
    text = text_of(name)
    quoted = text.split("### As reported by the authors")[1].split("\n## ")[0]
    assert "not measured here" in " ".join(quoted.split())
    rows = [line for line in quoted.splitlines() if line.startswith("| `")]
    expected = []
    for protocol in PROTOCOLS.values():
        for number in protocol.published:
            if number.backbone == backbone and number.metric == "top1" and number.num_frames == 8:
                value = f"{number.value} ± {number.std}" if number.std is not None else f"{number.value}"
                expected.append((f"| `{protocol.name}` ", f"| {protocol.views} | {value} |"))
    assert len(rows) == len(expected) > 3
    for start, end in expected:
        assert any(row.startswith(start) and row.endswith(end) for row in rows), (start, end)
    for _, end in expected:  # and nowhere else
        assert end.split("|")[-2].strip() not in text.replace(quoted, "")
    assert ModelCard(text).data.eval_results is None


def test_the_demo_s_numbers_are_the_readme_s():
    cell, several_seeds = r" ([\d.]+) ?%? \|", r"(?: [\d.]+ ± [\d.]+ % \|)?"  # the README has a plain head beside them
    rows = re.compile(rf"^\| ((?:trained|unseen)[^|]*) \|{cell * 2}{several_seeds}{cell * 2}$", flags=re.M)
    text = text_of("mote-moving-shapes")
    table = {row[0]: row[1:] for row in rows.findall(text)}
    assert table == {row[0]: row[1:] for row in rows.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert len(table) == 4
    entries = ModelCard(text).data.eval_results
    assert len(entries) == 8
    for entry in entries:
        _, title, modulation = entry.dataset_name.split(", ")
        column = {"modulation off": 2, "modulation on": 3}[modulation]
        assert f"{entry.metric_value:.1f}" == table[title][column]
        assert entry.metric_name == "top1, 1x1 views, 480 of 480 scored, 96 labels"
    assert "not measured" not in text and "examples/demo.py" in text
