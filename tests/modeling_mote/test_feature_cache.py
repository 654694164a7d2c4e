"""Features on disk: found again, and only under everything that they depend on."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from modeling_mote.feature_cache import (
    class_features,
    fingerprint,
    frame_features_key,
    load_tensors,
    save_tensors,
)
from modeling_mote.processing import MoTEVideoProcessor, encode_classes

WORDS = ["<unk>", "a", "photo", "of", "running", "swimming", "archery", "."]


@pytest.fixture
def make_tokenizer(word_tokenizer):
    return lambda *more: word_tokenizer([*WORDS, *more], model_max_length=16, start=97)


NAMES, PROMPTS = ["running", "swimming"], ["a photo of {}.", "a {}."]


@pytest.fixture
def encoded():
    """Forward passes of the text tower so far."""
    calls = [0]

    def note(module, inputs):
        calls[0] += type(module).__name__ == "CLIPTextModel"

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield calls
    handle.remove()


def test_a_second_run_encodes_no_text(make_tokenizer, make_model, tmp_path, encoded):
    model, tokenizer = make_model(), make_tokenizer()
    first = class_features(model, tokenizer, NAMES, PROMPTS, tmp_path)
    assert encoded[0] == 1 and first.shape == (2, 64)
    torch.testing.assert_close(first, encode_classes(model, tokenizer, NAMES, PROMPTS), rtol=0, atol=0)
    calls = encoded[0]
    assert torch.equal(class_features(make_model(), make_tokenizer(), NAMES, PROMPTS, tmp_path), first)
    assert encoded[0] == calls and len(list(tmp_path.rglob("*"))) == 2  # the folder and one file


@pytest.mark.parametrize(
    "change", ["names", "order", "description", "prompts", "tokenizer", "length", "weights", "projection", "end"]
)
def test_any_change_of_what_they_depend_on_misses(make_tokenizer, change, make_model, tmp_path, encoded):
    model, tokenizer = make_model(), make_tokenizer()
    class_features(model, tokenizer, NAMES, PROMPTS, tmp_path)
    names, prompts = NAMES, PROMPTS
    if change == "names":
        names = ["running", "archery"]
    elif change == "order":
        names = NAMES[::-1]
    elif change == "description":
        names = {NAMES[0]: "a photo", NAMES[1]: None}
    elif change == "prompts":
        prompts = PROMPTS[:1]
    elif change == "tokenizer":
        tokenizer = make_tokenizer("video")
    elif change == "length":
        tokenizer.model_max_length = 15
    elif change == "weights":
        with torch.no_grad():
            next(iter(model.text_model.parameters())).view(-1)[0] += 1e-3
    elif change == "projection":
        with torch.no_grad():
            model.text_projection.weight[0, 0] += 1e-3
    else:
        model.config.text_config.layer_norm_eps = 1e-4
    class_features(model, tokenizer, names, prompts, tmp_path)
    assert encoded[0] == 2


def test_what_they_do_not_depend_on_is_found(make_tokenizer, make_model, tmp_path, encoded):
    class_features(make_model(), make_tokenizer(), NAMES, PROMPTS, tmp_path)
    model = make_model(num_frames=3)
    with torch.no_grad():
        model.vision_model.embeddings.class_embedding += 1
        model.temporal_model.position_embedding.weight += 1
    class_features(model, make_tokenizer(), NAMES, PROMPTS, tmp_path)
    assert encoded[0] == 1


def test_frame_keys(make_model):
    processor, clips, sampling = MoTEVideoProcessor(num_frames=4), ["a", "b"], {"mode": "val"}

    def key(model=None, processor=processor, clips=clips, sampling=sampling):
        return frame_features_key(model or make_model(), processor, clips, sampling)

    weights = make_model()
    with torch.no_grad():
        weights.visual_projection.weight[0, 0] += 1e-3
    text = make_model()
    with torch.no_grad():
        text.text_projection.weight[0, 0] += 1e-3
    keys = [
        key(),
        key(weights),
        key(processor=MoTEVideoProcessor(num_frames=5)),
        key(processor=MoTEVideoProcessor(num_frames=4, size={"shortest_edge": 100})),
        key(processor=MoTEVideoProcessor(num_frames=4, image_mean=[0.5, 0.5, 0.5])),
        key(clips=["b", "a"]),
        key(sampling={"mode": "train"}),
    ]
    assert len(set(keys)) == len(keys)
    assert key(text) == key()


def test_fingerprints_tell_values_shapes_and_types_apart():
    tensor = torch.arange(4.0)
    parts = [
        tensor,
        tensor.view(2, 2),
        tensor.to(torch.bfloat16),
        tensor + 1,
        [0.0, 1.0, 2.0, 3.0],
        "0123",
        torch.nn.Linear(2, 2),
    ]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint(tensor, 1) == fingerprint(tensor.clone(), 1) != fingerprint(1, tensor)


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "folder" / "features.safetensors"
    save_tensors({"x": torch.ones(2)}, path, {"names": "[]"})
    with pytest.raises(RuntimeError):
        save_tensors({"x": torch.ones(2).to_sparse()}, path)
    tensors, metadata = load_tensors(path)
    assert tensors["x"].tolist() == [1, 1] and metadata == {"names": "[]"}
    assert os.listdir(path.parent) == ["features.safetensors"]


def test_damaged_files_are_named_and_never_unpickled(tmp_path):
    path = tmp_path / "features.safetensors"
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ValueError, match=r"features.safetensors is damaged .*: remove it\."):
        load_tensors(path)
    save_tensors({"x": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(path)
    save_file({"x": torch.ones(100)}, path)
    with pytest.raises(ValueError, match="no checksum"):
        load_tensors(path)


@pytest.mark.parametrize("place", [-1, -300], ids=["a tensor", "the other tensor"])
def test_one_flipped_bit_is_noticed(tmp_path, place):
    path = tmp_path / "features.safetensors"
    save_tensors({"x": torch.ones(100), "y": torch.zeros(2, 60)}, path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its content does not fit its checksum"):
        load_tensors(path)


def test_damaged_class_features_are_made_anew(make_tokenizer, make_model, tmp_path):
    first = class_features(make_model(), make_tokenizer(), NAMES, PROMPTS, tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged .* made anew"):
        again = class_features(make_model(), make_tokenizer(), NAMES, PROMPTS, tmp_path)
    assert torch.equal(again, first)
    assert torch.equal(class_features(make_model(), make_tokenizer(), NAMES, PROMPTS, tmp_path), first)


def test_features_are_not_those_of_another_adapter(make_tokenizer, make_model, tmp_path):
    """Switching an adapter off changes no weight, and yet the features."""
    peft = pytest.importorskip("peft")
    tokenizer, processor = make_tokenizer(), MoTEVideoProcessor(num_frames=4)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(make_model(), settings)
    model = adapted.base_model.model

    def cached():
        features = class_features(model, tokenizer, NAMES, PROMPTS, tmp_path)
        torch.testing.assert_close(features, encode_classes(model, tokenizer, NAMES, PROMPTS), rtol=0, atol=1e-6)
        return frame_features_key(model, processor, ["a"], {})

    with_adapter = cached()
    with adapted.disable_adapter():
        assert cached() != with_adapter
    assert cached() == with_adapter
    for parameter in model.text_model.parameters():  # as an EMA does, seen by no hook
        parameter.data.mul_(0.5)
    cached()


def test_a_cache_of_other_reading_code_is_not_taken(make_model, monkeypatch):
    def key():
        return frame_features_key(make_model(), MoTEVideoProcessor(num_frames=4), ["a"], {})

    before = key()
    assert key() == before
    monkeypatch.setattr("modeling_mote.feature_cache.reading_version", lambda: "of another release")
    assert key() != before
