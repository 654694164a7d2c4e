"""`MoTEConfig`: what it derives, what it keeps over a save, and what it refuses."""

import copy
import importlib.util
import json
import math
import runpy

import pytest
import transformers
from transformers import (
    AutoConfig,
    ChineseCLIPConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    SiglipConfig,
    VideoMAEConfig,
    XCLIPConfig,
)
from transformers.utils import logging

from modeling_mote import MoTEConfig, MoTEModel, MoTETemporalConfig

# As in openai/clip-vit-base-patch16 and -large-patch14, with keys of older transformers that their files carry.
PUBLISHED = {
    512: {"text_config": {"hidden_size": 512, "num_attention_heads": 8, "bad_words_ids": None, "torchscript": False}},
    768: {
        "text_config": {"hidden_size": 768, "num_attention_heads": 12},
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
    },
}


def clip_config_file(folder, width):
    values = {
        "_commit_hash": None,
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": width,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config_dict": None,
        "text_config_dict": None,
        "max_length": 20,
        "vision_config": {"patch_size": 16},
        **PUBLISHED[width],
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def reloaded(config, folder):
    config.save_pretrained(folder)
    return MoTEConfig.from_pretrained(folder)


@pytest.mark.parametrize(("width", "layers", "heads"), [(512, 4, 8), (768, 6, 12)])
def test_temporal_config_is_derived_from_a_bare_clip(tmp_path, caplog, width, layers, heads):
    config = MoTEConfig.from_pretrained(clip_config_file(tmp_path / "clip", width))
    temporal = config.temporal_config
    assert (temporal.hidden_size, temporal.intermediate_size) == (width, 4 * width)
    assert (temporal.num_hidden_layers, temporal.num_attention_heads) == (layers, heads)
    assert (temporal.num_experts, temporal.max_frames, temporal.layer_norm_eps) == (4, 77, 1e-12)
    assert (temporal.hidden_act, temporal.initializer_range) == ("quick_gelu", 0.02)
    assert config.model_type == "mote" and config.architectures is None and not config.training_classes_set
    assert config.vision_config.patch_size == 16 and config.text_config.hidden_size == width
    assert config.vision_config.layer_norm_eps == 1e-5
    assert not caplog.records  # no "model of type clip to instantiate a model of type mote"


@pytest.mark.parametrize(("text_width", "heads"), [(32, 1), (64, 1), (256, 4)])
def test_heads_follow_the_text_width(text_width, heads):
    text = {"hidden_size": text_width, "num_attention_heads": 2}
    assert MoTEConfig(text_config=text).temporal_config.num_attention_heads == heads
    assert MoTEConfig(text_config=CLIPTextConfig(**text)).temporal_config.num_attention_heads == heads
    assert MoTEConfig(text_config_dict=text).temporal_config.num_attention_heads == heads


def test_defaults_are_the_design_s():
    config = MoTEConfig()
    assert (config.num_frames, config.modulation_top_k, config.modulation_temperature) == (8, 5, 0.05)
    assert (config.merging_loss_weight, config.mse_loss_weight, config.label_smoothing) == (0.5, 0.1, 0)
    temperatures = {float(tau) for tau in config.merge_temperatures}
    assert temperatures == {sign * tau for tau in (0.6, 1.2, 2.4, 4.8, 9.6) for sign in (1, -1)} | {math.inf}
    assert len(config.merge_temperatures) == 11
    assert isinstance(config, CLIPConfig)


def test_partial_temporal_config_overrides_what_it_names():
    text = {"hidden_size": 768, "num_attention_heads": 12}
    temporal = MoTEConfig(
        text_config=text, projection_dim=768, temporal_config={"num_hidden_layers": 3}
    ).temporal_config
    assert (temporal.num_hidden_layers, temporal.hidden_size, temporal.num_attention_heads) == (3, 768, 12)


def test_values_equal_to_class_defaults_survive_a_save(tmp_path):
    defaults = MoTETemporalConfig()
    config = MoTEConfig(
        text_config={"hidden_size": 768, "num_attention_heads": 12},
        projection_dim=768,
        temporal_config={
            "num_hidden_layers": defaults.num_hidden_layers,
            "num_attention_heads": defaults.num_attention_heads,
            "intermediate_size": defaults.intermediate_size,
        },
    )
    again = reloaded(config, tmp_path)
    for name in ("num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(again.temporal_config, name) == getattr(defaults, name), name


def test_everything_survives_a_save(tmp_path, make_config):
    config = make_config(
        num_frames=16,
        modulation_top_k=3,
        modulation_temperature=0.1,
        merging_loss_weight=0.25,
        mse_loss_weight=0.0,
        merge_temperatures=(1, -2.5, math.inf),
        label_smoothing=0.1,
        training_classes_set=True,
        num_labels=2,
        id2label={0: "a", 1: "b"},
        label2id={"a": 0, "b": 1},
        temporal_config={"num_experts": 3, "max_frames": 40, "layer_norm_eps": 1e-6, "num_attention_heads": 4},
    )
    again = reloaded(config, tmp_path)
    expected, got = config.to_dict(), again.to_dict()
    for values in (expected, got):
        values.pop("_name_or_path", None)
    assert got == expected
    assert again.id2label == {0: "a", 1: "b"} and again.num_labels == 2
    assert type(AutoConfig.from_pretrained(tmp_path)) is MoTEConfig
    assert copy.deepcopy(again).to_dict() == again.to_dict()


def test_infinity_is_json(tmp_path):
    config = reloaded(MoTEConfig(merge_temperatures=[1.2, math.inf]), tmp_path)
    assert config.merge_temperatures == [1.2, "inf"]
    json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)  # no bare Infinity


@pytest.mark.parametrize("key", ["num_framez", "temporal", "top_k", "temperature", "hidden_size"])
def test_unknown_keys_are_refused(key):
    with pytest.raises(ValueError, match=f"MoTEConfig has no field {key}"):
        MoTEConfig(**{key: 3})


@pytest.mark.parametrize("key", ["num_expert", "num_layers", "top_k", "num_frames"])
def test_unknown_temporal_keys_are_refused(key):
    with pytest.raises(ValueError, match=f"MoTETemporalConfig has no field {key}"):
        MoTEConfig(temporal_config={key: 3})


def test_unknown_keys_of_a_saved_file_are_kept_with_one_warning(tmp_path, make_config, caplog):
    """Files of later versions and of other tools load, and lose nothing when they are saved again."""
    logging.warning_once.cache_clear()
    make_config().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"transformers.js_config": {"dtype": "q8"}, "license": "mit", "to_dict": 1, "future_field": [1, 2]}
    values["temporal_config"]["rotary"] = True
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = MoTEConfig.from_pretrained(tmp_path)
    MoTEConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "no field future_field, license, to_dict, transformers.js_config" in said[0], said
    assert "MoTETemporalConfig has no field rotary" in said[1]
    MoTEModel(config).save_pretrained(tmp_path)
    model = MoTEModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert {key: again[key] for key in ("transformers.js_config", "license", "to_dict", "future_field")} == {
        key: values[key] for key in ("transformers.js_config", "license", "to_dict", "future_field")
    }
    assert again["temporal_config"]["rotary"] is True and "_foreign" not in again
    assert "_foreign" not in again["temporal_config"]
    assert MoTEConfig.from_json_file(tmp_path / "again/config.json").num_frames == 8


