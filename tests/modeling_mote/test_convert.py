"""The converter on random checkpoints in the authors' format, of many shapes; and on everything that is none."""

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    pipeline,
)

from modeling_mote import MoTEForVideoClassification, MoTEModel
from modeling_mote.commands import main
from modeling_mote.convert_mote_original import ConversionError, convert
from modeling_mote.loading import CheckpointError, load_model
from modeling_mote.processing import PROMPT_SETS, MoTEProcessor, encode_classes
from modeling_mote.processing.label_sets import load_label_set

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tokenizer(word_tokenizer):
    """Kinetics' names and the prompts' words."""
    text = " ".join([*load_label_set("kinetics400").classes, *next(iter(PROMPT_SETS.values()))]).lower()
    return word_tokenizer(
        (word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)), model_max_length=40
    )


def random_clip(tokenizer, folder, depth=2, width=32, heads=2, patch=16, text_width=128, projection=64) -> CLIPModel:
    """Saves a random CLIP with a tokenizer."""
    tower = {"num_hidden_layers": depth, "num_attention_heads": heads}
    config = CLIPConfig(
        text_config={
            "hidden_size": text_width,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 40,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "hidden_size": width, "intermediate_size": 40, "image_size": 32, "patch_size": patch},
        projection_dim=projection,
    )
    model = CLIPModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def random_checkpoint(clip: CLIPModel, layers=2, experts=4, hidden=56, frames=77, classes=7, fusion=None) -> dict:
    """A checkpoint in the authors' format, every tensor random; `fusion` are `mote_fusion_weight` rows, [L, E]."""

    def block(prefix, width, feed_forward):
        return {
            f"{prefix}.{name}": value
            for name, value in {
                "attn.in_proj_weight": torch.randn(3 * width, width) / width**0.5,
                "attn.in_proj_bias": 0.1 * torch.randn(3 * width),
                "attn.out_proj.weight": torch.randn(width, width) / width**0.5,
                "attn.out_proj.bias": 0.1 * torch.randn(width),
                "ln_1.weight": 1 + 0.1 * torch.randn(width),
                "ln_1.bias": 0.1 * torch.randn(width),
                "ln_2.weight": 1 + 0.1 * torch.randn(width),
                "ln_2.bias": 0.1 * torch.randn(width),
                **feed_forward,
            }.items()
        }

    vision, width, d = clip.config.vision_config, clip.config.vision_config.hidden_size, clip.config.projection_dim
    image = {
        "logit_scale": torch.tensor(4.2),
        "visual.class_embedding": torch.randn(width),
        "visual.positional_embedding": torch.randn((vision.image_size // vision.patch_size) ** 2 + 1, width),
        "visual.conv1.weight": 0.05 * torch.randn(width, 3, vision.patch_size, vision.patch_size),
        "visual.proj": torch.randn(width, d) / width**0.5,
    }
    for name in ("ln_pre", "ln_post"):
        image |= {f"visual.{name}.weight": 1 + 0.1 * torch.randn(width), f"visual.{name}.bias": torch.randn(width)}
    for layer in range(vision.num_hidden_layers):
        image |= block(
            f"visual.transformer.resblocks.{layer}",
            width,
            {
                "mlp.c_fc.weight": torch.randn(vision.intermediate_size, width) / width**0.5,
                "mlp.c_fc.bias": 0.1 * torch.randn(vision.intermediate_size),
                "mlp.c_proj.weight": torch.randn(width, vision.intermediate_size) / width**0.5,
                "mlp.c_proj.bias": 0.1 * torch.randn(width),
            },
        )
    head = {"frame_position_embeddings.weight": torch.randn(frames, d), "spe_cls_feature": torch.randn(classes, d)}
    for layer in range(layers):
        feed_forward = {"mlp.mote_fusion_weight": torch.zeros(experts) if fusion is None else fusion[layer]}
        for expert in range(experts):
            feed_forward |= {
                f"mlp.fc_up.{expert}.weight": torch.randn(hidden, d) / d**0.5,
                f"mlp.fc_up.{expert}.bias": 0.1 * torch.randn(hidden),
                f"mlp.fc_dn.{expert}.weight": torch.randn(d, hidden) / hidden**0.5,
                f"mlp.fc_dn.{expert}.bias": 0.1 * torch.randn(d),
            }
        head |= block(f"transformer.resblocks.{layer}", d, feed_forward)
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    return {
        "epoch": 29,
        "model_state_dict": image,
        "fusion_model_state_dict": head,
        "optimizer_state_dict": optimizer,
    }


def run_original(checkpoint: dict, frames: torch.Tensor, vision_heads: int, temporal_heads: int, eps: float):
    """Video tokens [b, t, d] of frames [b, t, 3, h, w], by the tensors' original names and PyTorch's own functions."""
    p = {**checkpoint["model_state_dict"], **checkpoint["fusion_model_state_dict"]}

    def norm(x, name, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def attend(x, name, heads):
        x = x.transpose(0, 1)
        out, _ = F.multi_head_attention_forward(
            x, x, x, x.shape[-1], heads, p[f"{name}.in_proj_weight"], p[f"{name}.in_proj_bias"], None, None, False,
            0.0, p[f"{name}.out_proj.weight"], p[f"{name}.out_proj.bias"], training=False, need_weights=False,
        )  # fmt: skip
        return out.transpose(0, 1)

    def feed(x, up, up_bias, down, down_bias):
        hidden = F.linear(x, up, up_bias)
        return F.linear(hidden * torch.sigmoid(1.702 * hidden), down, down_bias)

    b, t = frames.shape[:2]
    x = F.conv2d(frames.flatten(0, 1), p["visual.conv1.weight"], stride=p["visual.conv1.weight"].shape[-1])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([p["visual.class_embedding"].expand(b * t, 1, -1), x], 1) + p["visual.positional_embedding"]
    x = norm(x, "visual.ln_pre")
    layer = 0
    while (name := f"visual.transformer.resblocks.{layer}") + ".ln_1.weight" in p:
        x = x + attend(norm(x, f"{name}.ln_1"), f"{name}.attn", vision_heads)
        weights = [p[f"{name}.mlp.{part}"] for part in ("c_fc.weight", "c_fc.bias", "c_proj.weight", "c_proj.bias")]
        x, layer = x + feed(norm(x, f"{name}.ln_2"), *weights), layer + 1
    e = (norm(x[:, 0], "visual.ln_post") @ p["visual.proj"]).view(b, t, -1)
    h, layer = e + p["frame_position_embeddings.weight"][:t], 0
    while (name := f"transformer.resblocks.{layer}") + ".ln_1.weight" in p:
        h = h + attend(norm(h, f"{name}.ln_1", eps), f"{name}.attn", temporal_heads)
        shares = p[f"{name}.mlp.mote_fusion_weight"].softmax(0)
        weights = [
            sum(share * p[f"{name}.mlp.{part.format(expert)}"] for expert, share in enumerate(shares))
            for part in ("fc_up.{}.weight", "fc_up.{}.bias", "fc_dn.{}.weight", "fc_dn.{}.bias")
        ]
        h, layer = h + feed(norm(h, f"{name}.ln_2", eps), *weights), layer + 1
    return h + e


@pytest.fixture
def write(tokenizer, tmp_path):
    """`write(change, clip={…}, **sizes)`: a checkpoint file and a CLIP folder; `change` edits the checkpoint."""

    def make(change=None, clip=None, **sizes):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = random_clip(tokenizer, tmp_path / "clip", **(clip or {}))
            checkpoint = random_checkpoint(model, **sizes)
        if change is not None:
            change(checkpoint)
        torch.save(checkpoint, tmp_path / "original.pt")
        return tmp_path / "original.pt", tmp_path / "clip", checkpoint

    return make


def names_file(folder: Path, names) -> Path:
    path = folder / "labels.txt"
    path.write_text("\n".join(names) + "\n")
    return path


def seven(folder: Path) -> Path:
    return names_file(folder, [f"action {index}" for index in range(7)])


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


# --- what it converts ---

SHAPES = {
    "as given": ({}, {}),
    "other depths": ({"depth": 5}, {"layers": 3}),
    "other widths": ({"width": 48, "heads": 3, "projection": 96, "text_width": 192}, {"hidden": 20}),
    "narrow text": ({"text_width": 32, "projection": 40}, {}),
    "other patch": ({"patch": 8}, {}),
    "two experts": ({}, {"experts": 2}),
    "one expert": ({}, {"experts": 1}),
    "many experts": ({}, {"experts": 11}),
    "few positions": ({}, {"frames": 9}),
    "many classes": ({}, {"classes": 61}),
    "one layer": ({"depth": 1}, {"layers": 1}),
    "twelve layers": ({}, {"layers": 12}),
    "stored merge": ({}, {"fusion": torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.5, 0.0, -0.5, 2.0]])}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_scores_as_the_original(write, tmp_path, shape):
    clip_sizes, sizes = SHAPES[shape]
    path, clip, checkpoint = write(clip=clip_sizes, **sizes)
    classes = sizes.get("classes", 7)
    labels = names_file(tmp_path, [f"action {index}" for index in range(classes)])
    convert(path, clip, tmp_path / "mote", alpha=1.0, labels=labels)
    model = MoTEForVideoClassification.from_pretrained(tmp_path / "mote")
    frames = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    heads = clip_sizes.get("heads", 2), max(1, clip_sizes.get("text_width", 128) // 64)
    tokens = run_original(checkpoint, frames, *heads, eps=1e-12)
    with torch.no_grad():
        close(model.get_video_features(frames).last_hidden_state, tokens)
        features = F.normalize(tokens.mean(1), dim=-1)
        rows = F.normalize(checkpoint["fusion_model_state_dict"]["spe_cls_feature"], dim=-1)
        close(model(frames).logits, torch.tensor(4.2).exp() * features @ rows.T)
    text = CLIPModel.from_pretrained(clip).state_dict()
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in text.items() if key.startswith("text"))
    temporal = model.config.temporal_config
    assert temporal.num_hidden_layers == sizes.get("layers", 2) and temporal.max_frames == sizes.get("frames", 77)
    assert temporal.experts_merged == (shape == "stored merge")
    assert temporal.num_experts == (1 if temporal.experts_merged else sizes.get("experts", 4))


def test_prefix_of_data_parallel_training(write, tmp_path):
    def prefixed(checkpoint):
        for part in ("model_state_dict", "fusion_model_state_dict"):
            checkpoint[part] = {f"module.{key}": value for key, value in checkpoint[part].items()}

    path, clip, checkpoint = write()
    plain = convert(path, clip, tmp_path / "plain", labels=seven(tmp_path)).state_dict()
    prefixed(checkpoint)
    torch.save(checkpoint, path)
    wrapped = convert(path, clip, tmp_path / "wrapped", labels=seven(tmp_path)).state_dict()
    assert plain.keys() == wrapped.keys() and all(torch.equal(plain[key], wrapped[key]) for key in plain)


def test_half_precision_checkpoint(write, tmp_path):
    def half(checkpoint):
        image = checkpoint["model_state_dict"]
        checkpoint["model_state_dict"] = {key: value.half() for key, value in image.items()}

    path, clip, checkpoint = write(half)
    model = convert(path, clip, tmp_path / "mote", alpha=1.0, labels=seven(tmp_path))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    kernel = checkpoint["model_state_dict"]["visual.conv1.weight"].float()
    assert torch.equal(model.vision_model.embeddings.patch_embedding.weight, kernel)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99, 1.0])
