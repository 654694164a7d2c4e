"""What users of transformers expect beside the numbers: files, Auto classes, compilers, Trainer, adapters."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from modeling_mote import MoTEConfig, MoTEForVideoClassification, MoTEModel

LABELS = torch.tensor([3, 11])
UNIFORM = torch.full((2, 4), 0.25)


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


# --- files and Auto classes ---


@torch.no_grad()
def test_one_sharded_checkpoint_serves_both_classes(classifier, videos, candidates, tmp_path):
    expected = classifier(videos, class_embeds=candidates).logits
    classifier.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    for auto, cls in ((AutoModel, MoTEModel), (AutoModelForVideoClassification, MoTEForVideoClassification)):
        model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(model) is cls and not model.training
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(model(pixel_values_videos=videos, class_embeds=candidates)[0], expected)
        model.save_pretrained(tmp_path / cls.__name__)
        for other in (AutoModel, AutoModelForVideoClassification):
            again = other.from_pretrained(tmp_path / cls.__name__)
            assert torch.equal(again(pixel_values_videos=videos, class_embeds=candidates)[0], expected)


def test_a_saved_folder_names_every_auto_class_and_carries_its_code(make_model, tmp_path):
    for cls in (MoTEModel, MoTEForVideoClassification):
        folder = tmp_path / cls.__name__
        make_model(cls).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        assert config["auto_map"] == {
            "AutoConfig": "configuration_mote.MoTEConfig",
            "AutoModel": "modeling_mote.MoTEModel",
            "AutoModelForVideoClassification": "modeling_mote.MoTEForVideoClassification",
        }
        assert config["architectures"] == [cls.__name__] and "custom_pipelines" not in config
        assert {path.name for path in folder.glob("*.py")} == {"configuration_mote.py", "modeling_mote.py"}


def test_state_dict_names_are_frozen(make_model, clip_folder):
    clip = set(load_file(clip_folder / "model.safetensors"))
    block = {
        f"self_attn.{projection}.{kind}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj")
        for kind in ("weight", "bias")
    } | {f"layer_norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    experts = {"mlp.up_proj", "mlp.up_proj_bias", "mlp.down_proj", "mlp.down_proj_bias"}
    merged = {f"mlp.fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    shared = {"temporal_model.position_embedding.weight", "seen_classes.weight"} | clip
    for model, feed_forward in ((make_model(), experts), (make_model(MoTEModel).merge_experts(), merged)):
        layers = {f"temporal_model.layers.{i}.{name}" for i in range(2) for name in block | feed_forward}
        assert set(model.state_dict()) == shared | layers
    stacked = make_model().state_dict()
    assert stacked["temporal_model.layers.0.mlp.up_proj"].shape == (4, 96, 64)
    assert stacked["temporal_model.layers.0.mlp.down_proj"].shape == (4, 64, 96)
    assert stacked["seen_classes.weight"].shape == (20, 64)


REMOTE = """
import importlib.abc, json, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_mote", "processing"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification
torch.set_num_threads(1)
folder, inputs, out = sys.argv[1:]
refused = []
for auto in (AutoConfig, AutoModel, AutoModelForVideoClassification):
    try:
        auto.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        refused.append("trust_remote_code=True" in str(error))
inputs = load_file(inputs)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
results = {}
for auto in (AutoModel, AutoModelForVideoClassification):
    model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.no_grad():
        results[type(model).__name__] = model(**inputs)[0]
    model.save_pretrained(out + "/" + type(model).__name__)
again = AutoModel.from_pretrained(out + "/MoTEForVideoClassification", trust_remote_code=True)
with torch.no_grad():
    results["again"] = again(**inputs)[0]
