"""A checkpoint's name → a model that is ready, or one sentence that says why not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, SiglipConfig

from modeling_mote import MoTEForVideoClassification, MoTEModel
from modeling_mote.loading import (
    CheckpointError,
    find_device,
    load_checkpoint,
    load_clip,
    load_model,
    load_pipeline,
    load_to_train,
    model_type_of,
    new_processor,
)
from modeling_mote.processing import MoTEProcessor, MoTEVideoProcessor


@pytest.fixture(scope="session")
def tokenizer(word_tokenizer):
    return word_tokenizer(["a", "photo", "video", "of", "person", "running", "."], model_max_length=16)


@pytest.fixture
def saved(classifier, tokenizer, tmp_path):
    """A trained checkpoint with its processor."""
    folder = tmp_path / "mote"
    classifier.save_pretrained(folder)
    video_processor = MoTEVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    MoTEProcessor(video_processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(clip_folder, tokenizer, tmp_path):
    """A bare CLIP with its tokenizer."""
    tokenizer.save_pretrained(shutil.copytree(clip_folder, tmp_path / "clip"))
    return tmp_path / "clip"


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refuse(load, model, sentence):
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load(str(model))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 and str(model) in message, message


# --- what loads ---


def test_both_classes_and_the_processor_load(saved, classifier, videos, capfd):
    assert type(load_model(str(saved))) is MoTEModel
    model, processor = load_checkpoint(str(saved), classifier=True)
    assert type(model) is MoTEForVideoClassification and isinstance(processor, MoTEProcessor)
    assert not model.training and model.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model(videos).logits, classifier(videos).logits)
    assert "MISSING" not in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["auto", torch.float32])
def test_precision_and_shards(classifier, tmp_path, dtype):
    classifier.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="100KB")
    model = load_model(str(tmp_path), dtype=dtype)
    assert model.dtype == (torch.bfloat16 if dtype == "auto" else torch.float32)
    assert model.seen_classes.weight.dtype == torch.float32
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    refuse(load_model, tmp_path, f"does not load: .*{shard.name}")


def test_the_pipeline_has_its_experts_folded(saved):
    assert load_pipeline(str(saved), device="cpu").model.config.temporal_config.experts_merged
    assert not load_pipeline(str(saved), device="cpu", merge=False).model.config.temporal_config.experts_merged


def test_training_starts_from_a_clip_or_a_mote(saved, clip):
    model, processor = load_to_train(str(clip), num_frames=4, label_smoothing=0.1)
    assert (model.config.num_frames, model.config.label_smoothing) == (4, 0.1)
    assert not model.temporal_layers_trained and not model.config.training_classes_set
    assert (processor.num_frames, processor.video_processor.short_video) == (4, "loop")
    assert processor.video_processor.size["shortest_edge"] == 32  # the CLIP's
    model, processor = load_to_train(str(saved), num_frames=16)
    assert model.temporal_layers_trained and model.config.num_frames == processor.num_frames == 16


def test_a_new_processor_takes_the_colours_of_its_clip(clip, make_config):
    plain = new_processor(str(clip), make_config(), 8).video_processor
    assert list(plain.image_mean) == list(MoTEVideoProcessor.image_mean)
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(clip)
    processor = new_processor(str(clip), make_config(), 8)
    assert list(processor.video_processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.video_processor.image_std) == [0.4, 0.5, 0.6]


def test_load_clip(clip):
    assert not load_clip(str(clip)).training
    edit_weights(clip, lambda weights: weights.pop("text_projection.weight"))
    refuse(load_clip, clip, "lacks 1 of its weights, text_projection.weight")


# --- what does not, and why ---


def test_names_that_are_no_checkpoint(saved, tmp_path):
    refuse(load_model, "./absent", r"There is no folder \./absent\. MoTE starts from a CLIP")
    refuse(load_model, "absent", "absent can't be loaded. It is no folder here, and not had from the Hub: ")
    refuse(load_model, "org/absent", "org/absent can't be loaded. It is no folder here, and not had from the Hub: ")
    refuse(load_model, saved / "config.json", "is a file, not a checkpoint folder: convert")
    refuse(load_model, tmp_path, "is no checkpoint: it holds no config.json")
    shutil.copytree(saved, tmp_path / "run/model")
    refuse(load_model, tmp_path / "run", "is no checkpoint: .*run/model is one")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    refuse(load_model, tmp_path / "adapter", "it holds an adapter; merge it")
    (saved / "config.json").write_text("{not JSON")
    refuse(load_model, saved, "Its config.json can't be read: ")


def test_other_models(clip, tmp_path):
    refuse(load_model, clip, "is a bare CLIP, whose temporal layers are not there yet: train it first")
    SiglipConfig().save_pretrained(tmp_path / "siglip")
    for load in (load_model, lambda model: load_to_train(model, 8)):
        refuse(load, tmp_path / "siglip", "holds a model of type 'siglip'.*MoTE starts from a CLIP")
    refuse(load_clip, tmp_path / "siglip", "holds a model of type 'siglip', not a CLIP")
    assert model_type_of(str(tmp_path / "siglip")) == "siglip"


def test_temporal_layers_that_were_never_trained(clip, tmp_path):
    model, _ = load_to_train(str(clip), num_frames=8)
    model.save_pretrained(tmp_path / "untrained")
    model.merge_experts().save_pretrained(tmp_path / "merged")
    for name in ("untrained", "merged"):
        refuse(load_model, tmp_path / name, "temporal layers of .* were never trained, so its scores mean nothing")
        assert load_model(str(tmp_path / name), untrained=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("logit_scale"), "lacks 1 of MoTE's weights, logit_scale"),
        (lambda w: w.pop("seen_classes.weight"), "lacks 1 of MoTE's weights, seen_classes.weight"),
        (lambda w: w.update(head=torch.ones(2)), "holds 1 other weights, head"),
        (lambda w: w["text_projection.weight"].fill_(torch.nan), "text_projection.weight holds values that are no"),
        (lambda w: w.update(visual_projection_bias=torch.ones(2)), "holds 1 other weights"),
        (lambda w: w.update({"visual_projection.weight": torch.ones(3, 3)}), "do not fit its config.json"),
        (lambda w: w["seen_classes.weight"].neg_(), "names in config.id2label are not those that the text features"),
    ],
)
def test_weights_that_are_not_all_there(saved, change, sentence):
    edit_weights(saved, change)
    refuse(load_model, saved, sentence)


def test_damaged_files(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "num_frames": 78}))
    refuse(load_model, saved, "num_frames must be between 1")
    (saved / "config.json").write_text(json.dumps({**config, "num_frames": "eight"}))
    refuse(load_model, saved, "config.json holds a wrong value .*num_frames.* expected int")
    (saved / "config.json").write_text(json.dumps(config))
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refuse(load_model, saved, "does not load: its weights are damaged .*; copy or download them again")
    weights.unlink()
    refuse(load_model, saved, "does not load: .*model.safetensors")


def test_a_checkpoint_without_processor_or_tokenizer(classifier, clip_folder, make_config, tmp_path):
    classifier.save_pretrained(tmp_path)
    refuse(load_checkpoint, tmp_path, "holds no processor_config.json: save a MoTEProcessor")
    refuse(
        lambda clip: new_processor(clip, make_config(), 8),
        clip_folder,
        "has no tokenizer: save the CLIP's tokenizer in it",
    )


def test_devices():
    assert find_device("cpu") == torch.device("cpu") and isinstance(find_device(None), torch.device)
    for name in ("nonsense", "cuda:99"):
        with pytest.raises(ValueError, match=f"Device {name} does not work here: "):
            find_device(name)
