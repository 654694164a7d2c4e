"""The names of the training classes and their text features belong together, and the checkpoint knows it."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForVideoClassification

from modeling_mote import MoTEForVideoClassification, MoTEModel

NOT_THOSE = "not those that the text features in seen_classes.weight were set with"


@pytest.fixture
def saved(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def others(count=20):
    return {"id2label": {i: f"new {i}" for i in range(count)}, "label2id": {f"new {i}": i for i in range(count)}}


@pytest.mark.parametrize("load", [MoTEForVideoClassification, AutoModelForVideoClassification, MoTEModel])
@pytest.mark.parametrize("count", [20, 3])
def test_other_names_make_a_model_without_classes(saved, videos, candidates, tmp_path, caplog, load, count):
    """The idiom of transformers' guides, also where the number of classes stays the same."""
    model = load.from_pretrained(saved, **others(count), ignore_mismatched_sizes=True)
    assert "call set_training_classes(names, embeds)" in caplog.text
    assert model.config.training_classes_set is False and model.config.id2label[1] == "new 1"
    assert torch.equal(model.seen_classes.weight, model.seen_classes.initial_rows(count, 64))
    model.save_pretrained(tmp_path / "relabelled")
    again = MoTEForVideoClassification.from_pretrained(tmp_path / "relabelled")
    with pytest.raises(ValueError, match="no training classes yet: call set_training_classes"):
        again(videos)
    assert again(videos, class_embeds=candidates).modulation.tolist() == [1.0, 1.0]
    again.set_training_classes(list(again.config.label2id), torch.randn(count, 64))
    assert again(videos).logits.shape == (2, count)


def test_the_same_names_change_nothing(saved, classifier, videos, caplog):
    names = {str(index): name for index, name in classifier.config.id2label.items()}
    model = MoTEForVideoClassification.from_pretrained(saved, id2label=names, num_labels=20)
    assert torch.equal(model(videos).logits, classifier(videos).logits) and not caplog.records


def test_names_changed_in_the_file_are_refused(saved, classifier, videos):
    edit(saved, id2label={index: name.upper() for index, name in classifier.config.id2label.items()})
    for cls in (MoTEModel, MoTEForVideoClassification):
        with pytest.raises(ValueError, match=NOT_THOSE):
            cls.from_pretrained(saved)


def test_rows_of_other_classes_are_refused(saved):
    weights = load_file(saved / "model.safetensors")
    weights["seen_classes.weight"] = weights["seen_classes.weight"].flip(0).contiguous()
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=NOT_THOSE):
        MoTEModel.from_pretrained(saved)


def test_a_config_that_was_changed_and_passed_is_refused(saved):
    config = AutoConfig.from_pretrained(saved)
    config.id2label = others()["id2label"]
    with pytest.raises(ValueError, match=NOT_THOSE):
        MoTEForVideoClassification.from_pretrained(saved, config=config)


def test_a_trained_config_without_its_weights_scores_nothing(saved, clip_folder, videos, candidates, caplog):
    config = AutoConfig.from_pretrained(saved)
    fresh = MoTEForVideoClassification(copy.deepcopy(config)).eval()
    for inputs in ({}, {"class_embeds": candidates}):
        with pytest.raises(ValueError, match="the weights hold no text features of them: load the weights"):
            fresh(videos, **inputs)
    from_clip = MoTEForVideoClassification.from_pretrained(clip_folder, config=config)
    assert "holds no text features of the classes in id2label" in caplog.text
    with pytest.raises(ValueError, match="no training classes yet"):
        from_clip(videos)


def test_renamed_in_memory_is_refused_at_the_score_and_at_the_save(classifier, videos, candidates, tmp_path):
    classifier(videos)
    rows = classifier.seen_classes.weight.clone()
    classifier.config.id2label = others()["id2label"]
    with pytest.raises(ValueError, match=NOT_THOSE):
        classifier(videos)
    with pytest.raises(ValueError, match=NOT_THOSE):
        classifier.save_pretrained(tmp_path / "renamed")
    assert not (tmp_path / "renamed").exists()
    classifier.set_training_classes(list(others()["label2id"]), classifier.seen_classes.weight)
    torch.testing.assert_close(classifier.seen_classes.weight, rows)
    classifier.save_pretrained(tmp_path / "renamed")
    assert MoTEModel.from_pretrained(tmp_path / "renamed").config.id2label[3] == "new 3"


def test_rows_edited_in_memory_are_refused_at_the_save(classifier, tmp_path):
    classifier.seen_classes.weight.data.mul_(-1)
    with pytest.raises(ValueError, match=NOT_THOSE):
        classifier.save_pretrained(tmp_path / "edited")


def test_checkpoints_of_earlier_releases_load_and_are_recorded(saved, classifier, videos, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    digest = config.pop("training_classes_sha256")
    assert len(digest) == 64
    (saved / "config.json").write_text(json.dumps(config))
    model = MoTEForVideoClassification.from_pretrained(saved)
    assert torch.equal(model(videos).logits, classifier(videos).logits)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["training_classes_sha256"] == digest


@torch.no_grad()
def test_a_whole_state_dict_brings_its_training_classes(classifier, make_model, videos, candidates):
    fresh = make_model(classes=None, seed=5)
    assert not fresh.config.training_classes_set
    fresh.load_state_dict(classifier.state_dict())
    assert fresh.config.training_classes_set
    assert torch.equal(fresh(videos).logits, classifier(videos).logits)
    modulated = classifier(videos, class_embeds=candidates)
    assert torch.equal(fresh(videos, class_embeds=candidates).logits, modulated.logits)

    fresh.load_state_dict(make_model(classes=None).state_dict())
    assert not fresh.config.training_classes_set
    with pytest.raises(ValueError, match="no training classes yet"):
        fresh(videos)

    copied = copy.deepcopy(classifier)
    copied.load_state_dict({"logit_scale": torch.tensor(1.0)}, strict=False)
    assert copied.config.training_classes_set and copied(videos).logits.shape == (2, 20)


def test_a_state_dict_of_other_classes_under_these_names_is_refused(classifier, make_classes, videos):
    other = copy.deepcopy(classifier)
    other.set_training_classes([f"other {index}" for index in range(20)], make_classes(20, seed=30))
    classifier(videos)
    classifier.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=NOT_THOSE):
        classifier(videos)


def test_the_check_survives_copies_and_precision(classifier, videos, tmp_path):
    for model in (copy.deepcopy(classifier), copy.deepcopy(classifier).to(torch.bfloat16)):
        model.check_training_classes()
        model(videos)
        model.save_pretrained(tmp_path / str(model.dtype))
        MoTEModel.from_pretrained(tmp_path / str(model.dtype), dtype="auto").check_training_classes()
    torch.save(classifier, tmp_path / "pickled.pt")
    torch.load(tmp_path / "pickled.pt", weights_only=False)(videos)