save_file(results, out + "/logits.safetensors")
said = {"refused": refused, "config": type(config).__name__, "module": type(again).__module__}
json.dump(said, open(out + "/said.json", "w"))
"""


@torch.no_grad()
def test_a_saved_folder_loads_without_the_package(classifier, videos, candidates, tmp_path):
    folder, out = tmp_path / "saved", tmp_path / "out"
    out.mkdir()
    classifier.save_pretrained(folder)
    inputs = {"pixel_values_videos": videos, "class_embeds": candidates}
    save_file(inputs, tmp_path / "inputs.safetensors")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-I", "-c", REMOTE, str(folder), str(tmp_path / "inputs.safetensors"), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    said = json.loads((out / "said.json").read_text())
    assert said["refused"] == [True] * 3 and said["config"] == "MoTEConfig"
    assert said["module"].startswith("transformers_modules.")
    logits = load_file(out / "logits.safetensors")
    expected = classifier(**inputs).logits
    assert set(logits) == {"MoTEModel", "MoTEForVideoClassification", "again"}
    assert all(torch.equal(value, expected) for value in logits.values())
    home = AutoModelForVideoClassification.from_pretrained(out / "MoTEModel")  # and back, with the package
    assert torch.equal(home(**inputs).logits, expected)


# --- outputs and attention ---


@torch.no_grad()
def test_tuples_hold_the_outputs_in_order(make_model, videos, candidates):
    for model in (make_model(MoTEModel), make_model()):
        inputs = {"pixel_values_videos": videos, "class_embeds": candidates}
        output, values = model(**inputs), model(**inputs, return_dict=False)
        assert isinstance(values, tuple) and len(values) == len(output.to_tuple())
        for value, named in zip(values, output.values(), strict=True):
            if isinstance(named, torch.Tensor):
                assert torch.equal(value, named)
            else:
                assert isinstance(value, tuple)
        features = model.get_video_features(videos, return_dict=False)
        assert torch.equal(features[0], model.get_video_features(videos).last_hidden_state)
        assert all(isinstance(value, torch.Tensor | tuple) for value in features)
        frames = model.get_frame_features(videos, return_dict=False)
        assert torch.equal(frames[1], model.get_frame_features(videos).pooler_output)
    loss, logits = model.train()(videos, labels=LABELS, return_dict=False)[:2]
    assert loss.shape == () and logits.shape == (2, 20)


def test_tuples_by_configuration(make_model, videos):
    input_ids = torch.full((2, 16), 98)
    for cls, inputs in ((MoTEModel, {"input_ids": input_ids}), (MoTEForVideoClassification, {"labels": LABELS})):
        model = make_model(cls).train()
        for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs_defaults)):
            config.return_dict = False
        assert isinstance(model(pixel_values_videos=videos, **inputs), tuple)


@torch.no_grad()
def test_hidden_states_and_attentions(make_model, videos, candidates):
    for model in (make_model(MoTEModel), make_model()):
        model.set_attn_implementation("eager")
        inputs = {"pixel_values_videos": videos, "class_embeds": candidates}
        plain = model(**inputs)
        assert plain.temporal_model_output.hidden_states is None and plain.temporal_model_output.attentions is None
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        assert torch.equal(output[0], plain[0])
        temporal = output.temporal_model_output
        assert [state.shape for state in temporal.hidden_states] == [(2, 8, 64)] * 3
        assert torch.equal(temporal.hidden_states[-1], temporal.last_hidden_state)
        assert [attention.shape for attention in temporal.attentions] == [(2, 2, 8, 8)] * 2
        torch.testing.assert_close(temporal.attentions[0].sum(-1), torch.ones(2, 2, 8))
        towers = output if isinstance(model, MoTEForVideoClassification) else output.vision_model_output
        assert [state.shape for state in towers.hidden_states] == [(16, 5, 32)] * 3
        assert [attention.shape for attention in towers.attentions] == [(16, 2, 5, 5)] * 2
    routed = model.train()(videos, labels=LABELS, output_hidden_states=True, mixture=UNIFORM)
    assert len(routed.temporal_model_output.hidden_states) == 3  # of the routed pass alone


@torch.no_grad()
def test_attention_implementations_agree(classifier, videos, candidates, tmp_path):
    classifier.save_pretrained(tmp_path)
    scores = {}
    for name in ("eager", "sdpa"):
        model = MoTEForVideoClassification.from_pretrained(tmp_path, attn_implementation=name)
        parts = (model, model.temporal_model, model.vision_model, model.text_model)
        assert all(part.config._attn_implementation == name for part in parts)
        scores[name] = model(videos, class_embeds=candidates).logits
    close(scores["eager"], scores["sdpa"])
    model.set_attn_implementation("eager")
    assert model.temporal_model.config._attn_implementation == "eager"
    assert torch.equal(model(videos, class_embeds=candidates).logits, scores["eager"])


# --- compilers ---


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, fullgraph=True, backend="aot_eager" if model.training else "eager")
    torch._dynamo.reset()


@torch.no_grad()
@pytest.mark.parametrize("cls", [MoTEModel, MoTEForVideoClassification])
def test_compiled_evaluation_is_one_graph(make_model, videos, candidates, compiled, cls):
    model = make_model(cls)
    inputs = {"pixel_values_videos": videos, "class_embeds": candidates}
    expected = model(**inputs)
    forward = compiled(model)
    output = forward(**inputs)
    close(output[0], expected[0])
    close(output.modulation, expected.modulation)
    model.temporal_model.layers[0].mlp.up_proj.data.mul_(2.0)  # no merge was baked in
    close(forward(**inputs)[0], model(**inputs)[0])
    if cls is MoTEForVideoClassification:
        close(forward(pixel_values_videos=videos).logits, model(videos).logits)


@pytest.mark.slow
def test_compiled_training_is_one_graph(classifier, videos, compiled):
    model = classifier.train()
    routed, merged = F.one_hot(torch.tensor([1, 3]), 4).float(), UNIFORM
    inputs = {"pixel_values_videos": videos, "labels": LABELS}
    loss = model(**inputs, mixture=routed, merge_mixture=merged).loss
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    forward = compiled(model)
    output = forward(**inputs, mixture=routed, merge_mixture=merged)
    output.loss.backward()
    close(output.loss, loss)
    for name, gradient in expected.items():
        close(model.get_parameter(name).grad, gradient, 1e-4)
    losses = {round(forward(**inputs).loss.item(), 4) for _ in range(8)}
    assert len(losses) > 2  # the graph draws anew in every step


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export_with_a_dynamic_batch(make_model, videos, candidates, strict):
    batch = torch.export.Dim("batch", min=1, max=64)
    model = make_model()
    for arguments in ({"pixel_values_videos": videos}, {"pixel_values_videos": videos, "class_embeds": candidates}):
        shapes = {"pixel_values_videos": {0: batch}, "class_embeds": None}
        program = torch.export.export(
            model,
            (),
            arguments,
            dynamic_shapes={name: shapes[name] for name in arguments},
            strict=strict,
        ).module()
        for size in (1, 2, 5):
            frames = torch.randn(size, 8, 3, 32, 32)
            inputs = {**arguments, "pixel_values_videos": frames}
            expected = model(**inputs)
            exported = program(**inputs)
            close(exported["logits"], expected.logits)
            close(exported["modulation"], expected.modulation)


@torch.no_grad()
def test_export_with_dynamic_views_and_classes(make_model, make_classes):
    model = make_model(MoTEModel)
    inputs = {"frame_embeds": torch.randn(2, 3, 8, 64), "class_embeds": make_classes(12, seed=5)}
    dim = torch.export.Dim
    shapes = {"frame_embeds": {0: dim("batch"), 1: dim("views")}, "class_embeds": {0: dim("classes", min=6)}}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    for b, v, c in ((1, 4, 6), (3, 2, 400)):
        inputs = {"frame_embeds": torch.randn(b, v, 8, 64), "class_embeds": make_classes(c, seed=c)}
        close(program(**inputs)["logits_per_video"], model(**inputs).logits_per_video)


# --- accelerate ---


@torch.no_grad()
def test_offloaded_weights(classifier, videos, candidates):
    from accelerate import cpu_offload

    expected = classifier(videos, class_embeds=candidates).logits
    features = classifier.get_video_features(videos, class_embeds=candidates).pooler_output
    resampled = classifier.get_video_features(videos[:, :5], interpolate_frame_positions=True).pooler_output
    offloaded = cpu_offload(classifier, execution_device=torch.device("cpu"))
    assert offloaded.temporal_model.position_embedding.weight.device.type == "meta"
    for _ in range(2):
        close(offloaded(videos, class_embeds=candidates).logits, expected)
        close(offloaded.get_video_features(videos, class_embeds=candidates).pooler_output, features)
        again = offloaded.get_video_features(videos[:, :5], interpolate_frame_positions=True).pooler_output
        close(again, resampled)


# --- Trainer ---


class Clips(torch.utils.data.Dataset):
    """Eight random clips, as dictionaries with a column that is no argument of forward."""

    def __init__(self, count: int = 8):
        self.frames = torch.randn(count, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return {"video": f"{index}.mp4", "pixel_values_videos": self.frames[index], "labels": index % 3}


def collate(clips):
    return {
        "pixel_values_videos": torch.stack([clip["pixel_values_videos"] for clip in clips]),
        "labels": torch.tensor([clip["labels"] for clip in clips]),
    }


class Losses(TrainerCallback):
    def __init__(self):
        self.losses = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(model, folder, batch, accumulation, **arguments):
    losses = Losses()
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            **{"max_steps": 2, "learning_rate": 1e-2, "optim": "sgd", "lr_scheduler_type": "constant", **arguments},
        ),
        train_dataset=Clips(),
        eval_dataset=Clips(),
        data_collator=collate,
        compute_metrics=lambda prediction: {"shape": list(prediction.predictions.shape)},
        callbacks=[losses],
    )
    trainer.train()
    return trainer, losses.losses


def test_trainer_trains_and_evaluates(make_model, tmp_path):
    trainer, losses = train(make_model(), tmp_path, 4, 1, max_steps=6, optim="adamw_torch", learning_rate=2e-3)
    assert len(losses) == 6 and losses[-1] < losses[0]
    metrics = trainer.evaluate()
    model, batch = trainer.model.eval(), collate([Clips()[index] for index in range(8)])
    with torch.no_grad():
        expected = F.cross_entropy(model(batch["pixel_values_videos"]).logits, batch["labels"]).item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["eval_shape"] == [8, 20]  # logits alone: no hidden states, features or rho
    trainer.save_model(tmp_path / "saved")
    assert MoTEForVideoClassification.from_pretrained(tmp_path / "saved").config.training_classes_set


@pytest.mark.parametrize("option", ["label_smoothing_factor", "compute_loss_func"])
def test_options_of_trainer_that_take_the_labels_away_are_told(make_model, tmp_path, option, caplog):
    """Trainer would train on the routed pass alone, without the merged pass and the mean squared error."""
    arguments = TrainingArguments(
        str(tmp_path),
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        max_steps=1,
        **({option: 0.1} if option == "label_smoothing_factor" else {}),
    )
    loss = {option: lambda outputs, labels, **_: outputs.logits.sum()} if option == "compute_loss_func" else {}
    trainer = Trainer(make_model(), arguments, train_dataset=Clips(), data_collator=collate, **loss)
    logging.warning_once.cache_clear()
    trainer.train()
    assert caplog.text.count("smooth labels by config.label_smoothing") == 1 and option in caplog.text


def test_predictions_of_the_model_are_its_scores(make_model, tmp_path, candidates):
    """Trainer gathers every output that is not named in the config: not the towers' states."""

    def batch(clips):
        return {"pixel_values_videos": collate(clips)["pixel_values_videos"], "class_embeds": candidates}

    model = make_model(MoTEModel)
    arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, report_to=[], use_cpu=True)
    prediction = Trainer(model, arguments, data_collator=batch).predict(Clips(6))
    with torch.no_grad():
        expected = model(**batch([Clips(6)[index] for index in range(6)])).logits_per_video
    close(torch.from_numpy(prediction.predictions), expected)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("loaded", [False, True])