def test_alpha_blends_the_image_tower_and_nothing_else(write, tmp_path, alpha):
    path, clip, _ = write()
    folder = tmp_path / "mote"
    arguments = {} if alpha == 0.99 else {"alpha": alpha}
    convert(path, clip, folder, labels=seven(tmp_path), **arguments)
    assert json.loads((folder / "conversion.json").read_text())["alpha"] == alpha
    tuned = convert(path, clip, tmp_path / "tuned", alpha=1.0, labels=seven(tmp_path)).state_dict()
    pretrained, blended = CLIPModel.from_pretrained(clip).state_dict(), load_file(folder / "model.safetensors")
    for key, value in blended.items():
        if key in pretrained and not key.startswith("text"):
            expected = alpha * tuned[key] + (1 - alpha) * pretrained[key]
        else:
            expected = tuned[key]
        torch.testing.assert_close(value, expected, msg=lambda text, key=key: f"{key}: {text}")
    assert (tuned["logit_scale"] - pretrained["logit_scale"]).abs() > 1


# --- names of the classes ---


def test_kinetics_names_only_where_the_features_prove_them(write, tokenizer, tmp_path):
    path, clip, checkpoint = write(classes=400)
    names = list(load_label_set("kinetics400").classes)
    plain = MoTEModel.from_pretrained(clip)
    features = encode_classes(plain, tokenizer, names)

    def converted(rows, name):
        checkpoint["fusion_model_state_dict"]["spe_cls_feature"] = rows
        torch.save(checkpoint, path)
        return list(convert(path, clip, tmp_path / name).config.id2label.values())

    assert converted(3 * features + 1e-4 * torch.randn_like(features), "proven") == names
    swapped = features.clone()
    swapped[[7, 8]] = features[[8, 7]]
    with pytest.warns(UserWarning, match="they are not Kinetics-400's in its order.*LABEL_399.*file of their names"):
        assert converted(swapped, "swapped") == [f"LABEL_{index}" for index in range(400)]
    with pytest.warns(UserWarning, match="LABEL_398"):
        assert converted(features[:399], "fewer")[0] == "LABEL_0"