def test_a_typed_key_is_refused_beside_a_file_that_holds_unknown_ones(tmp_path, make_config):
    make_config().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["temporal_config"]["rotary"] = True
    (tmp_path / "config.json").write_text(json.dumps({**values, "future_field": 1}))
    with pytest.raises(ValueError, match="MoTETemporalConfig has no field num_expert"):
        MoTEConfig.from_pretrained(tmp_path, temporal_config={"num_expert": 2})
    assert MoTEConfig.from_pretrained(tmp_path, temporal_config={"num_experts": 2}).temporal_config.num_experts == 2


@pytest.mark.parametrize("cls", [SiglipConfig, ChineseCLIPConfig, XCLIPConfig, VideoMAEConfig, CLIPVisionConfig])
def test_other_models_are_refused_by_their_type_before_any_weight(tmp_path, cls):
    cls().save_pretrained(tmp_path)  # no weights: whoever looked for them would say so
    for load in (MoTEConfig.from_pretrained, MoTEModel.from_pretrained):
        with pytest.raises(ValueError, match=f"holds a model of type '{cls.model_type}'. MoTE starts from a CLIP"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["./absent", "absent/model/best"])
def test_a_missing_folder_is_one_sentence(name):
    for load in (MoTEConfig.from_pretrained, MoTEModel.from_pretrained):
        with pytest.raises(FileNotFoundError, match=f"There is no folder {name}. MoTE starts from a CLIP"):
            load(name)