def test_every_parameter_that_takes_a_gradient_gets_one_under_ddp(classifier, videos, process_group, tmp_path, loaded):
    """As Trainer wraps a model with activation checkpointing: without a search for unused parameters."""
    if loaded:
        classifier.save_pretrained(tmp_path / "saved")
        classifier = MoTEForVideoClassification.from_pretrained(tmp_path / "saved")
    classifier.train().activation_checkpointing_enable()
    parallel = torch.nn.parallel.DistributedDataParallel(classifier)
    for _ in range(3):
        parallel(videos, labels=LABELS).loss.backward()
    assert all(p.grad is not None for p in classifier.parameters() if p.requires_grad)
    assert not any(p.requires_grad for name, p in classifier.named_parameters() if name.startswith("text_"))


def test_input_embeddings_are_those_of_the_first_input(make_model):
    model, classifier = make_model(MoTEModel), make_model()
    assert model.get_input_embeddings() is model.text_model.embeddings.token_embedding
    assert classifier.get_input_embeddings() is classifier.vision_model.embeddings.patch_embedding
    fresh = torch.nn.Embedding(99, 128)
    model.set_input_embeddings(fresh)
    assert model.text_model.embeddings.token_embedding is fresh


def test_quantised_weights_are_not_merged(make_model, videos, tmp_path):
    model = make_model()
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(ValueError, match="quantised: load it without quantisation, merge_experts"):
        model.merge_experts()
    model = make_model()
    for layer in model.temporal_model.layers:
        layer.mlp.up_proj = torch.nn.Parameter(layer.mlp.up_proj.detach().mul(100).to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised"):
        model.merge_experts()
    assert not model.config.temporal_config.experts_merged


def test_accumulation_gives_the_loss_and_step_of_the_whole_batch(make_model, tmp_path):
    results = []
    for batch, accumulation in ((4, 1), (1, 4)):
        # One expert leaves nothing to draw: all three terms are the same in both runs.
        model = make_model(temporal_config={"num_hidden_layers": 2, "num_experts": 1})
        results.append(train(model, tmp_path, batch, accumulation))
    (whole, losses), (split, accumulated) = results
    assert accumulated == pytest.approx(losses, rel=1e-4)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), split.model.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# --- adapters ---


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed: pip install mote-transformers[peft]")