def test_names_from_a_file(write, tmp_path):
    path, clip, _ = write()
    model = convert(path, clip, tmp_path / "mote", labels=seven(tmp_path))
    assert model.config.id2label == {index: f"action {index}" for index in range(7)}
    assert model.config.label2id["action 3"] == 3 and model.config.training_classes_set
    table = tmp_path / "labels.csv"
    table.write_text("id,name\n" + "".join(f"{index},name {index}\n" for index in range(7)))
    assert convert(path, clip, tmp_path / "table", labels=table).config.id2label[6] == "name 6"
    table.write_text("name,description\n" + "".join(f"name {index},what it shows\n" for index in range(7)))
    with pytest.raises(ConversionError, match="labels.csv describes classes, .*: give a file of names alone"):
        convert(path, clip, tmp_path / "described", labels=table)
    assert not (tmp_path / "described").exists()


# --- what the folder is ---


def test_the_folder_serves_auto_classes_and_pipelines(write, tmp_path, write_video):
    path, clip, _ = write()
    folder = tmp_path / "mote"
    (folder).mkdir()  # an empty folder may exist
    model = convert(path, clip, folder, labels=seven(tmp_path), num_frames=4)
    assert not list(tmp_path.glob(".mote.*"))
    expected_files = {
        "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md", "conversion.json",
        "configuration_mote.py", "modeling_mote.py", "processing_mote.py", "video_processing_mote.py",
    }  # fmt: skip
    assert expected_files <= {file.name for file in folder.iterdir()}
    assert type(AutoModel.from_pretrained(folder)) is MoTEModel
    again = AutoModelForVideoClassification.from_pretrained(folder)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, MoTEProcessor)
    assert processor.num_frames == again.config.num_frames == 4
    video = write_video(tmp_path / "clip.mp4", num_frames=12)
    short = write_video(tmp_path / "short.mp4", num_frames=2)  # the checkpoint's processor repeats frames
    assert processor(videos=[str(video)], return_tensors="pt")["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    for file in (video, short):
        closed = pipeline("video-classification", model=str(folder))(str(file), top_k=3)
        assert len(closed) == 3 and closed[0]["label"].startswith("action ")
        zero_shot = pipeline("zero-shot-video-classification", model=str(folder))
        scores = zero_shot(str(file), candidate_labels=["archery", "yoga", "abseiling"])
        assert {score["label"] for score in scores} == {"archery", "yoga", "abseiling"}
        assert sum(score["score"] for score in scores) == pytest.approx(1, abs=1e-4)
    card, record = (folder / "README.md").read_text(), json.loads((folder / "conversion.json").read_text())
    assert card.startswith("---\n") and "pipeline_tag: video-classification" in card and "original.pt" in card
    assert record["epoch"] == 29 and record["classes"] == 7 and len(record["checkpoint_sha256"]) == 64
    assert not any(
        str(tmp_path) in (folder / name).read_text() for name in ("README.md", "config.json", "conversion.json")
    )


# --- what it refuses ---


class Payload:
    """Runs code where a reader unpickles it."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def refuse(path, clip, output, sentence, error=ConversionError, **arguments):
    with pytest.raises(error, match=sentence) as caught:
        convert(path, clip, output, **arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000, message
    assert not output.exists() and not list(output.parent.glob(".*partial*"))
    return message


def test_code_in_a_pickle_is_never_run(write, tmp_path):
    path, clip, checkpoint = write()
    marker = tmp_path / "ran"
    checkpoint["optimizer_state_dict"] = Payload(marker)
    torch.save(checkpoint, path)
    refuse(path, clip, tmp_path / "mote", "original.pt holds no plain PyTorch weights")
    path.write_bytes(pickle.dumps(Payload(marker)))
    refuse(path, clip, tmp_path / "mote", "holds no plain PyTorch weights")
    assert not marker.exists()
    with path.open("rb") as file:
        pickle.load(file)
    assert marker.exists()  # the payload was live


@pytest.mark.parametrize("content", [b"", b"\x00\x01 not a checkpoint" * 50, b"PK\x03\x04broken", b"<html></html>"])
def test_bytes_that_are_no_checkpoint(write, tmp_path, content):
    path, clip, _ = write()
    path.write_bytes(content)
    refuse(path, clip, tmp_path / "mote", "original.pt holds no plain PyTorch weights")


def test_a_truncated_checkpoint(write, tmp_path):
    path, clip, _ = write()
    path.write_bytes(path.read_bytes()[:-5000])
    refuse(path, clip, tmp_path / "mote", "holds no plain PyTorch weights")


@pytest.mark.parametrize(
    "content",
    [
        torch.ones(3),
        [1, 2],
        {},
        {"model_state_dict": {}},
        {"model_state_dict": {"visual.proj": torch.ones(2)}, "fusion_model_state_dict": [1]},
        {"model_state_dict": {"visual.proj": 3.0}, "fusion_model_state_dict": {}},
        {"model_state_dict": {0: torch.ones(2)}, "fusion_model_state_dict": {}},
        {"state_dict": {"weight": torch.ones(2)}},
    ],
)
def test_dictionaries_of_something_else(write, tmp_path, content):
    path, clip, _ = write()
    torch.save(content, path)
    refuse(path, clip, tmp_path / "mote", "is not a checkpoint of MoTE's authors: it has no tensors under")


def drop(part, key):
    return lambda checkpoint: checkpoint[part].pop(key)


def put(part, key, value):
    return lambda checkpoint: checkpoint[part].update({key: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop("model_state_dict", "visual.proj"), "1 missing keys: visual.proj"),
        (drop("model_state_dict", "logit_scale"), "1 missing keys: logit_scale"),
        (
            drop("fusion_model_state_dict", "transformer.resblocks.1.mlp.fc_dn.2.bias"),
            r"1 missing keys: transformer\.resblocks\.1\.mlp\.fc_dn\.2\.bias",
        ),
        (drop("fusion_model_state_dict", "spe_cls_feature"), "no matrix spe_cls_feature"),
        (drop("fusion_model_state_dict", "frame_position_embeddings.weight"), "no matrix frame_position_embeddings"),
        (put("model_state_dict", "visual.extra", torch.ones(2)), "1 unexpected keys: visual.extra"),
        (
            put("fusion_model_state_dict", "transformer.resblocks.1.mlp.fc_up.4.weight", torch.ones(2)),
            "1 unexpected keys: transformer.resblocks.1.mlp.fc_up.4.weight",
        ),
        (put("model_state_dict", "spe_cls_feature", torch.ones(2, 64)), "spe_cls_feature"),
        (put("fusion_model_state_dict", "spe_cls_feature", torch.ones(7, 32)), "features are 32 wide"),
        (put("fusion_model_state_dict", "spe_cls_feature", torch.full((7, 64), torch.nan)), "spe_cls_feature"),
        (put("fusion_model_state_dict", "spe_cls_feature", torch.ones(7)), "no matrix spe_cls_feature"),
        (put("fusion_model_state_dict", "transformer.resblocks.0.ln_1.weight", torch.ones(3)), "layer_norm1.weight"),
        (
            put("fusion_model_state_dict", "transformer.resblocks.0.attn.in_proj_bias", torch.ones(7)),
            "in_proj_bias|q_proj",
        ),
        (put("fusion_model_state_dict", "transformer.resblocks.0.mlp.fc_up.1.bias", torch.ones(3)), "differ in size"),
        (put("fusion_model_state_dict", "transformer.resblocks.0.mlp.mote_fusion_weight", torch.ones(3)), "fusion"),
        (put("model_state_dict", "visual.proj", torch.ones(3)), "visual"),
        (
            put("model_state_dict", "visual.ln_pre.weight", torch.full((32,), torch.inf)),
            "visual.ln_pre.weight .*not finite|not finite.*visual.ln_pre.weight",
        ),
    ],
)
def test_checkpoints_that_do_not_add_up(write, tmp_path, change, sentence):
    path, clip, _ = write(change)
    refuse(path, clip, tmp_path / "mote", sentence, labels=seven(tmp_path))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"depth": 3}, "2 layers and the CLIP's 3: name the CLIP"),
        ({"projection": 32}, "64 wide and the CLIP's 32: name the CLIP"),
        ({"width": 48}, "does not fit the CLIP: .*name the CLIP"),
        ({"patch": 8}, "does not fit the CLIP: .*name the CLIP"),
    ],
)
def test_another_clip(write, tokenizer, tmp_path, other, sentence):
    path, _, _ = write()
    random_clip(tokenizer, tmp_path / "other", **other)
    refuse(path, tmp_path / "other", tmp_path / "mote", sentence)


def test_something_that_is_no_clip(write, tmp_path):
    path, clip, _ = write()
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "absent"):
        refuse(path, folder, tmp_path / "mote", folder.name, error=CheckpointError)
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    refuse(path, clip, tmp_path / "mote", "clip holds a model of type 'siglip', not a CLIP", error=CheckpointError)


def test_a_clip_without_all_weights_is_not_filled_with_random_ones(write, tmp_path):
    from safetensors.torch import save_file

    path, clip, _ = write()
    weights = load_file(clip / "model.safetensors")
    weights.pop("text_projection.weight")
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    refuse(path, clip, tmp_path / "mote", "lacks 1 of its weights, text_projection.weight", error=CheckpointError)


def test_a_clip_without_tokenizer(write, tmp_path):
    path, clip, _ = write()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (clip / name).unlink()
    refuse(path, clip, tmp_path / "mote", "clip has no tokenizer", error=CheckpointError)


def test_bad_arguments(write, tmp_path):
    path, clip, _ = write()
    output = tmp_path / "mote"
    refuse(tmp_path / "absent.pt", clip, output, "There is no file .*absent.pt", error=FileNotFoundError)
    refuse(tmp_path, clip, output, "There is no file", error=FileNotFoundError)
    for alpha in (-0.1, 1.01, float("nan")):
        refuse(path, clip, output, "alpha must be between 0", alpha=alpha)
    six = names_file(tmp_path, list("abcdef"))
    refuse(path, clip, output, "names 6 classes, but the checkpoint has 7", labels=six)
    twice = names_file(tmp_path, list("abcdefa"))
    refuse(path, clip, output, "labels.txt", error=ValueError, labels=twice)
    refuse(path, clip, output, "does not exist", error=FileNotFoundError, labels=tmp_path / "none.csv")
    refuse(path, clip, output, "num_frames must be between 1", error=ValueError, num_frames=78)


def test_an_output_that_is_not_empty_is_kept(write, tmp_path):
    path, clip, _ = write()
    output = tmp_path / "mote"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    for place in (output, output / "mine.txt"):
        with pytest.raises(FileExistsError, match="is not an empty folder"):
            convert(path, clip, place)
    assert [file.name for file in output.iterdir()] == ["mine.txt"]


def test_nothing_is_left_where_saving_fails(write, tmp_path, monkeypatch):
    path, clip, _ = write()
    output = tmp_path / "new" / "mote"

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MoTEProcessor, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        convert(path, clip, output, labels=seven(tmp_path))
    assert not output.exists() and not list(output.parent.iterdir())


# --- the command ---


def command(*arguments, **keywords) -> subprocess.CompletedProcess:
    """The module as it was called before there was `mote convert`, with the options it had."""
    return subprocess.run(
        [sys.executable, "-m", "modeling_mote.convert_mote_original", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
        **keywords,
    )


def test_the_command_converts_and_says_what_it_wrote(write, tmp_path, capsys):
    path, clip, _ = write()
    arguments = ["--model", path, "--clip", clip, "--output", tmp_path / "mote", "--labels-file", seven(tmp_path)]
    assert main(["convert", *map(str, arguments), "--alpha=0.5"]) == 0
    assert "mote: 2 temporal layers of 4 experts, 7 training classes, alpha 0.5 (" in capsys.readouterr().out
    model = load_model(str(tmp_path / "mote"))  # as every command does: trained, whole, finite
    assert model.config.num_labels == 7 and model.temporal_layers_trained


@pytest.mark.slow
def test_the_module_runs_the_command_with_the_options_it_had(write, tmp_path):
    path, clip, _ = write()
    run = command("--checkpoint", path, "--clip", clip, "--output", tmp_path / "mote", f"--labels={seven(tmp_path)}")
    assert run.returncode == 0, run.stderr
    assert "2 temporal layers of 4 experts, 7 training classes, alpha 0.99" in run.stdout
    assert MoTEForVideoClassification.from_pretrained(tmp_path / "mote").config.num_labels == 7


@pytest.mark.slow
def test_a_disk_that_fills_leaves_nothing(write, tmp_path):
    path, clip, _ = write()

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    arguments = ("--checkpoint", path, "--clip", clip, "--output", tmp_path / "mote", "--labels", seven(tmp_path))
    run = command(*arguments, preexec_fn=small_files)
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("error: ")
    assert {file.name for file in tmp_path.iterdir()} == {"clip", "labels.txt", "original.pt"}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--clip", "ABSENT"], 1, "--clip ABSENT: there is no such folder"),
        (["--clip", "./ABSENT"], 1, "--clip ./ABSENT: there is no such folder"),
        (["--model", "absent.pt"], 1, "--model absent.pt: there is no such file"),
        (["--num_frames", "78"], 1, "num_frames must be between 1"),
        (["--alpha", "2"], 2, "--alpha"),
        (["--labels_file", "none.csv"], 1, "--labels_file none.csv: there is no such file"),
        (["--labels_fil", "none.csv"], 2, "did you mean --labels_file?"),
    ],
)
def test_every_failure_of_the_command_is_one_line(write, tmp_path, capsys, arguments, code, sentence):
    path, clip, _ = write()
    base = ["convert", "--model", str(path), "--clip", str(clip), "--output", str(tmp_path / "mote")]
    assert main([*base, *arguments]) == code
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and sentence in said
    assert not (tmp_path / "mote").exists()