def test_too_old_a_transformers_is_named(monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    path = importlib.util.find_spec("modeling_mote.configuration_mote").origin
    with pytest.raises(ImportError, match=r"needs transformers 5\.23 or newer, and this is 4\.57\.6"):
        runpy.run_path(path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_frames": 78}, "num_frames must be between 1 and temporal_config.max_frames"),
        ({"num_frames": 0}, "num_frames must be between"),
        ({"modulation_top_k": 0}, "modulation_top_k must be at least 1"),
        ({"modulation_temperature": 0.0}, "modulation_temperature must be positive"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"still_penalty_weight": -0.1}, "still_penalty_weight must not be negative"),
        ({"still_penalty_weight": math.nan}, "still_penalty_weight must not be negative"),
        ({"merge_temperatures": []}, "merge_temperatures must hold"),
        ({"merge_temperatures": [0]}, "merge_temperatures must hold"),
        ({"merge_temperatures": [math.nan]}, "merge_temperatures must hold"),
        ({"merge_temperatures": ["hot"]}, "merge_temperatures must hold"),
        ({"problem_type": "multi_label_classification"}, "one class per video .* 'multi_label_classification' is not"),
        ({"problem_type": "regression"}, "one class per video .* 'regression' is not"),
        ({"temporal_config": {"hidden_size": 256}}, "must equal projection_dim"),
        ({"temporal_config": {"num_attention_heads": 7}}, "not a multiple"),
        ({"temporal_config": {"num_experts": 0}}, "num_experts must be at least 1"),
        ({"temporal_config": {"num_hidden_layers": -1}}, "num_hidden_layers must not be negative"),
        ({"temporal_config": {"experts_merged": True}}, "num_experts must be 1 once merged"),
    ],
)
def test_bad_values_are_one_sentence(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        MoTEConfig(**values)


def test_a_bad_value_set_later_stops_the_model(make_config):
    config = make_config()
    config.num_frames = 78
    with pytest.raises(ValueError, match="num_frames"):
        MoTEModel(config)


def test_more_frames_than_77_with_a_longer_table():
    config = MoTEConfig(num_frames=100, temporal_config={"max_frames": 128})
    assert config.num_frames == 100


def test_overrides_on_load_reach_the_temporal_config(tmp_path):
    folder = clip_config_file(tmp_path / "clip", 512)
    config = MoTEConfig.from_pretrained(folder, temporal_config={"num_hidden_layers": 2}, num_frames=16)
    assert (config.temporal_config.num_hidden_layers, config.temporal_config.hidden_size) == (2, 512)
    assert config.num_frames == 16
    with pytest.raises(ValueError, match="num_expert"):
        MoTEConfig.from_pretrained(folder, temporal_config={"num_expert": 2})


def test_temporal_config_loads_by_itself(tmp_path, make_config):
    make_config(temporal_config={"num_hidden_layers": 3}).save_pretrained(tmp_path)
    assert MoTETemporalConfig.from_pretrained(tmp_path).num_hidden_layers == 3