def attention_adapter(peft):
    return peft.LoraConfig(r=4, target_modules=r"temporal_model\..*\.(q_proj|v_proj)", init_lora_weights=False)


def expert_adapter(peft):
    return peft.LoraConfig(
        r=4, target_modules=[], target_parameters=["mlp.up_proj", "mlp.down_proj"], init_lora_weights=False
    )


@pytest.mark.parametrize("adapter", [attention_adapter, expert_adapter])
def test_lora(peft, make_model, videos, candidates, tmp_path, adapter):
    torch.manual_seed(0)
    base = make_model()
    with torch.no_grad():
        without = base(videos, class_embeds=candidates).logits
    model = peft.get_peft_model(base, adapter(peft)).train()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(pixel_values_videos=videos, labels=LABELS).loss.backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in trained)
    optimizer.step()
    model.eval()
    with torch.no_grad():
        tuned = model(pixel_values_videos=videos, class_embeds=candidates).logits
        assert (tuned - without).abs().max() > 1e-2
        model.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(make_model(), tmp_path).eval()
        close(again(pixel_values_videos=videos, class_embeds=candidates).logits, tuned)
        with model.disable_adapter():
            close(model(pixel_values_videos=videos, class_embeds=candidates).logits, without)
        merged = model.merge_and_unload()
        close(merged(videos, class_embeds=candidates).logits, tuned)
        close(merged.merge_experts()(videos, class_embeds=candidates).logits, tuned)


