"""Prompt sets, label lists and class features."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer

from modeling_mote.processing import PROMPT_SETS, encode_classes, encode_texts, get_prompt_set, parse_labels, to_words
from modeling_mote.processing.class_names import describe_renamed, parse_candidates, unlike_words

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
    ("labels", "names"),
    [
        ('"yoga, outdoors", archery', ["yoga, outdoors", "archery"]),
        ('"yoga","archery"', ["yoga", "archery"]),
        ('5" nail, 3" nail', ['5" nail', '3" nail']),
        ("massaging person's head, yoga", ["massaging person's head", "yoga"]),
        ('"say ""hi""", yoga', ['say "hi"', "yoga"]),
        ("柔道, yoga", ["柔道", "yoga"]),
    ],
)
def test_labels_in_a_string(labels, names):
    assert parse_labels(labels) == names


def test_many_labels_are_read_in_one_pass():
    """As many comparisons as labels: 30,000 of them took 24 s when each was compared with all before it."""
    compared = []

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

        def strip(self, *_):
            return self

    parse_labels([Name(f"label {index}") for index in range(5000)])
    assert len(compared) < 10_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red_star_growing", "red star growing"),
        ("GreenBarGrowing", "Green Bar Growing"),
        ("ApplyEyeMakeup", "Apply Eye Makeup"),
        ("brush_hair", "brush hair"),
        ("playingCello", "playing Cello"),
        ("red_starGrowing", "red star Growing"),
        ("red-star-growing", "red star growing"),
        ("push-up", "push-up"),
        ("TVRepair", "TV Repair"),
        ("NBAGame", "NBA Game"),
        ("DVDs", "DVDs"),
        ("iPhone", "iPhone"),
        ("3DPrinting", "3D Printing"),
        ("Jump2Times", "Jump 2 Times"),
        ("jump__2_times_", "jump 2 times"),
        ("class10", "class10"),
        ("ÉcoleDeDanse", "École De Danse"),
        ("ПриветМир", "Привет Мир"),
        ("柔道", "柔道"),
        ("yoga", "yoga"),
        ("YOGA", "YOGA"),
        (" yoga ", "yoga"),
        ("red star_growing", "red star_growing"),  # a name with a space in it is words already
        ("flipping a pancake", "flipping a pancake"),
        ("C++", "C++"),
        ("___", "___"),
    ],
)
def test_names_are_words(name, words):
    assert to_words(name) == words
    assert to_words(words) == words


