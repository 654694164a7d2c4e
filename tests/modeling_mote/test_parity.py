"""The converted checkpoint against what the authors' code computed on it (`../shared/reference`), in float32."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from modeling_mote import MoTEForVideoClassification, MoTEModel
from modeling_mote.convert_mote_original import convert, infer_config, key_table, read_checkpoint
from modeling_mote.modeling_mote import merging_weights
from modeling_mote.processing.protocols import score_views

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def reference(request):
    folder = request.getfixturevalue("shared") / "reference"
    return folder, load_file(folder / "cases.safetensors"), json.loads((folder / "meta.json").read_text())


@pytest.fixture(scope="module")
def converted(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "mote"
    with pytest.warns(UserWarning, match="LABEL_0"):
        convert(reference[0] / "original_checkpoint.pt", reference[0] / "clip", folder, alpha=1.0)
    return folder


@pytest.fixture
def classifier(converted):
    return MoTEForVideoClassification.from_pretrained(converted).eval()


def close(actual, expected, tolerance=1e-5):
    bound = tolerance * max(1.0, expected.abs().max().item())
    assert (actual - expected).abs().max().item() <= bound


def cosines(model, outputs):
    return outputs / model.logit_scale.exp()


@torch.no_grad()
def test_frame_and_text_features(reference, converted):
    _, cases, _ = reference
    model = MoTEModel.from_pretrained(converted).eval()
    close(model.get_frame_features(cases["pixel_values"]).pooler_output, cases["image_embeds"])
    close(model.get_text_features(cases["input_ids"]).pooler_output, cases["text_embeds"])


@torch.no_grad()
def test_candidate_scores_features_and_modulation(reference, converted, classifier):
    _, cases, _ = reference
    for model in (classifier, MoTEModel.from_pretrained(converted).eval()):
        output = model(pixel_values_videos=cases["pixel_values"], class_embeds=cases["class_embeds"])
        logits = output.logits if model is classifier else output.logits_per_video
        close(cosines(model, logits), cases["eval.logits"])
        close(output.modulation, cases["eval.modulation"])
    features = classifier.get_video_features(cases["pixel_values"], class_embeds=cases["class_embeds"])
    close(features.last_hidden_state, cases["eval.video_features"])


@torch.no_grad()
def test_training_classes_need_no_modulation(reference, classifier):
    _, cases, _ = reference
    close(cosines(classifier, classifier(cases["pixel_values"]).logits), cases["eval.logits_train_classes"])
    candidates = classifier(cases["pixel_values"], class_embeds=cases["train_class_embeds"])
    close(cosines(classifier, candidates.logits), cases["eval.logits_train_classes"], 2e-5)
    close(
        classifier.get_video_features(cases["pixel_values"]).last_hidden_state,
        cases["eval.video_features_no_modulation"],
    )


@torch.no_grad()
def test_blended_image_tower(reference, tmp_path):
    folder, cases, _ = reference
    with pytest.warns(UserWarning, match="LABEL_0"):
        model = convert(folder / "original_checkpoint.pt", folder / "clip", tmp_path / "out")  # alpha 0.99 by default
    close(model.get_frame_features(cases["pixel_values"]).pooler_output, cases["eval.patched_image_embeds"])
    output = model(cases["pixel_values"], class_embeds=cases["class_embeds"])
    close(cosines(model, output.logits), cases["eval.patched_logits"])
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["alpha"] == 0.99


@torch.no_grad()
@pytest.mark.parametrize("expert", range(4))
def test_every_expert(reference, classifier, expert):
    _, cases, _ = reference
    mixture = F.one_hot(torch.tensor([expert, expert]), 4).float()
    features = classifier.get_video_features(cases["pixel_values"], mixture=mixture)
    close(features.last_hidden_state, cases[f"train.expert{expert}.video_features"])


@torch.no_grad()
@pytest.mark.parametrize("index", range(11))
def test_every_merge_temperature(reference, classifier, index):
    _, cases, meta = reference
    assert classifier.config.merge_temperatures == meta["temperatures"]
    mixture = merging_weights(4, meta["temperatures"][index]).expand(2, -1)
    features = classifier.get_video_features(cases["pixel_values"], mixture=mixture)
    close(features.last_hidden_state, cases[f"train.merge{index}.video_features"])
    folded = classifier.merge_experts(temperature=meta["temperatures"][index])
    close(folded.get_video_features(cases["pixel_values"]).last_hidden_state, features.last_hidden_state)


@torch.no_grad()
def test_multi_view_scores_and_features(reference, classifier):
    _, cases, _ = reference
    features = classifier.get_video_features(cases["views.pixel_values"], class_embeds=cases["class_embeds"])
    views = F.normalize(features.pooler_output, dim=-1)
    close(features.pooler_output, cases["views.features"])
    expected = cases["views.probs"]
    spread = expected.amax(-1) - expected.amin(-1)
    difference = (score_views(views @ cases["class_embeds"].T) - expected).abs().amax(-1)
    assert (difference <= 1e-4 * spread).all()
    averaged = classifier(cases["views.pixel_values"], class_embeds=cases["class_embeds"]).logits
    close(cosines(classifier, averaged), (views @ cases["class_embeds"].T).mean(1))


def test_training_step(reference, classifier):
    folder, cases, meta = reference
    classifier.train()
    mixture = F.one_hot(torch.tensor(meta["forced_experts_per_layer"]), 4).float()
    temperatures = [meta["temperatures"][index] for index in meta["forced_temperature_index_per_layer"]]
    merge_mixture = torch.stack([merging_weights(4, temperature) for temperature in temperatures])
    for parameter in classifier.text_model.parameters():
        parameter.requires_grad_(False)
    output = classifier(cases["pixel_values"], labels=cases["labels"], mixture=mixture, merge_mixture=merge_mixture)
    output.loss.backward()
    losses = meta["losses"]
    assert output.loss.item() == pytest.approx(losses["total"], rel=1e-4)
    assert F.cross_entropy(output.logits, cases["labels"]).item() == pytest.approx(losses["expert"], rel=1e-4)
    assert classifier.logit_scale.exp().item() == pytest.approx(losses["logit_scale"], rel=1e-5)
    merged = classifier(cases["pixel_values"], mixture=merge_mixture)
    assert F.cross_entropy(merged.logits, cases["labels"]).item() == pytest.approx(losses["merged"], rel=1e-4)
    tokens = classifier.get_video_features(cases["pixel_values"], mixture=merge_mixture)
    mse = F.mse_loss(tokens.last_hidden_state, tokens.frame_embeds)
    assert mse.item() == pytest.approx(losses["mse"], rel=1e-4)
    # train.logits_* are the scaled or plain cosines of the two passes; either way they order and space classes alike.
    for logits, name in ((output.logits, "train.logits_expert"), (merged.logits, "train.logits_merged")):
        scale = 1 if cases[name].abs().max() > 1.01 else classifier.logit_scale.exp()
        close(logits / scale, cases[name])

    image, head, _ = read_checkpoint(folder / "original_checkpoint.pt")
    parameters = dict(classifier.named_parameters())
    checked = 0
    for sources, targets in key_table(classifier.config):
        if targets[0] not in parameters:
            continue
        gradients = [parameters[target].grad for target in targets]
        if len(sources) > 1:
            gradients = list(gradients[0].unbind(0))
        gradient = {
            source: torch.cat(gradients) if len(targets) == 3 else gradients[index]
            for index, source in enumerate(sources)
        }
        for source, value in gradient.items():
            value = value.T if source == "visual.proj" else value
            norm = meta["grad_norms"][source]
            assert value.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), source
            if f"grad.{source}" in cases:
                assert (value - cases[f"grad.{source}"]).norm().item() <= 1e-4 * norm + 1e-7, source
            checked += 1
    assert checked == len(meta["grad_norms"])
    assert infer_config(image, head, classifier, 8).temporal_config.num_experts == 4