def test_routing_reaches_adapted_experts(peft, make_model, videos):
    model = peft.get_peft_model(make_model(), expert_adapter(peft))
    plain = make_model()
    routed = F.one_hot(torch.tensor([[0, 1], [3, 2]]), 4).float()
    with torch.no_grad():
        first, second = (model(pixel_values_videos=videos, mixture=mixture).logits for mixture in routed)
        assert (first - second).abs().max() > 1e-2
        model.merge_adapter()
        for mixture, expected in zip(routed, (first, second), strict=True):
            close(model(pixel_values_videos=videos, mixture=mixture).logits, expected, 1e-4)
        with model.disable_adapter():
            for mixture in routed:
                expected = plain(videos, mixture=mixture).logits
                close(model(pixel_values_videos=videos, mixture=mixture).logits, expected, 1e-4)
    with pytest.raises(ValueError, match="adapter wraps the experts"):
        model.merge_experts()


@torch.no_grad()
def test_merge_is_never_stale_under_adapters(peft, make_model, videos):
    model = peft.get_peft_model(make_model(), expert_adapter(peft)).eval()

    def score(disabled=False):
        if disabled:
            with model.disable_adapter():
                return model(pixel_values_videos=videos).logits
        return model(pixel_values_videos=videos).logits

    base, adapted = score(disabled=True), score()
    assert (base - adapted).abs().max() > 1e-2
    close(score(disabled=True), base)
    model.merge_adapter()
    close(score(), adapted, 1e-4)
    model.unmerge_adapter()
    close(score(disabled=True), base, 1e-4)
    model.merge_adapter()
    close(score(), adapted, 1e-4)
    close(score(disabled=True), base, 1e-4)  # unmerges by itself
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.mul_(2.0)
    assert (score() - adapted).abs().max() > 1e-2


