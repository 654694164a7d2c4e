"""Prompt sets, label lists and class features."""

import pytest
import torch
import torch.nn.functional as F
from modeling_mote.processing import PROMPT_SETS, encode_classes, get_prompt_set, parse_labels
from transformers import CLIPModel, CLIPTokenizer

NAMES = ["archery", "yoga", "flipping the pancake"]


def test_the_28_templates():
    templates = get_prompt_set("mote_28")
    assert len(templates) == len(set(templates)) == 28
    for medium in ("photo", "video", "example", "demonstration"):
        assert f"a {medium} of {{}}." in templates
        assert f"a {medium} of a person {{}}." in templates
        for verb in ("using", "doing", "during", "performing", "practicing"):
            assert f"a {medium} of a person {verb} {{}}." in templates
    assert (templates[0], templates[-1]) == ("a photo of {}.", "a demonstration of a person practicing {}.")


def test_prompt_sets_are_frozen():
    with pytest.raises(TypeError):
        PROMPT_SETS["mote_28"] = ()
    assert all(isinstance(templates, tuple) for templates in PROMPT_SETS.values())


def test_get_prompt_set():
    assert get_prompt_set("a video of {}") == ("a video of {}",)
    assert get_prompt_set(["{}", "{} {}"]) == ("{}", "{} {}")
    for bad, message in (
        ("mote", "unknown prompt set 'mote': pass one of mote_28, clip, plain"),
        ([], "no prompt template"),
        (["no place"], "'no place' has no {}"),
        ([3], "3 has no {}"),
    ):
        with pytest.raises(ValueError, match=message):
            get_prompt_set(bad)


def test_parse_labels():
    assert parse_labels([" yoga", "archery "]) == parse_labels("yoga, archery") == ["yoga", "archery"]
    assert parse_labels({0: "a", 1: "b"}.values()) == ["a", "b"]
    assert parse_labels(name for name in ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "none were given"),
        ([], "no label was given"),
        ("", "no label was given"),
        ("  ", "no label was given"),
        ("yoga,,archery", "label 2 of 3 is empty"),
        (["yoga", " "], "label 2 of 2 is empty"),
        (["yoga", "archery", "yoga "], "label 'yoga' was given twice"),
        (["yoga", 3], "label 2 of 2 is 3, not a string"),
        (7, "not a int"),
        ({"yoga": 1}, "not a dict"),
        ({"yoga"}, "not a set"),
        (b"yoga", "not a bytes"),
    ],
)
def test_bad_labels_are_one_sentence(labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_labels(labels)
    assert "\n" not in str(caught.value)


def by_hand(model, tokenizer, name, templates):
    """The definition, one text at a time, padded to the full length."""
    features = []
    for template in templates:
        tokens = tokenizer(
            template.replace("{}", name), padding="max_length", truncation=True, max_length=24, return_tensors="pt"
        )
        with torch.no_grad():
            features.append(F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1))
    return F.normalize(torch.cat(features).mean(0), dim=-1)


def test_class_features_follow_the_definition(make_model, tokenizer, processor):
    model = make_model()
    embeds = encode_classes(model, processor, NAMES)
    assert embeds.shape == (3, 16) and embeds.dtype == torch.float32 and not embeds.requires_grad
    expected = torch.stack([by_hand(model, tokenizer, name, PROMPT_SETS["mote_28"]) for name in NAMES])
    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(encode_classes(model, tokenizer, NAMES, batch_size=5), embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(encode_classes(model, tokenizer, NAMES[1])[0], embeds[1], rtol=0, atol=1e-6)
    plain = encode_classes(model, tokenizer, NAMES, prompts="plain")
    torch.testing.assert_close(plain[2], by_hand(model, tokenizer, NAMES[2], ["{}"]), rtol=0, atol=1e-6)


def test_modes_and_random_state_are_kept(make_model, tokenizer):
    model = make_model()
    expected = encode_classes(model, tokenizer, NAMES)
    model.train()
    model.text_model.encoder.layers[0].eval()  # a part that was frozen on purpose
    for layer in model.text_model.encoder.layers:
        layer.self_attn.dropout = 0.9
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    assert torch.equal(encode_classes(model, tokenizer, NAMES), expected)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_half_precision_normalises_in_float32(make_model, tokenizer):
    model = make_model()
    expected = encode_classes(model, tokenizer, NAMES)
    embeds = encode_classes(model.to(torch.bfloat16), tokenizer, NAMES)
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3), rtol=0, atol=1e-6)
    assert F.cosine_similarity(embeds, expected).min() > 0.99


def test_a_tokenizer_of_another_model_is_refused(make_model, tokenizer):
    model = make_model()
    model.text_model.eos_token_id = model.text_model.config.eos_token_id = 3
    with pytest.raises(ValueError, match="does not end its texts with the text tower's eos_token_id 3"):
        encode_classes(model, tokenizer, NAMES)


def test_early_checkpoints_pool_at_the_highest_token(make_model, tokenizer):
    model = make_model()
    expected = encode_classes(model, tokenizer, NAMES)
    model.text_model.eos_token_id = model.text_model.config.eos_token_id = 2  # as in OpenAI's first conversions
    torch.testing.assert_close(encode_classes(model, tokenizer, NAMES), expected, rtol=0, atol=1e-6)


def test_prompts_that_are_cut_are_named(make_model, tokenizer, caplog):
    with caplog.at_level("WARNING", logger="transformers"):
        encode_classes(make_model(), tokenizer, ["yoga " * 30])
    assert "28 prompts exceed the text tower's 24 tokens and are cut" in caplog.text


def test_text_features_equal_the_authors(shared):
    """Their pretrained text tower, on their own prompts of their own tokenizer, through `encode_classes`."""
    model = CLIPModel.from_pretrained(shared / "reference" / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(shared / "reference" / "clip")
    embeds = encode_classes(model, tokenizer, NAMES, batch_size=7)
    for name, row in zip(NAMES, embeds, strict=True):
        tokens = tokenizer([t.format(name) for t in PROMPT_SETS["mote_28"]], padding="max_length", return_tensors="pt")
        assert tokens["input_ids"].shape == (28, 77)
        with torch.no_grad():
            features = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        torch.testing.assert_close(row, F.normalize(features.mean(0), dim=-1), rtol=0, atol=1e-6)