def test_which_names_are_no_words():
    assert unlike_words(["yoga", "brush_hair", "TaiChi"]) == {"brush_hair": "brush hair", "TaiChi": "Tai Chi"}
    renamed = {f"a_{index}": f"a {index}" for index in range(7)}
    assert describe_renamed(renamed, most=2) == "Class names are read as words: a_0 → a 0, a_1 → a 1, and 5 more."
    assert describe_renamed({"a_0": "a 0"}) == "Class names are read as words: a_0 → a 0."


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
        (["yoga", "archery", "Yoga"], "labels 'yoga' and 'Yoga' are one to the text tower"),
        (["tai  chi", "tai chi"], "labels 'tai  chi' and 'tai chi' are one"),
        (["yoga", "arch\nery"], "label 2 of 2, .* has a line break, tab or other control character"),
        (["yoga", "arch\tery"], "label 2 of 2, .* has a line break, tab"),
        (["x" * 100_000], "label 1 of 1, 'xxx.* has 100000 letters: at most 1000 are taken"),
        ("x" * 200_000, "labels 'xxx.*|has 200000 letters"),
        ("yoga; archery", "are one label, as they have no comma: write names with commas between them"),
        ("yoga\tarchery", "have line breaks or tabs in them: write names with commas"),
        ("yoga\narchery", "have line breaks or tabs in them: write names with commas"),
        ('["yoga", "archery"]', "look like JSON or Python: write names with commas"),
        ('{"yoga": 1}', "look like JSON or Python"),
        ('"yoga, archery"', "are one label in quotes"),
        ("'yoga', 'archery'", "are in quotes that would count as letters"),
        ("“yoga”, “archery”", "are in quotes that would count as letters"),
        ('"yoga, archery', "have a quote that does not fit"),
        (7, "not a int"),
        ({"yoga": 1}, "not a dict"),
        ({"yoga"}, "not a set"),
        (b"yoga", "not a bytes"),
    ],
)
def test_bad_labels_are_one_sentence(labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_labels(labels)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_the_limit_of_letters_is_the_callers():
    assert parse_labels(["x" * 2000], max_letters=2000) == ["x" * 2000]
    with pytest.raises(ValueError, match="has 11 letters: at most 10 are taken"):
        parse_labels("basketball!, yoga", max_letters=10)


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


def test_texts_that_are_cut_are_named_once(make_model, tokenizer):
    long = "yoga " * 30
    names = {"archery": None, "running": ["yoga", long, long], "swimming": long + "archery", long.strip(): None}
    with pytest.warns(UserWarning) as caught:
        encode_classes(make_model(), tokenizer, names | {"running": ["flipping", long]}, batch_size=3)
    (message,) = {str(each.message) for each in caught}
    assert len(caught) == 1 and "reads 24 tokens: longer texts are cut there" in message
    assert "those of 'running' (1 of 2), 'swimming' (1 of 1), 'yoga yoga" in message and message.endswith(
        "(28 of 28)."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_classes(make_model(), tokenizer, {"archery": None, "running": ["yoga", "yoga archery"]})


def test_descriptions_are_read_as_they_are_and_averaged(make_model, tokenizer):
    model = make_model()
    labels = {"zumba": ["flipping the pancake", "running"], "yoga": None, "salsa": "swimming", "archery": ""}
    embeds = encode_classes(model, tokenizer, labels)
    texts = torch.cat([by_hand(model, tokenizer, text, ["{}"])[None] for text in ("flipping the pancake", "running")])
    expected = [
        F.normalize(texts.mean(0), dim=-1),
        by_hand(model, tokenizer, "yoga", PROMPT_SETS["mote_28"]),
        by_hand(model, tokenizer, "swimming", ["{}"]),
        by_hand(model, tokenizer, "archery", PROMPT_SETS["mote_28"]),
    ]
    torch.testing.assert_close(embeds, torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "no label was given"),
        ({"yoga": 3}, "label 'yoga' is described by 3: pass a text, a list of texts, or None"),
        ({"yoga": ["a mat", None]}, "label 'yoga' is described by .'a mat', None.: pass a text"),
        ({"yoga": {"a mat"}}, "label 'yoga' is described by {'a mat'}: pass a text"),
        ({"yoga": ["a mat", " "]}, "text 2 of 2 that describe label 'yoga' is empty: leave it out"),
        ({"yoga": "a", "Yoga ": "b"}, "labels 'yoga' and 'Yoga' are one"),
        ({"": "a mat"}, "label 1 of 1 is empty"),
    ],
)
def test_bad_descriptions_are_one_sentence(labels, message):
    with pytest.raises(ValueError, match=message):
        parse_candidates(labels)


def test_candidates_have_one_form():
    assert parse_candidates("yoga, archery") == parse_candidates({"yoga": None, "archery": []})
    assert parse_candidates({" yoga ": " a  mat ", "run": ("a", "b")}) == {"yoga": ("a mat",), "run": ("a", "b")}


def test_labels_that_are_one_to_the_text_tower_are_refused(make_model, tokenizer):
    model = make_model()
    with pytest.raises(ValueError, match="label 'zumba' holds no word that the tokenizer knows"):
        encode_classes(model, tokenizer, ["yoga", "zumba"])
    with pytest.raises(ValueError, match="labels 'yoga zumba' and 'yoga salsa' are one to the text tower"):
        encode_classes(model, tokenizer, ["archery", "yoga zumba", "yoga salsa"])
    with pytest.raises(ValueError, match="description 'salsa' of label 'yoga' holds no word"):
        encode_classes(model, tokenizer, {"yoga": ["archery", "salsa"]})
    with pytest.raises(ValueError, match="labels 'yoga' and 'archery' are one to the text tower"):
        encode_classes(model, tokenizer, {"yoga": ["running"], "archery": ["running", "running"]})
    captions = encode_texts(model, tokenizer, ["yoga zumba", "yoga salsa", "yoga salsa"])  # captions may be alike
    assert torch.equal(captions[1], captions[2])


def test_any_word_is_known_to_a_tokenizer_of_bytes(shared):
    """CLIP's own: its unknown token is also the one that ends a text."""
    model = CLIPModel.from_pretrained(shared / "reference" / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(shared / "reference" / "clip")
    assert encode_classes(model, tokenizer, ["zumba", "柔道", "🎾"]).shape[0] == 3


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