def test_an_adapter_of_transformers_own_kind(peft, make_model, videos):
    model = make_model()
    model.add_adapter(attention_adapter(peft))
    model.train()(videos, labels=LABELS).loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n, p in model.named_parameters() if "lora_" in n
    }


def test_config_and_model_types_are_registered(tmp_path, make_config):
    make_config().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MoTEConfig
    assert type(AutoModel.from_config(make_config())) is MoTEModel
    assert type(AutoModelForVideoClassification.from_config(make_config())) is MoTEForVideoClassification


def test_an_adapter_on_classes_that_were_set_later(peft, make_model, make_classes, videos, tmp_path, caplog):
    """PEFT saves no training classes: the adapter would be loaded onto the checkpoint's own."""
    make_model().save_pretrained(tmp_path / "base")
    names, embeds = [f"new {index}" for index in range(20)], make_classes(20, seed=9)

    def base():
        return MoTEForVideoClassification.from_pretrained(tmp_path / "base")

    model = base()
    model.set_training_classes(names, embeds)
    tuned = peft.get_peft_model(model, attention_adapter(peft)).train()
    logging.warning_once.cache_clear()
    for _ in range(2):
        tuned(pixel_values_videos=videos, labels=LABELS)
    assert caplog.text.count('modules_to_save=["seen_classes"]') == 1

    model = base()
    model.set_training_classes(names, embeds)
    model.add_adapter(attention_adapter(peft))
    with pytest.raises(ValueError, match="An adapter's files hold no training classes"):
        model.save_pretrained(tmp_path / "lost")

    caplog.clear()
    adapter = attention_adapter(peft)
    adapter.modules_to_save = ["seen_classes"]
    model = base()
    model.set_training_classes(names, embeds)
    tuned = peft.get_peft_model(model, adapter)
    logging.warning_once.cache_clear()
    tuned.train()(pixel_values_videos=videos, labels=LABELS)
    assert "modules_to_save" not in caplog.text
    with torch.no_grad():
        expected = tuned.eval()(pixel_values_videos=videos).logits
        tuned.save_pretrained(tmp_path / "adapter")
        again = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
        with pytest.raises(ValueError, match="The names in config.id2label are not those"):
            again(pixel_values_videos=videos)
        again.base_model.model.set_training_classes(names, embeds)
        close(again(pixel_values_videos=videos).logits, expected)
        assert again.config.id2label[7] == "new 7"
